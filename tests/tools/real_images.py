# SPDX-License-Identifier: Apache-2.0
"""Train and test a config on a sample of real images.

With the settings of the config, a small model and small images.
"""

import re
from pathlib import Path
from statistics import mean

import pytest

from tests.paths import CONFIGS
from tests.tools.programs import run_tool
from tests.tools.small_models import Options, as_arguments

NUM_ITERS = 10
NUM_TESTED = 4
NUM_AUGMENTED = 1  # in ten views and more, each with 150 scores per pixel
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


def sample(shared_data: Path, name: str) -> Path:
    """Return the folder of a sample; skip the test where there is none."""
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f'no data at {folder}')
    return folder


def train_and_test(
    config: str, options: Options, folder: Path, tests: tuple[list[str], ...] = ([],)
) -> list[str]:
    """Train, check that the loss fell, test, and return what each test printed."""
    path = f'{CONFIGS}/{config}.py'
    options = {**options, **SHORT}
    settings = ['--cfg-options', *as_arguments(options)]
    log = run_tool('train', path, '--work-dir', 'out', *settings, cwd=folder)
    losses = [float(loss) for loss in re.findall(r'\(train\) .* loss: (\S+)', log)]
    assert len(losses) == NUM_ITERS
    assert 0 < mean(losses[-3:]) < mean(losses[:3])
    checkpoint = (folder / 'out' / 'last_checkpoint').read_text()
    outputs = []
    for more in tests:
        if '--tta' in more:
            options = {**options, 'test_dataloader.dataset.indices': NUM_AUGMENTED}
        arguments = [path, checkpoint, '--work-dir', 'tested', *more]
        settings = ['--cfg-options', *as_arguments(options)]
        outputs.append(run_tool('test', *arguments, *settings, cwd=folder))
    return outputs
