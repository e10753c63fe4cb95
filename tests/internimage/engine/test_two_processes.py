# SPDX-License-Identifier: Apache-2.0
"""Two processes of one job resume, stop and skip together."""

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.dist import get_rank

from internimage.engine import NonFiniteError, choose_resumable
from tests.internimage.engine.test_finite_loss import Spoilt
from tests.internimage.engine.test_random_streams import same
from tests.internimage.engine.test_resuming import write_checkpoint
from tests.internimage.engine.toy import config, train

SEED = {'seed': 5, 'diff_rank_seed': True}


def run_both(function: Callable[..., None], *args: Any) -> list[int | None]:
    """Call a function in two processes of a job; return their exit codes."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = get_context('fork')
    processes = [
        context.Process(target=_join, args=(rank, port, function, args))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _join(rank: int, port: int, function: Callable[..., None], args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        'RANK': f'{rank}',
        'LOCAL_RANK': f'{rank}',
        'WORLD_SIZE': '2',
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': f'{port}',
    }
    # mmengine's own way wants a GPU for each process.
    torch.distributed.init_process_group('gloo')
    function(*args)


def settings_for_two(folder: Path) -> dict:
    return config(folder, train_dataloader__batch_size=2)  # 4 of 8 samples for each


def train_both(settings: dict, **arguments: Any) -> None:
    wrapper = {'type': 'MMDistributedDataParallel', 'device_ids': None}
    both = Config({'model_wrapper_cfg': wrapper})
    train(settings, launcher='pytorch', cfg=both, **arguments)


def test_a_resumed_job_is_the_unbroken_one(tmp_path: Path):
    """Each process has random numbers of its own, and draws them again."""
    settings = settings_for_two(tmp_path / 'whole')
    assert run_both(train_randomly, settings, {'randomness': SEED}) == [0, 0]
    settings = settings_for_two(tmp_path / 'resumed')
    settings['load_from'] = str(tmp_path / 'whole' / 'epoch_1.pth')
    another = {'seed': None, 'diff_rank_seed': True}
    again = {'randomness': another, 'resume': True}
    assert run_both(train_randomly, settings, again) == [0, 0]
    assert same(*(tmp_path / name / 'epoch_3.pth' for name in ('whole', 'resumed')))


def train_randomly(settings: dict, arguments: dict) -> None:
    train_both(settings, **arguments)


def choose(folder: Path, expected: str) -> None:
    settings = {'launcher': 'pytorch', 'work_dir': str(folder)}
    if os.environ['RANK'] == '1':  # what it sees makes no difference
        settings['work_dir'] = str(folder / 'missing')
    assert choose_resumable(Config(settings)) == expected
    assert get_rank() == int(os.environ['RANK'])


def test_the_first_process_chooses(tmp_path: Path):
    write_checkpoint(tmp_path / 'epoch_1.pth', 1)
    assert run_both(choose, tmp_path, str(tmp_path / 'epoch_1.pth')) == [0, 0]


def spoil_one(settings: dict, max_skips: int) -> None:
    """Give the second process a loss that is not finite in iteration 2."""
    settings['model'] = Spoilt(float('nan'), (2,) if get_rank() else ())
    settings['custom_hooks'] = []
    settings['default_hooks']['finite_loss']['max_skips'] = max_skips
    if max_skips:
        train_both(settings)
    elif get_rank():
        with pytest.raises(NonFiniteError, match=r'^iteration 2: loss_b is nan'):
            train_both(settings)
        os._exit(3)  # as an error does, which the launcher answers with a kill
    else:
        train_both(settings)


def test_steps_are_skipped_together(tmp_path: Path):
    assert run_both(spoil_one, settings_for_two(tmp_path), 1) == [0, 0]
    saved = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)
    steps = {int(state['step']) for state in saved['optimizer']['state'].values()}
    assert steps == {saved['meta']['iter'] - 1}


def test_the_process_with_the_images_says_it(tmp_path: Path):
    codes = run_both(spoil_one, settings_for_two(tmp_path), 0)
    assert codes[1] == 3
    assert codes[0] != 0  # its partner is gone
