# SPDX-License-Identifier: Apache-2.0
"""The refined labels of Cityscapes' coarsely labelled images, as they are published.

Configs name this module in ``custom_imports``. Importing it needs mmseg.
"""

from collections.abc import Sequence
from typing import Any

from mmseg.datasets import CityscapesDataset
from mmseg.registry import DATASETS

#: The label of each of the 19 classes in files of Cityscapes ('id'; the place in this
#: list is its 'trainId'). Source: cityscapesScripts, helpers/labels.py.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
NUM_LABEL_IDS = 34
NO_CLASS = 255


@DATASETS.register_module()
class CityscapesRefinedLabels(CityscapesDataset):
    """Images of Cityscapes whose coarse labels a network has refined.

    The published labels are files with the name of the image and the original labels,
    not those that mmseg's converter makes of the fine ones.

    Args:
        seg_map_suffix: What is at the end of a label file's name, in place of the
            image's ``_leftImg8bit.png``.
        **kwargs: Those of mmseg's ``CityscapesDataset``.

    Source of the labels: Tao et al., Hierarchical Multi-Scale Attention for Semantic
    Segmentation (arXiv:2005.10821), sec. 3.3.
    """

    def __init__(self, seg_map_suffix: str = '_leftImg8bit.png', **kwargs: Any) -> None:
        super().__init__(seg_map_suffix=seg_map_suffix, **kwargs)

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """Return the new label of each label in the files; 255 for no class."""
        chosen = super().get_label_map(new_classes) or {}
        label_map = dict.fromkeys(range(NUM_LABEL_IDS), NO_CLASS)
        for label, label_id in enumerate(LABEL_IDS):
            label_map[label_id] = chosen.get(label, label)
        return label_map
