# SPDX-License-Identifier: Apache-2.0
"""Each family of detectors trains and is tested on a sample of COCO, if it is here."""

import re
from pathlib import Path

import pytest

from tests.tools.real_images import (
    EPOCH,
    ITERATIONS,
    NUM_TESTED,
    sample,
    train_and_test,
)
from tests.tools.small_models import (
    CASCADE_MASK_RCNN,
    DINO,
    LARGE_DINO,
    MASK_RCNN,
    Options,
)

pytestmark = pytest.mark.slow
SMALL_IMAGE = (128, 96)
DINO_OF_AN_EPOCH: Options = {
    **DINO,
    **EPOCH,
    **{
        f'train_dataloader.dataset.pipeline.3.transforms.{place}.scales': [SMALL_IMAGE]
        for place in ('0.0', '1.0', '1.2')
    },
}


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
