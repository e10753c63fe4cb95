# SPDX-License-Identifier: Apache-2.0
"""UperNet and Mask2Former train, resume and are tested, also with augmented views.

On generated images in ADE20K's folders, with the settings of the configs and small
models.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.paths import CONFIGS
from tests.tools.programs import run_tool
from tests.tools.small_models import MASK2FORMER, UPERNET, Options, as_arguments

pytestmark = pytest.mark.slow
pytest.importorskip('mmseg')
NUM_IMAGES = 2


def write_ade20k(folder: Path) -> None:
    """Write grey images with a wall, a bright building and pixels of no class."""
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        images, masks = (folder / kind / split for kind in ('images', 'annotations'))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number in range(NUM_IMAGES):
            image = rng.integers(0, 99, (60, 80, 3), dtype=np.uint8)
            # 0 is no class: the first, wall, is 1, and building 2.
            mask = np.ones((60, 80), np.uint8)
            y, x = rng.integers(2, 20, 2)
            image[y : y + 36, x : x + 48] = 255
            mask[y : y + 36, x : x + 48] = 2
            mask[:2] = 0
            cv2.imwrite(str(images / f'{number}.jpg'), image)
            cv2.imwrite(str(masks / f'{number}.png'), mask)


@pytest.mark.parametrize(
    ('config', 'small', 'tests'),
    [
        ('upernet_internimage-l_8xb2-160k_ade20k-640x640', UPERNET, ([], ['--tta'])),
        # At one scale it is tested at the end of the training.
        (
            'mask2former_internimage-h_16xb1-80k_ade20k-896x896',
            MASK2FORMER,
            (['--tta'],),
        ),
    ],
    ids=['upernet', 'mask2former'],
)
def test_train_resume_test(tmp_path: Path, config: str, small: Options, tests: tuple):
    write_ade20k(tmp_path / 'data' / 'ade' / 'ADEChallengeData2016')
    path = f'{CONFIGS}/segmentation/{config}.py'
    options = as_arguments(small)
    for more in ([], ['--resume']):
        iterations = 4 if more else 2
        length = [
            f'train_cfg.max_iters={iterations}',
            'train_cfg.val_interval=4',
            'train_cfg.val_begin=4',
            'default_hooks.checkpoint.interval=2',
            'default_hooks.logger.interval=1',
        ]
        arguments = ['--work-dir', 'out', *more, '--cfg-options', *options, *length]
        output = run_tool('train', path, *arguments, cwd=tmp_path)
    assert 'resumed epoch: 0, iter: 2' in output
    assert 'Iter(train) [3/4]' in output
    assert_only_wall_and_building(output)
    for more in tests:
        arguments = ['--work-dir', 'tested', *more, '--cfg-options', *options]
        output = run_tool('test', path, 'out/iter_4.pth', *arguments, cwd=tmp_path)
        assert f'Iter(test) [{NUM_IMAGES}/{NUM_IMAGES}]' in output
        assert_only_wall_and_building(output)


def assert_only_wall_and_building(output: str) -> None:
    """Check the table of mmseg: '0 is no class' left two of 150 with a label."""
    rows = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in output.splitlines()
        if line.startswith('|')
    ]
    accuracy = {name: value for name, _, value in rows if name != 'Class'}
    assert len(accuracy) == 150
    assert {name for name, value in accuracy.items() if value != 'nan'} == {
        'wall',
        'building',
    }
