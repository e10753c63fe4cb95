# SPDX-License-Identifier: Apache-2.0
"""Cascade Mask R-CNN and composite DINO train, resume and are tested.

On a small data set, with the settings of the configs and small models.
"""

from pathlib import Path

import pytest

from tests.paths import CONFIGS
from tests.tools.programs import run_tool
from tests.tools.small_models import CASCADE_MASK_RCNN, LARGE_DINO, as_arguments
from tests.tools.test_train_test import NUM_IMAGES, write_coco

pytestmark = pytest.mark.slow

SMALL_CASCADE = as_arguments(CASCADE_MASK_RCNN)
SMALL_DINO = as_arguments(LARGE_DINO)


def train(config: str, settings: list[str], length: list[str], folder: Path) -> str:
    resume = ['--resume'] if (folder / 'out').exists() else []
    options = ['--work-dir', 'out', *resume, '--cfg-options', *settings, *length]
    return run_tool('train', f'{CONFIGS}/detection/{config}', *options, cwd=folder)


def evaluate(
    config: str, settings: list[str], checkpoint: str, folder: Path, *more: str
) -> str:
    options = ['--work-dir', 'tested', *more, '--cfg-options', *settings]
    path = f'{CONFIGS}/detection/{config}'
    return run_tool('test', path, checkpoint, *options, cwd=folder)


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
