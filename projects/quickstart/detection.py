# SPDX-License-Identifier: Apache-2.0
"""The detectors of the quickstart: configs, folders in COCO format, table, picture."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import picture_grid
import scenes
from data_set import write_config
from mmengine.config import Config

from internimage.data import DataError
from internimage.data.coco import read_checked

CONFIG_FOLDER = Path(__file__).parent / 'configs'
CONFIGS = {
    'mask-rcnn': CONFIG_FOLDER / 'mask-rcnn_internimage-nano_fpn_shapes.py',
    'cascade-mask-rcnn': CONFIG_FOLDER
    / 'cascade-mask-rcnn_internimage-nano_fpn_shapes.py',
    'faster-rcnn': CONFIG_FOLDER / 'faster-rcnn_internimage-nano_fpn_shapes.py',
    'dino': CONFIG_FOLDER / 'dino-4scale_internimage-nano_shapes.py',
}
# Columns of the table, and the ends of their names in mmdet.
METRICS = dict(AP='', AP50='_50', AP75='_75', APs='_s', APm='_m', APl='_l')
MASK_ALPHA = 0.5  # 0: invisible, 1: hides what it covers
SCORE_THR = 0.4  # of the predictions drawn; lower where the best ones are worse
MAX_DRAWN = 10  # predictions in one image

# Where the number of classes is, in a family of detectors.
NUM_CLASSES = {
    'mask-rcnn': """
    roi_head=dict(
        bbox_head=dict(num_classes=num_classes),
        mask_head=dict(num_classes=num_classes),
    ),""",
    'cascade-mask-rcnn': """
    roi_head=dict(
        bbox_head=[
            dict(head, num_classes=num_classes)
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_head=dict(num_classes=num_classes),
    ),""",
    'faster-rcnn': """
    roi_head=dict(bbox_head=dict(num_classes=num_classes)),""",
    'dino': """
    bbox_head=dict(num_classes=num_classes),""",
}
FOLDER_CONFIG = '''"""A small InternImage detector on a COCO-format folder.

Written by the quickstart. For your own data, change data_root and classes; for a model
that is worth something, raise max_iters.
Train: mim train internimage {path}
"""

_base_ = {base!a}

data_root = {root!a}
# In the order of the annotation file.
metainfo = dict(classes={classes!r}, palette=None)
max_iters = {iters}

num_classes = len(metainfo['classes'])
model = dict({num_classes}
)

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (512, 320)
dataset = dict(data_root=data_root, metainfo=metainfo)
train_dataloader = dict(batch_size=2, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = max(2, min(40, max_iters // 4))  # the rate rises until then
param_scheduler[1].T_max = max_iters
'''


def read_classes(root: Path, with_masks: bool) -> tuple[str, ...]:
    """Check a COCO-format folder and return its class names, in the file's order.

    Args:
        root: The folder.
        with_masks: Whether the model learns from masks.

    Raises:
        DataError: Something is not there; the message says what was found.
    """
    if not root.is_dir():
        raise DataError(f'{root}: expected a folder, found none of that name')
    names: dict[str, list[str]] = {}
    for split in scenes.SPLITS:
        path = root / 'annotations' / f'instances_{split}.json'
        if not path.is_file() or not (root / split).is_dir():
            found = ', '.join(sorted(p.name for p in root.iterdir())) or 'nothing'
            raise DataError(
                f'{root}: expected annotations/instances_{split}.json and {split}/, '
                f'found {found}; rename or link yours'
            )
        data = read_checked(path, needs_crowd=split == 'val')
        names[split] = [category['name'] for category in data['categories']]
        missing = [
            image['file_name']
            for image in data['images']
            if not (root / split / image['file_name']).is_file()
        ]
        if missing:
            raise DataError(
                f'{root / split}: expected the {len(data["images"])} images of '
                f'{path.name}, {len(missing)} are missing, such as {missing[0]}'
            )
        has_masks = any(a.get('segmentation') for a in data['annotations'])
        if with_masks and not has_masks:
            raise DataError(
                f'{path}: expected objects with a segmentation, found none; '
                'choose a model that learns from boxes alone: faster-rcnn or dino'
            )
    if names['train'] != names['val']:
        raise DataError(
            f'{root}: expected the same categories in both annotation files, got '
            f'{names["train"]} and {names["val"]}'
        )
    return tuple(names['train'])


def write_folder_config(model: str, path: Path, root: Path, iters: int) -> None:
    """Write the config that trains on a COCO-format folder, for the user to keep."""
    write_config(
        path,
        FOLDER_CONFIG,
        base=str(CONFIGS[model].resolve()),
        root=f'{root.resolve()}/',
        classes=read_classes(root, with_masks='mask' in model),
        iters=iters,
        num_classes=NUM_CLASSES[model],
    )


def draw_predictions(config: Config, checkpoint: str, path: Path) -> int:
    """Load the checkpoint, predict on validation images, and write a picture.

    The images are the first ones with objects, enlarged so that labels are readable;
    the model sees the scale that its pipeline asks for.

    Returns:
        How many predictions were drawn.
    """
    from mmdet.apis import DetInferencer  # late, because it prints

    dataset = config.test_dataloader.dataset
    root = Path(dataset.data_root)
    data = json.loads((root / dataset.ann_file).read_text())
    with_objects = {annotation['image_id'] for annotation in data['annotations']}
    names = [i['file_name'] for i in data['images'] if i['id'] in with_objects]
    images = [
        picture_grid.fit(cv2.imread(str(root / dataset.data_prefix.img / name)))
        for name in names[: picture_grid.NUM_CELLS]
    ]
    inferencer = DetInferencer(config, weights=checkpoint, show_progress=False)
    samples = inferencer(images, return_datasamples=True)['predictions']
    inferencer.visualizer.alpha = MASK_ALPHA
    scores = [float(score) for s in samples for score in s.pred_instances.scores]
    score_thr = min(SCORE_THR, max(scores, default=0.0) / 2)

    drawn = []
    num_drawn = 0
    for image, sample in zip(images, samples, strict=True):
        sure = sample.pred_instances.scores > score_thr
        sample.pred_instances = sample.pred_instances[sure][:MAX_DRAWN]  # best first
        num_drawn += len(sample.pred_instances)
        inferencer.visualizer.add_datasample(
            'prediction', image, sample, draw_gt=False, pred_score_thr=score_thr
        )
        drawn.append(inferencer.visualizer.get_image())
    picture_grid.write(path, drawn)
    return num_drawn


def table(metrics: dict[str, float]) -> str:
    """Format the metrics of mmdet's CocoMetric; -1 means no object of that size."""
    lines = ['       ' + ''.join(f'{name:>7}' for name in METRICS)]
    for title, kind in (('boxes', 'bbox'), ('masks', 'segm')):
        if f'coco/{kind}_mAP' in metrics:
            values = [metrics[f'coco/{kind}_mAP{end}'] for end in METRICS.values()]
            cells = ['-' if value < 0 else f'{value:.3f}' for value in values]
            lines.append(f'{title:7}' + ''.join(f'{cell:>7}' for cell in cells))
    return '\n'.join(lines)
