# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and resumed is the unbroken one, bit for bit."""

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import RandomSampler

from internimage.checkpoint import load_checkpoint_file
from tests.internimage.engine.toy import (
    NUM_SAMPLES,
    KillAt,
    Noisy,
    config,
    in_child,
    train,
    validation,
)

LAST = {True: 'epoch_3.pth', False: 'iter_9.pth'}


def tensors(value: Any) -> list[torch.Tensor]:
    """Return all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    return [tensor for item in value for tensor in tensors(item)]


def state(path: Path) -> list[torch.Tensor]:
    """Return weights, running means, averages and the optimizer's state."""
    checkpoint = load_checkpoint_file(path)
    names = ('state_dict', 'ema_state_dict', 'optimizer')
    found = tensors([checkpoint[name] for name in names])
    assert len(found) > 20
    return found


def same(a: Path, b: Path) -> bool:
    pairs = zip(state(a), state(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def run_twice(
    folder: Path, by_epoch: bool, kill_at: int, resume_from: str, **changes: Any
) -> bool:
    """Return whether an unbroken and a killed run end with the same state."""
    whole, broken = folder / 'whole', folder / 'broken'
    # Without a fixed seed in the config: the file has to say all.
    assert in_child(train, config(whole, by_epoch, **changes), randomness=SEED) == 0
    settings = config(broken, by_epoch, **changes)
    hooks = settings['custom_hooks']
    killed = {**settings, 'custom_hooks': [*hooks, KillAt(kill_at)]}
    assert in_child(train, killed, randomness=SEED) == -signal.SIGKILL
    settings['load_from'] = str(broken / resume_from)
    np.random.seed()
    assert in_child(train, settings, resume=True) == 0
    return same(whole / LAST[by_epoch], broken / LAST[by_epoch])


SEED = {'seed': 5}


@DATA_SAMPLERS.register_module()
class Shuffled(RandomSampler):
    """PyTorch's own, which takes its seed from the generator of the process."""

    def __init__(self, dataset: Noisy, seed: int | None) -> None:
        super().__init__(dataset)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'train_dataloader__num_workers': 2},
        {
            'train_dataloader__num_workers': 1,
            'train_dataloader__persistent_workers': True,
            **validation(),
        },
        {'train_dataloader__sampler': dict(type='Shuffled')},
        {'train_dataloader__batch_sampler': dict(type='mmdet.AspectRatioBatchSampler')},
    ],
    ids=['no-workers', 'workers', 'persistent-validation', 'random', 'aspect-ratio'],
)
def test_by_epochs(tmp_path: Path, changes: dict[str, Any]):
    if 'train_dataloader__batch_sampler' in changes:
        pytest.importorskip('mmdet.datasets')
    assert run_twice(tmp_path, True, 5, 'epoch_1.pth', **changes)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'train_dataloader__num_workers': 2},
        {
            'train_dataloader__sampler': dict(type='Shuffled'),
            'train_dataloader__num_workers': 1,
        },
        {
            **validation(),
            'train_cfg__val_interval': 3,
            'optim_wrapper__accumulative_counts': 2,
        },
    ],
    ids=['no-workers', 'workers', 'random', 'validation-accumulated'],
)
def test_by_iterations(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """The second pass over the data starts at iteration 3."""
    monkeypatch.setattr(time, 'sleep', lambda _: None)  # mmengine's, between passes
    changes = {'param_scheduler': None, **changes}
    assert run_twice(tmp_path, False, 6, 'iter_4.pth', **changes)


def test_from_within_an_epoch(tmp_path: Path):
    changes = {
        'default_hooks__checkpoint__by_epoch': False,
        'train_dataloader__num_workers': 1,
    }
    whole = tmp_path / 'whole'
    assert in_child(train, config(whole, **changes), randomness=SEED) == 0
    for iteration in (4, 6):  # in the second of three, and at its end
        folder = tmp_path / f'{iteration}'
        settings = config(folder, **changes)
        settings['load_from'] = str(whole / f'iter_{iteration}.pth')
        assert in_child(train, settings, resume=True) == 0
        assert same(whole / 'iter_9.pth', folder / 'iter_9.pth')


def test_workers_make_no_difference(tmp_path: Path):
    files = []
    for workers in (0, 2):
        folder = tmp_path / f'{workers}'
        changes = {'train_dataloader__num_workers': workers}
        assert in_child(train, config(folder, **changes), randomness=SEED) == 0
        files.append(folder / 'epoch_3.pth')
    assert same(*files)


def test_seeds_differ(tmp_path: Path):
    for seed in (5, 6):
        settings = config(tmp_path / f'{seed}')
        assert in_child(train, settings, randomness={'seed': seed}) == 0
    assert not same(*(tmp_path / f'{seed}' / 'epoch_3.pth' for seed in (5, 6)))


def collect(folder: Path, **changes: Any) -> None:
    """Check what the loader gives in two passes."""
    from mmengine.runner import Runner

    settings = config(folder, **changes)
    runner = Runner(**settings, randomness=SEED)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    hook = next(h for h in runner.hooks if type(h).__name__ == 'RandomStreamHook')
    hook.before_train(runner)
    hook.before_train(runner)  # training twice numbers the samples once
    passes = [
        torch.cat([torch.stack(b['inputs'])[:, 0] for b in runner.train_dataloader])
        for _ in range(2)
    ]
    noise = torch.cat([p - p.floor() for p in passes])
    assert len(noise.unique()) == 2 * NUM_SAMPLES  # each sample has its own
    assert runner.train_dataloader.batch_sampler.sampler.seed == SEED['seed']


@pytest.mark.parametrize('workers', [0, 3])
def test_no_two_samples_have_the_same_noise(tmp_path: Path, workers: int):
    """With workers of the same seed in each epoch, as mmengine's, they do."""
    changes = {'train_dataloader__num_workers': workers}
    assert in_child(collect, tmp_path, **changes) == 0


@pytest.mark.parametrize(
    ('changed', 'says'),
    [
        (None, 'the checkpoint has no random state: images may come in another order'),
        (
            {'world_size': 8},
            'saved by 8 processes, resumed by 1: images are',
        ),
    ],
)
def test_a_file_of_another_kind_is_resumed_and_said(
    tmp_path: Path,
    changed: dict | None,
    says: str,
    capfd: pytest.CaptureFixture[str],
):
    assert in_child(train, config(tmp_path)) == 0
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    saved = checkpoint.pop('random_state')
    assert saved['world_size'] == 1
    if changed:
        checkpoint['random_state'] = saved | changed
    torch.save(checkpoint, tmp_path / 'other.pth')
    settings = config(tmp_path / 'out', load_from=str(tmp_path / 'other.pth'))
    assert in_child(train, settings, resume=True) == 0
    assert says in capfd.readouterr().out
    assert (tmp_path / 'out' / 'epoch_3.pth').exists()


def test_a_batch_sampler_that_cannot_skip_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip('mmdet.datasets')
    changes = {
        'default_hooks__checkpoint__by_epoch': False,
        'train_dataloader__batch_sampler': dict(type='mmdet.AspectRatioBatchSampler'),
    }
    assert in_child(train, config(tmp_path, **changes)) == 0
    settings = config(tmp_path, load_from=str(tmp_path / 'iter_4.pth'), **changes)
    assert in_child(train, settings, resume=True) == 0
    assert 'resumed from within epoch 2, which starts again' in capfd.readouterr().out


def test_samplers_look_as_before():
    from internimage.engine.random_streams import _NumberedSampler

    sampler = DefaultSampler(Noisy(), seed=3)
    numbered = _NumberedSampler(sampler, seed=0, epoch=0, position=0, num_skipped=0)
    assert len(numbered) == NUM_SAMPLES
    assert list(numbered) == list(sampler)
    numbered.set_epoch(4)
    assert sampler.epoch == 4
