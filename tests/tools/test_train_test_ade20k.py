# SPDX-License-Identifier: Apache-2.0
"""UperNet and Mask2Former train and are tested on a sample of ADE20K, if it is here."""

import re
from pathlib import Path

import pytest

from tests.tools.real_images import (
    ITERATIONS,
    NUM_AUGMENTED,
    NUM_TESTED,
    sample,
    train_and_test,
)
from tests.tools.small_models import MASK2FORMER, UPERNET, Options, views

pytestmark = pytest.mark.slow
# Norms of groups need more than one pixel of a map at stride 32.
SMALLEST = 64


@pytest.mark.parametrize(
    ('config', 'small'),
    [
        (
            'upernet_internimage-t_8xb2-160k_ade20k-512x512',
            {**UPERNET, **views(6, SMALLEST)},
        ),
        (
            'mask2former_internimage-h_16xb1-80k_ade20k-896x896',
            {**MASK2FORMER, **views(5, SMALLEST)},
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
    outputs = train_and_test(f'segmentation/{config}', options, tmp_path, tests)
    for output, number in zip(outputs, (NUM_TESTED, NUM_AUGMENTED), strict=True):
        assert f'(test) [{number}/{number}]' in output
        union = float(re.findall(r'mIoU: (\S+)', output)[-1])
        assert 0 <= union <= 100
