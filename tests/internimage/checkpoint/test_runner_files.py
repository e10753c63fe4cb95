# SPDX-License-Identifier: Apache-2.0
"""What a runner writes loads, whatever schedulers, optimizers and data sets it has."""

import importlib
import inspect
import io
import logging
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader
from torch import nn

import internimage  # noqa: F401  (registers the loaders)
from internimage.checkpoint import load_checkpoint_file
from tests.internimage.checkpoint.test_reading import make_runner

# What the schedulers want to have, by the names of their arguments.
ARGUMENTS = {
    'eta_max': 0.2,
    'end': 10,
    'gamma': 0.5,
    'milestones': [2, 3],
    'monitor': 'loss',
    'param_name': 'lr',
    'periods': [3, 4],
    'step_size': 2,
    'total_steps': 10,
}
# They need processes, sparse gradients, or a model of their own.
SPECIAL = {'Optimizer', 'ZeroRedundancyOptimizer', 'SparseAdam', 'Muon'}


def all_of(registry: Any) -> dict[str, type]:
    """Return what mmengine and the codebases have registered."""
    for codebase in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(codebase)
        importlib.import_module(f'{codebase}.engine')
    registry.import_from_location()
    found = dict(registry.module_dict)
    for child in registry.children.values():
        found |= child.module_dict
    return found


def reread(content: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return load_checkpoint_file(buffer)


def make_scheduler(kind: type) -> Any:
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1, momentum=0.9)
    # `StepLR(*args, **kwargs)` takes what its parents take.
    names = {
        name
        for parent in kind.__mro__
        if parent is not object
        for name, argument in inspect.signature(parent.__init__).parameters.items()
        if argument.default is inspect.Parameter.empty or name == 'end'
    }
    given = {name: ARGUMENTS[name] for name in names & ARGUMENTS.keys()}
    if 'ParamScheduler' not in kind.__name__:
        given.pop('param_name', None)
    if 'Restart' in kind.__name__:
        given |= {'eta_min': 0.01, 'restart_weights': [1, 0.5]}
    return kind(optimizer=optimizer, **given)


def test_every_scheduler():
    kinds = all_of(PARAM_SCHEDULERS)
    assert len(kinds) > 30
    for name, kind in kinds.items():
        scheduler = make_scheduler(kind)
        metrics = ({'loss': 1.0},) if 'Plateau' in name else ()
        scheduler.step(*metrics)
        state = scheduler.state_dict()
        loaded = reread({'param_schedulers': [state]})['param_schedulers'][0]
        assert str(loaded) == str(state), name
        resumed = make_scheduler(kind)
        resumed.load_state_dict(loaded)
        assert str(resumed.state_dict()) == str(state), name


def test_every_optimizer():
    kinds = all_of(OPTIMIZERS)
    assert len(kinds) > 15
    for name, kind in kinds.items():
        if name in SPECIAL:
            continue
        layer = nn.Linear(2, 1)
        optimizer = kind(layer.parameters(), lr=0.1)

        def closure(layer=layer):
            loss = layer(torch.ones(3, 2)).square().sum()
            loss.backward()
            return loss

        closure()
        optimizer.step(*[closure] if name == 'LBFGS' else [])
        state = optimizer.state_dict()
        loaded = reread({'optimizer': state})['optimizer']
        optimizer.load_state_dict(loaded)
        torch.testing.assert_close(loaded['state'], state['state'])
        assert loaded['param_groups'] == state['param_groups']


@pytest.mark.parametrize('wrapper', [OptimWrapper, AmpOptimWrapper])
def test_wrappers_of_optimizers(wrapper):
    optimizer = torch.optim.AdamW(nn.Linear(2, 1).parameters())
    if wrapper is AmpOptimWrapper:
        # It has one on a GPU only.
        scaler = torch.amp.GradScaler('cpu').state_dict()
        state = {**optimizer.state_dict(), 'loss_scaler': scaler}
    else:
        state = wrapper(optimizer).state_dict()
    assert reread({'optimizer': state})['optimizer'] == state


def test_one_cycle_resumes(tmp_path):
    schedule = dict(type='OneCycleLR', eta_max=0.3, total_steps=6, by_epoch=False)
    for anneal in ('cos', 'linear'):
        schedule['anneal_strategy'] = anneal
        runner = make_runner(tmp_path / anneal, param_scheduler=schedule)
        runner.train()
        path = tmp_path / anneal / 'epoch_1.pth'
        resumed = make_runner(
            tmp_path / f'{anneal}_resumed',
            load_from=str(path),
            resume=True,
            param_scheduler=schedule,
        )
        resumed.train()
        (before,), (after,) = runner.param_schedulers, resumed.param_schedulers
        assert before.state_dict() == after.state_dict()


