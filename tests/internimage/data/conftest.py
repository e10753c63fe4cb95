# SPDX-License-Identifier: Apache-2.0
"""A small folder in COCO's format, to be damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

SIZE = (40, 60)  # (h, w) of all images
CLASSES = ('person', 'chair')


class CocoFolder:
    """Four images to learn from, with two objects each, and two to measure with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for split, number in (('train', 4), ('val', 2)):
            (root / split).mkdir(parents=True)
            for i in range(1, number + 1):
                pixels = np.full((*SIZE, 3), 40 * i, np.uint8)
                Image.fromarray(pixels).save(root / split / f'{i}.png')
            self.write(split, self.content(number))

    @staticmethod
    def content(num_images: int) -> dict[str, Any]:
        images = [
            {'id': i, 'file_name': f'{i}.png', 'height': SIZE[0], 'width': SIZE[1]}
            for i in range(1, num_images + 1)
        ]
        annotations = [
            {
                'id': 2 * image['id'] + number,
                'image_id': image['id'],
                'category_id': (1, 4)[number],
                'bbox': [5 + 20 * number, 6, 15, 20],
                'area': 300,
                'iscrowd': 0,
                'segmentation': [[5 + 20 * number, 6, 20 + 20 * number, 6, 20, 26]],
            }
            for image in images
            for number in range(2)
        ]
        categories = [{'id': 1, 'name': 'person'}, {'id': 4, 'name': 'chair'}]
        return {'images': images, 'annotations': annotations, 'categories': categories}

    def path(self, split: str) -> Path:
        return self.root / f'{split}.json'

    def write(self, split: str, content: Any) -> None:
        self.path(split).write_text(json.dumps(content))

    def edit(self, change: Callable[[Any], Any], split: str = 'train') -> None:
        """Change what an annotation file holds, in place."""
        content = json.loads(self.path(split).read_text())
        change(content)
        self.write(split, content)

    def config(self, with_mask: bool = False, **settings: Any) -> Config:
        """Return a config that trains and validates with the folder."""
        pipeline = [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
        ]
        loaders = {
            f'{split}_dataloader': dict(
                dataset=dict(
                    type='CocoDataset',
                    data_root=f'{self.root}/',
                    ann_file=f'{split}.json',
                    data_prefix=dict(img=f'{split}/'),
                    metainfo=dict(classes=CLASSES),
                    filter_cfg=dict(filter_empty_gt=True),
                    test_mode=split == 'val',
                    pipeline=pipeline,
                )
            )
            for split in ('train', 'val')
        }
        evaluator = dict(
            type='CocoMetric',
            ann_file=str(self.path('val')),
            metric=['bbox', 'segm'] if with_mask else 'bbox',
        )
        return Config(
            dict(default_scope='mmdet', val_evaluator=evaluator, **loaders, **settings)
        )


@pytest.fixture
def coco_folder(tmp_path: Path) -> CocoFolder:
    pytest.importorskip('mmdet.datasets')
    return CocoFolder(tmp_path / 'coco')
