# SPDX-License-Identifier: Apache-2.0
"""Boxes of LVIS v1: the data set, and how it is measured.

mmdet's own need the package ``lvis``, which does not run with NumPy 2. Configs name
this module in ``custom_imports``. Importing it needs mmdet and faster-coco-eval.
"""

import tempfile
from pathlib import Path
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster
from mmdet.datasets import CocoDataset, LVISV1Dataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.logging import print_log

#: Detections of an image that count. Source: LVIS (arXiv:1908.03195), sec. 4.
MAX_DETECTIONS = 300
#: Our name of a result -> that of faster-coco-eval. r, c, f are rare, common and
#: frequent categories.
RESULTS = {
    'AP': 'AP_all',
    'AP50': 'AP_50',
    'AP75': 'AP_75',
    'APs': 'AP_small',
    'APm': 'AP_medium',
    'APl': 'AP_large',
    'APr': 'APr',
    'APc': 'APc',
    'APf': 'APf',
}


@DATASETS.register_module()
class LVISV1BoxDataset(LVISV1Dataset):
    """LVIS v1, read as COCO is: the images are COCO's, found by their addresses.

    Args:
        **kwargs: Those of mmdet's ``CocoDataset``.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read the annotation file."""
        return CocoDataset.load_data_list(self)

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        """Return what a pipeline gets of an image: ``train2017/000000000001.jpg``."""
        image = raw_data_info['raw_img_info']
        image['file_name'] = '/'.join(image['coco_url'].split('/')[-2:])
        return super().parse_data_info(raw_data_info)


@METRICS.register_module()
class LVISBoxMetric(CocoMetric):
    """Average precision of boxes by the rules of LVIS.

    In an image only the categories count that it has, or that its annotators have
    looked for; detections beyond a category that is not labelled wholly are no faults.

    Args:
        ann_file: The annotations.
        **kwargs: Those of mmdet's ``CocoMetric``. ``metric`` is 'bbox'.

    Source: LVIS, arXiv:1908.03195, sec. 4; computed by faster-coco-eval.
    """

    default_prefix = 'lvis'

    def __init__(self, ann_file: str, **kwargs: Any) -> None:
        super().__init__(ann_file=ann_file, **kwargs)
        if self.metrics != ['bbox']:
            raise ValueError(f"metric: expected 'bbox', got {self.metrics}")

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Compute what :data:`RESULTS` names, and with ``classwise`` each category's.

        Args:
            results: Of all images, as mmdet's ``process`` keeps them.
        """
        self.cat_ids = self._coco_api.get_cat_ids(
            cat_names=self.dataset_meta['classes']
        )
        self.img_ids = self._coco_api.get_img_ids()
        predictions = [prediction for _, prediction in results]
        with tempfile.TemporaryDirectory() as folder:
            prefix = self.outfile_prefix or str(Path(folder, 'results'))
            file = self.results2json(predictions, prefix)['bbox']
            if self.format_only:
                return {}
            if not any(len(prediction['scores']) for prediction in predictions):
                print_log('No image has a detection', logger='current', level=40)
                return {}
            truth = COCO(self._coco_api.dataset)
            evaluation = COCOeval_faster(
                truth, truth.loadRes(file), 'bbox', lvis_style=True
            )
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.imgIds = self.img_ids
        evaluation.params.catIds = self.cat_ids
        evaluation.run()
        stats = evaluation.stats_as_dict
        metrics = {f'bbox_{name}': stats[key] for name, key in RESULTS.items()}
        if self.classwise:
            # Thresholds, recalls, categories, areas (the first: all), detections.
            for index, category in enumerate(self._coco_api.load_cats(self.cat_ids)):
                precision = evaluation.eval['precision'][:, :, index, 0, -1]
                known = precision[precision > -1]
                average = float(known.mean()) if known.size else float('nan')
                metrics[f'{category["name"]}_precision'] = average
        return metrics