def test_what_data_sets_and_hooks_say(tmp_path):
    said = {
        'classes': ('a', 'b'),
        'palette': [(1, 2, 3), [4, 5, 6]],
        'nested': {'skeleton': {0: {'link': ('a', 'b'), 'id': np.int64(3)}}},
        'config': ConfigDict(a=[dict(b=1)]),
        'sigmas': np.ones((2, 3), np.float32).T,
        'scale': np.float16(2),
        'flag': np.bool_(True),
        'set': {1, 2},
        'frozen': frozenset({'a'}),
        'bytes': b'\x00\xff',
        'no bytes': b'',
        'array of bytes': bytearray(b'ab'),
        'complex': 1 + 2j,
        'big': 2**100,
        'size': torch.Size([1, 2]),
        'dtype': torch.bfloat16,
        'device': torch.device('cuda', 1),
        'default': defaultdict(list, a=[1]),
        'state': torch.Generator().get_state(),
        'random': np.random.RandomState(0).get_state(),
        'none': None,
    }
    loaded = reread({'meta': {'dataset_meta': said}})['meta']['dataset_meta']
    for name, value in said.items():
        assert type(loaded[name]) is type(value), name
        if isinstance(value, (np.ndarray, torch.Tensor, tuple)):
            assert str(loaded[name]) == str(value), name
        else:
            assert loaded[name] == value, name


CODE = "raise RuntimeError('the config in the file ran')\n"


def write_config(path, key: str) -> None:
    """Put code where mmengine looks for a config."""
    content = torch.load(path, weights_only=False)
    content['meta'][key] = CODE
    content['message_hub']['runtime_info']['cfg'] = CODE
    torch.save(content, path)


@pytest.mark.parametrize('ema', [True, False])
def test_resume_runs_no_config(ema, tmp_path, messages):
    hooks = dict(custom_hooks=[dict(type='EMAHook')] if ema else [])
    make_runner(tmp_path / 'first', **hooks).train()
    path = tmp_path / 'first' / 'epoch_1.pth'
    write_config(path, 'config')
    resumed = make_runner(
        tmp_path / 'second', load_from=str(path), resume=True, **hooks
    )
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (2, 6)
    (line,) = (line for line in messages if 'another config' in line)
    assert line.startswith(f'{path}: written with another config than the present one')
    assert 'the config in the file ran' in line
    # Nor does the resumed run write it again.
    again = load_checkpoint_file(tmp_path / 'second' / 'epoch_2.pth')
    assert CODE not in (again['meta'].get('config'), again['meta']['cfg'])


def test_the_same_config_is_no_news(tmp_path, messages):
    MessageHub.get_current_instance().update_info('cfg', 'a = 1\n')
    torch.save({'state_dict': {}, 'meta': {'cfg': 'a = 1\n'}}, tmp_path / 'x.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))
    assert loaded == {'state_dict': {}, 'meta': {}}
    assert not messages


def test_resume_deletes_no_foreign_files(tmp_path, messages):
    """A hook of mmengine deletes the best checkpoint when there is a better one."""
    make_runner(tmp_path / 'first').train()
    path = tmp_path / 'first' / 'epoch_1.pth'
    precious = tmp_path / 'precious'
    precious.mkdir()
    (precious / 'thesis.txt').touch()
    content = torch.load(path, weights_only=False)
    content['message_hub']['runtime_info'] |= {
        'best_ckpt': str(precious),
        'best_score': 1e9,
        'keep_ckpt_ids': ['../../precious'],
    }
    torch.save(content, path)
    make_runner(tmp_path / 'second', load_from=str(path), resume=True).train()
    assert (precious / 'thesis.txt').exists()
    (line,) = (line for line in messages if 'left out' in line)
    assert 'best_ckpt, keep_ckpt_ids' in line


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    """Collect what our modules log."""
    logged: list[str] = []

    def log(message, logger=None, level=logging.INFO):
        logged.append(message)

    monkeypatch.setattr('internimage.checkpoint.meta.print_log', log)
    return logged


WEIGHTS = {'layer.weight': torch.ones(1, 3), 'layer.bias': torch.ones(1)}
HUB = {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ({'state_dict': []}, "expected a dict as 'state_dict', got .* 'list'"),
        ({'meta': 'text'}, "expected a dict as 'meta', got .* 'str'"),
        ({'meta': {'epoch': 'one'}}, "expected an int as 'epoch', got .* 'str'"),
        ({'message_hub': 3}, "expected a dict as 'message_hub', got .* 'int'"),
        ({'message_hub': {**HUB, 'log_scalars': []}}, "a dict as 'log_scalars'"),
        ({'optimizer': 'text'}, "expected a dict as 'optimizer'"),
        ({'param_schedulers': 3}, "expected a list as 'param_schedulers'"),
        ({}, 'it has no meta: a run cannot be resumed from it'),
        ({'meta': None}, 'it has no meta'),
        ({'meta': {}}, 'it says of no epoch: a run cannot be resumed'),
        ({'meta': {'epoch': 1, 'iter': 2}}, 'it has no message_hub: a run cannot'),
    ],
)
def test_what_cannot_be_resumed_is_told_by_its_file(content, reason, tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': WEIGHTS} | content, path)
    runner = make_runner(tmp_path / 'run', load_from=str(path), resume=True)
    with pytest.raises(ValueError, match=f'^{path}: .*{reason}'):
        runner.train()


def test_loaded_checkpoints_can_be_saved_again(tmp_path):
    make_runner(tmp_path / 'run').train()
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'run' / 'epoch_1.pth'))
    torch.save(loaded, tmp_path / 'again.pth')
    again = load_checkpoint_file(tmp_path / 'again.pth')
    assert again.keys() == loaded.keys()
    assert dict(again['meta']) == dict(loaded['meta'])
