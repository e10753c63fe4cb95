# SPDX-License-Identifier: Apache-2.0
"""Real data sets, as they are, are not refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from internimage.data import Report, check_datasets

from tests.paths import CONFIGS



def look(name: str, **datasets: dict[str, Any]) -> list[Report]:
    """Look at the data of a published config, moved to samples."""
    config = Config.fromfile(CONFIGS / f'{name}.py')
    for split, changes in datasets.items():
        config[f'{split}_dataloader'].dataset.update(changes)
    if name.startswith('detection'):
        val = datasets['val']
        config.val_evaluator.ann_file = val['data_root'] + val['ann_file']
    return check_datasets(config)


def sample(shared_data: Path, name: str) -> str:
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f'no data at {folder}')
    return f'{folder}/'


@pytest.mark.parametrize(
    'name',
    [
        'mask-rcnn_internimage-t_fpn_1x_coco',
        'dino-4scale_internimage-t_8xb2-layer-decay-12e_coco',
    ],
)
def test_coco(shared_data: Path, name: str):
    pytest.importorskip('mmdet')
    root = sample(shared_data, 'coco')
    splits = {
        split: dict(
            data_root=root,
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=f'{split}/'),
        )
        for split in ('train', 'val')
    }
    for report in look(f'detection/{name}', **splits):
        content = json.loads(Path(report.source).read_text())
        single = [a for a in content['annotations'] if not a['iscrowd']]
        assert sum(report.counts.values()) == len(single)
        without = len(content['images']) - len({a['image_id'] for a in single})
        left_out = sum(tally.count for tally in report.left_out.values())
        assert left_out == (without if report.split == 'train' else 0)


def test_ade20k(shared_data: Path):
    pytest.importorskip('mmseg')
    root = sample(shared_data, 'ade20k')
    train, val = look(
        'segmentation/upernet_internimage-t_8xb2-160k_ade20k-512x512',
        train=dict(data_root=root),
        val=dict(data_root=root),
    )
    assert train.num_images > val.num_images > 0
    assert train.counts['wall'] > 0
    assert not train.left_out
    assert not val.left_out


def test_imagenet(shared_data: Path):
    pytest.importorskip('mmpretrain')
    root = sample(shared_data, 'imagenet')
    train, val = look(
        'classification/internimage-t_32xb128_in1k',
        train=dict(data_root=root, ann_file='train.txt'),
        val=dict(data_root=root, ann_file='val.txt'),
    )
    assert (train.num_images, val.num_images) == (400, 200)
    assert len(train.counts) == 1000
    assert train.counts['tench, Tinca tinca'] == 40


def test_voc_with_lists_and_palettes(shared_data: Path):
    pytest.importorskip('mmseg')
    root = sample(shared_data, 'optional/voc2012/VOCdevkit/VOC2012')
    loaders = {
        f'{split}_dataloader': dict(
            dataset=dict(
                type='PascalVOCDataset',
                data_root=root,
                ann_file=f'ImageSets/Segmentation/{split}.txt',
                data_prefix=dict(
                    img_path='JPEGImages', seg_map_path='SegmentationClass'
                ),
                pipeline=[dict(type='LoadAnnotations')],
            )
        )
        for split in ('train', 'val')
    }
    train, val = check_datasets(Config(dict(default_scope='mmseg', **loaders)))
    assert train.num_images == val.num_images == 10
    assert train.counts['background'] > 0
