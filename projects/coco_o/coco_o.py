# SPDX-License-Identifier: Apache-2.0
"""How a detector is measured on COCO-O: in six domains, and beside COCO.

Configs name this module in ``custom_imports``. Importing it needs mmdet.
"""

from typing import Any

from mmdet.evaluation import MultiDatasetsEvaluator
from mmengine.registry import EVALUATOR

#: What of its mAP on COCO a detector is expected to keep on COCO-O.
#: Source: COCO-O, arXiv:2307.12730, sec. 4.
EXPECTED_SHARE = 0.45


@EVALUATOR.register_module()
class COCOOEvaluator(MultiDatasetsEvaluator):
    """The mean of the box mAP of all domains, and the effective robustness.

    Args:
        coco_map: Box mAP of the same model on COCO val2017, in (0, 1).
        **kwargs: Those of mmdet's ``MultiDatasetsEvaluator``.

    Raises:
        ValueError: ``coco_map`` is out of range.

    Source: COCO-O, arXiv:2307.12730, sec. 4.
    """

    def __init__(self, coco_map: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < coco_map < 1:
            raise ValueError(
                'coco_map: expected the box mAP of the same model on COCO val2017, in '
                f'(0, 1), got {coco_map}'
            )
        self.coco_map = coco_map

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the figures of each domain, and those of all of them.

        Args:
            size: Number of all images.
        """
        figures = super().evaluate(size)
        average_precisions = [
            figures[f'{domain}/coco/bbox_mAP'] for domain in self.dataset_prefixes
        ]
        mean = sum(average_precisions) / len(average_precisions)
        figures['coco_o/bbox_mAP'] = mean
        figures['coco_o/effective_robustness'] = mean - EXPECTED_SHARE * self.coco_map
        return figures
