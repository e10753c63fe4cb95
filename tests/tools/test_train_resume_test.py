# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN and composite DINO train, resume and are tested.

On a small data set, with the settings of the configs and small models.
"""

from pathlib import Path

import pytest

from tests.tools.test_train_test import NUM_IMAGES, ROOT, run, write_coco

pytestmark = pytest.mark.slow
CONFIGS = ROOT / 'configs' / 'detection'

SMALL = [
    'load_from=None',
    'model.backbone.init_cfg=None',
    'model.backbone.arch._delete_=True',
    'model.backbone.arch.channels=16',
    'model.backbone.arch.depths=[1,1,1,1]',
    'model.backbone.arch.groups=[1,2,4,8]',
    *(
        f'{split}_dataloader.{setting}'
        for split in ('train', 'val', 'test')
        for setting in ('num_workers=0', 'persistent_workers=False')
    ),
    'train_dataloader.batch_size=2',
    *(
        f'{split}_dataloader.dataset.pipeline.1.scale=(128,96)'
        for split in ('val', 'test')
    ),
]
SMALL_CASCADE = [
    *SMALL,
    'train_dataloader.dataset.pipeline.2.scale=(128,96)',
    'model.neck.in_channels=[16,32,64,128]',
    *(
        f'model.roi_head.bbox_head.{stage}.{setting}'
        for stage in range(3)
        for setting in ('fc_out_channels=32', 'num_shared_convs=1')
    ),
    'model.roi_head.mask_head.num_convs=1',
    *(f'model.train_cfg.rcnn.{stage}.sampler.num=16' for stage in range(3)),
    'model.test_cfg.rcnn.max_per_img=5',
    'model.test_cfg.rcnn.score_thr=0',  # an untrained model is sure of nothing
]
SMALL_DINO = [
    *SMALL,
    'train_dataloader.dataset.pipeline.3.scale=[(128,96),(160,96)]',
    'model.neck.in_channels=[32,64,128]',
    'model.num_queries=20',
    'model.encoder.num_layers=1',
    'model.decoder.num_layers=2',
    'model.dn_cfg.group_cfg.num_dn_queries=10',
    'model.test_cfg.max_per_img=5',
    'tta_pipeline.1.transforms.0.0.scale=(128,96)',
    'tta_pipeline.1.transforms.0.1.scale=(128,64)',
    'tta_pipeline.1.transforms.0.2.scale=(160,120)',
]


def train(config: str, settings: list[str], length: list[str], folder: Path) -> str:
    resume = ['--resume'] if (folder / 'out').exists() else []
    options = ['--work-dir', 'out', *resume, '--cfg-options', *settings, *length]
    return run('train', str(CONFIGS / config), *options, cwd=folder)


def evaluate(
    config: str, settings: list[str], checkpoint: str, folder: Path, *more: str
) -> str:
    options = ['--checkpoint', checkpoint, '--work-dir', 'tested', *more]
    return run(
        'test',
        str(CONFIGS / config),
        *options,
        *['--cfg-options', *settings],
        cwd=folder,
    )


def test_cascade(tmp_path: Path):
    write_coco(tmp_path / 'data' / 'coco')
    config = 'cascade-mask-rcnn_internimage-l_fpn_1x_coco.py'
    train(config, SMALL_CASCADE, ['train_cfg.max_epochs=1'], tmp_path)
    output = train(config, SMALL_CASCADE, ['train_cfg.max_epochs=2'], tmp_path)
    assert 'resumed epoch: 1, iter: 2' in output
    output = evaluate(config, SMALL_CASCADE, 'out/epoch_2.pth', tmp_path)
    assert 'coco/bbox_mAP: ' in output
    assert 'coco/segm_mAP: ' in output


def test_composite_dino(tmp_path: Path):
    write_coco(tmp_path / 'data' / 'coco')
    config = 'dino-4scale_cb-internimage-h_16xb1-20k_o365-to-coco.py'
    for iterations in (2, 4):
        every = ['train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=2']
        length = [f'train_cfg.max_iters={iterations}', *every]
        output = train(config, SMALL_DINO, length, tmp_path)
    assert 'resumed epoch: 0, iter: 2' in output
    assert 'coco/bbox_mAP: ' in output
    output = evaluate(config, SMALL_DINO, 'out/iter_4.pth', tmp_path, '--tta')
    assert 'coco/bbox_mAP: ' in output
    assert f'[{NUM_IMAGES}/{NUM_IMAGES}]' in output
