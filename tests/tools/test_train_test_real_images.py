# SPDX-License-Identifier: Apache-2.0
"""``mim train`` and ``mim test`` of each family on samples of COCO and ADE20K.

With the settings of the configs, small models and small images. Skipped where the
samples are not.
"""

import re
from pathlib import Path
from statistics import mean

import pytest

from tests.tools.small_models import (
    CASCADE_MASK_RCNN,
    DINO,
    LARGE_DINO,
    MASK2FORMER,
    MASK_RCNN,
    UPERNET,
    Options,
    as_arguments,
)
from tests.tools.test_train_test import ROOT, run

pytestmark = pytest.mark.slow

NUM_ITERS = 10
NUM_TESTED = 4
EPOCH: Options = {
    'train_cfg.max_epochs': 1,
    'train_dataloader.dataset.indices': 2 * NUM_ITERS,  # two images at a time
}
ITERATIONS: Options = {
    'train_cfg.max_iters': NUM_ITERS,
    'train_cfg.val_interval': NUM_ITERS,
    'train_cfg.val_begin': NUM_ITERS,
    'default_hooks.checkpoint.interval': NUM_ITERS,
}
# So few steps need a short warm-up and a high learning rate for the loss to fall.
SHORT: Options = {
    'param_scheduler.0.end': 2,
    'optim_wrapper.optimizer.lr': 1e-3,
    'default_hooks.logger.interval': 1,
    'randomness.seed': 0,
    **{f'{split}_dataloader.dataset.indices': NUM_TESTED for split in ('val', 'test')},
}
SMALL_IMAGE = (128, 96)
DINO_OF_AN_EPOCH: Options = {
    **DINO,
    **EPOCH,
    **{
        f'train_dataloader.dataset.pipeline.3.transforms.{place}.scales': [SMALL_IMAGE]
        for place in ('0.0', '1.0', '1.2')
    },
}


def views(number: int) -> Options:
    """Make so many augmented views small, but larger than a pixel at stride 32."""
    return {
        f'tta_pipeline.1.transforms.0.{view}.scale': (4 * short, short)
        for view, short in enumerate(range(64, 64 + 16 * number, 16))
    }


def train_and_test(
    config: str, options: Options, folder: Path, tests: tuple[list[str], ...] = ([],)
) -> list[str]:
    """Train, check that the loss fell, test, and return what each test printed."""
    path = str(ROOT / 'configs' / f'{config}.py')
    settings = ['--cfg-options', *as_arguments({**options, **SHORT})]
    log = run('train', path, '--work-dir', 'out', *settings, cwd=folder)
    losses = [float(loss) for loss in re.findall(r'\(train\) .* loss: (\S+)', log)]
    assert len(losses) == NUM_ITERS
    assert 0 < mean(losses[-3:]) < mean(losses[:3])
    checkpoint = (folder / 'out' / 'last_checkpoint').read_text()
    arguments = ['--checkpoint', checkpoint, '--work-dir', 'tested']
    return [
        run('test', path, *arguments, *more, *settings, cwd=folder) for more in tests
    ]


@pytest.mark.parametrize(
    ('config', 'small', 'metrics'),
    [
        ('mask-rcnn_internimage-t_fpn_1x_coco', {**MASK_RCNN, **EPOCH}, 'bbox segm'),
        (
            'cascade-mask-rcnn_internimage-l_fpn_1x_coco',
            {**CASCADE_MASK_RCNN, **EPOCH},
            'bbox segm',
        ),
        (
            'dino-4scale_internimage-t_8xb2-layer-decay-12e_coco',
            DINO_OF_AN_EPOCH,
            'bbox',
        ),
        (
            'dino-4scale_cb-internimage-h_16xb1-20k_o365-to-coco',
            {**LARGE_DINO, **ITERATIONS},
            'bbox',
        ),
    ],
    ids=['mask-rcnn', 'cascade-mask-rcnn', 'dino', 'composite-dino'],
)
def test_detector(
    shared_data: Path, tmp_path: Path, config: str, small: Options, metrics: str
):
    source = sample(shared_data, 'coco')
    coco = tmp_path / 'data' / 'coco'
    (coco / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (coco / f'{split}2017').symlink_to(source / split)
        target = coco / 'annotations' / f'instances_{split}2017.json'
        target.symlink_to(source / 'annotations' / f'instances_{split}.json')
    (output,) = train_and_test(f'detection/{config}', small, tmp_path)
    assert f'(test) [{NUM_TESTED}/{NUM_TESTED}]' in output
    for metric in metrics.split():
        precision = float(re.findall(rf'coco/{metric}_mAP: (\S+)', output)[-1])
        assert 0 <= precision <= 1


@pytest.mark.parametrize(
    ('config', 'small'),
    [
        ('upernet_internimage-t_8xb2-160k_ade20k-512x512', {**UPERNET, **views(6)}),
        (
            'mask2former_internimage-h_16xb1-80k_ade20k-896x896',
            {**MASK2FORMER, **views(5)},
        ),
    ],
    ids=['upernet', 'mask2former'],
)
def test_segmentor(shared_data: Path, tmp_path: Path, config: str, small: Options):
    pytest.importorskip('mmseg')
    root = tmp_path / 'data' / 'ade'
    root.mkdir(parents=True)
    (root / 'ADEChallengeData2016').symlink_to(sample(shared_data, 'ade20k'))
    options = {**small, **ITERATIONS}
    tests = ([], ['--tta'])
    for output in train_and_test(f'segmentation/{config}', options, tmp_path, tests):
        assert f'(test) [{NUM_TESTED}/{NUM_TESTED}]' in output
        union = float(re.findall(r'mIoU: (\S+)', output)[-1])
        assert 0 <= union <= 100


def sample(shared_data: Path, name: str) -> Path:
    """Return the folder of a sample; skip the test where there is none."""
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f'no data at {folder}')
    return folder
