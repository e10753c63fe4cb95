# SPDX-License-Identifier: Apache-2.0
"""Recipes of each kind, small, with generated data: a training in seconds.

Among them: averaged weights, dropped paths, flips, crops, random sizes, Mixup, noise in
queries; by epochs and by iterations; with and without worker processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tests.tools.small_models import (
    LARGE_DINO,
    LOADERS,
    MASK_RCNN,
    UPERNET,
    Options,
)
from tests.tools.test_train_test import write_coco


def write_imagenet(folder: Path) -> None:
    """Write images of noise and a list of them for each split."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        (folder / split).mkdir(parents=True)
        lines = []
        for number in range(7):
            pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / split / f'{number}.png'), pixels)
            lines.append(f'{number}.png {number % 3}\n')
        (folder / f'{split}.txt').write_text(''.join(lines))


def write_ade20k(folder: Path) -> None:
    """Write images of noise with two classes, 3 for training and 1 for validation."""
    rng = np.random.default_rng(0)
    for split, count in (('training', 3), ('validation', 1)):
        images, masks = (folder / kind / split for kind in ('images', 'annotations'))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            cv2.imwrite(str(images / f'{number}.jpg'), pixels)
            cv2.imwrite(str(masks / f'{number}.png'), pixels[..., 0] % 2 + 1)


@dataclass(frozen=True)
class Family:
    """A recipe, what makes it small, and the data that it wants."""

    config: str
    options: Options
    package: str
    write_data: Callable[[Path], None]
    data: str


def each_epoch(number: int) -> Options:
    """Train so many epochs and keep one checkpoint, as the recipes with one do."""
    checkpoint = 'default_hooks.checkpoint'
    return {'train_cfg.max_epochs': number, f'{checkpoint}.max_keep_ckpts': 1}


def each_iteration(number: int) -> Options:
    """Train so many iterations, validate at the end, save after each."""
    checkpoint = 'default_hooks.checkpoint'
    return {
        'train_cfg.max_iters': number,
        'train_cfg.val_interval': number,
        'train_cfg.val_begin': number,
        f'{checkpoint}.interval': 1,
        f'{checkpoint}.max_keep_ckpts': 1,
    }


FAMILIES = {
    # Crops and flips; images in batches of one shape; batch normalisation averaged.
    'mask-rcnn': Family(
        'detection/mask-rcnn_internimage-t_fpn_1x_coco',
        {
            **MASK_RCNN,
            **each_epoch(2),
            'train_cfg.val_interval': 2,
            'train_dataloader.num_workers': 1,
        },
        'mmdet',
        write_coco,
        'coco',
    ),
    # Noise in the queries, sizes by chance.
    'dino': Family(
        'detection/dino-4scale_internimage-h_16xb1-20k_o365-to-coco',
        {**LARGE_DINO, **each_iteration(3)},
        'mmdet',
        write_coco,
        'coco',
    ),
    'upernet': Family(
        'segmentation/upernet_internimage-t_8xb2-160k_ade20k-512x512',
        {**UPERNET, **each_iteration(4), 'train_dataloader.num_workers': 2},
        'mmseg',
        write_ade20k,
        'ade/ADEChallengeData2016',
    ),
    # Mixup, CutMix, RandAugment, erasing; averaged weights are the recipe's own.
    'classifier': Family(
        'classification/internimage-t_32xb128_in1k',
        {
            **LOADERS,
            **each_epoch(3),
            'model.backbone.arch': {
                '_delete_': True,
                'channels': 16,
                'depths': [1, 1, 2, 1],
                'groups': [1, 2, 4, 8],
            },
            'model.neck.in_channels': 128,
            'model.neck.out_channels': 192,
            'model.head.in_channels': 192,
            'param_scheduler.0.end': 1,
            'train_dataloader.num_workers': 1,
            'train_dataloader.dataset.ann_file': 'train.txt',
            'train_dataloader.dataset.pipeline.1.scale': 32,
            **{
                f'{split}_dataloader.dataset.{name}': value
                for split in ('val', 'test')
                for name, value in {
                    'ann_file': 'val.txt',
                    'pipeline.1.scale': 32,
                    'pipeline.2.crop_size': 32,
                }.items()
            },
        },
        'mmpretrain',
        write_imagenet,
        'imagenet',
    ),
}
