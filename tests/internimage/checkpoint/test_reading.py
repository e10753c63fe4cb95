# SPDX-License-Identifier: Apache-2.0
import io
import os
import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

import internimage  # noqa: F401  (registers the loaders)
from internimage import InternImage
from internimage.checkpoint import load_checkpoint_file


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Attribute:
    """Pickles to ``getattr(owner, name)``."""

    def __init__(self, owner, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


class GetattrPayload:
    """Reaches ``exec`` by ``getattr`` alone, and calls it through an allowed name."""

    def __init__(self, path: Path) -> None:
        self.code = f'open({str(path)!r}, "w")'

    def __reduce__(self):
        execute = Attribute(Attribute(getattr, '__self__'), 'exec')
        rebuild = torch._tensor._rebuild_from_type_v2
        return rebuild, (execute, torch.Tensor, (self.code,), None)


class Counts(BaseMetric):
    """A metric with values of several types, which end up in the message hub."""

    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        count = sum(results)
        return {'a': np.float32(count / 3), 'b': count, 'c': np.int64(count)}


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        out = self.layer(inputs)
        return {'loss': out.square().mean()} if mode == 'loss' else list(out)


def make_runner(work_dir: Path, **kwargs) -> Runner:
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=[{'inputs': torch.full((3,), float(i))} for i in range(5)],
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
    )
    settings = dict(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        val_dataloader=loader,
        val_evaluator=[Counts()],
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, end=3),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', interval=1, save_best='toy/a', rule='less'
            ),
        ),
        experiment_name=f'toy_{work_dir.name}',
    )
    return Runner(**settings | kwargs)


def test_checkpoint_of_a_runner_loads_and_resumes(tmp_path):
    runner = make_runner(tmp_path / 'first')
    runner.train()
    path = tmp_path / 'first' / 'epoch_1.pth'

    checkpoint = load_checkpoint_file(path)
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.statistics('mean', 2) == history.mean(2)
    assert {'state_dict', 'optimizer', 'param_schedulers', 'meta'} <= checkpoint.keys()

    resumed = make_runner(tmp_path / 'second', load_from=str(path), resume=True)
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (2, 6)
    assert len(resumed.message_hub.get_scalar('train/loss').data[0]) == 6


def test_history_saved_with_numpy_1_loads(tmp_path):
    # NumPy 2 says numpy._core where NumPy 1 said numpy.core; of one length in a file
    # without memoised strings, so that the bytes can be swapped one for the other.
    values = [HistoryBuffer([1.5, 2], [1, 1]), np.float64(3), np.array([True])]
    state = {'values': values}
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    assert b'cnumpy._core.multiarray\n' in content
    old = content.replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n')
    history, scalar, array = load_checkpoint_file(io.BytesIO(old))['values']
    assert history.current() == 2
    assert scalar == 3
    assert array.tolist() == [True]


def test_an_attribute_is_one_of_its_owner(tmp_path):
    """OneCycle schedulers name two; another owner's of that name is another thing."""
    path, name = tmp_path / 'attribute.pth', '_annealing_cos'
    ours, others = OneCycleParamScheduler, torch.optim.lr_scheduler.OneCycleLR
    torch.save({'function': Attribute(ours, name)}, path)
    assert load_checkpoint_file(path)['function'] is getattr(ours, name)
    for owner, attribute in ((others, name), (ours, '__init__'), (Path, 'touch')):
        torch.save({'function': Attribute(owner, attribute)}, path)
        with pytest.raises(pickle.UnpicklingError, match=rf'getattr|\.{attribute}'):
            load_checkpoint_file(path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('payload', [Payload, GetattrPayload])
def test_hostile_checkpoint_does_not_run(tmp_path, payload, zipped):
    path, trace = tmp_path / 'hostile.pth', tmp_path / 'it_ran'
    content = {'state_dict': {'x': torch.zeros(1)}, 'meta': payload(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = InternImage({'channels': 6, 'depths': [1], 'groups': [1]}, (0,))
    model.init_cfg = init_cfg
    for load in (
        partial(load_checkpoint_file, path),
        partial(CheckpointLoader.load_checkpoint, str(path)),
        model.init_weights,
    ):
        with pytest.raises(pickle.UnpicklingError) as error:
            load()
        message = str(error.value)
        assert message.startswith(f'{path}: not loaded, because reading it could run')
        assert ('getattr' if payload is GetattrPayload else 'pathlib') in message
        assert f"torch.load('{path}', weights_only=False)" in message
    assert not trace.exists()
    # The test itself is sound: an ordinary reader does run the payload.
    try:
        torch.load(path, weights_only=False)
    except AttributeError:
        assert payload is GetattrPayload
    assert trace.exists()


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no such file: .*absent.pth'):
        load_checkpoint_file(tmp_path / 'absent.pth')
    page = tmp_path / 'page.pth'
    page.write_text('<html>404</html>')
    with pytest.raises(pickle.UnpicklingError, match=r'page.pth: .* got an HTML page'):
        load_checkpoint_file(page)
    cut = tmp_path / 'cut.pth'
    torch.save({'x': torch.zeros(1000)}, cut)
    cut.write_bytes(cut.read_bytes()[:-500])
    with pytest.raises(RuntimeError, match=r'cut.pth: could not be read'):
        load_checkpoint_file(cut)
    empty = tmp_path / 'empty.pth'
    empty.touch()
    with pytest.raises(pickle.UnpicklingError, match=r'empty.pth: .* an empty file'):
        load_checkpoint_file(empty)
    with pytest.raises(IsADirectoryError, match='expected a checkpoint, got a folder'):
        load_checkpoint_file(tmp_path)
    pipe = tmp_path / 'pipe.pth'
    os.mkfifo(pipe)  # nobody will write to it
    with pytest.raises(RuntimeError, match=r'pipe.pth: expected a file, got a pipe'):
        load_checkpoint_file(pipe)
    with pytest.raises(NotImplementedError, match='pavi://x: no safe loader'):
        CheckpointLoader.load_checkpoint('pavi://x')


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    tensors = {'a': torch.arange(3.0), 'b': torch.ones(2, 1, dtype=torch.half)}
    path = tmp_path / 'x.safetensors'
    safetensors.save_file(tensors, path)
    for location in (None, 'cpu', torch.device('cpu')):
        loaded = CheckpointLoader.load_checkpoint(str(path), location)
        torch.testing.assert_close(loaded, tensors)


def test_safetensors_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    path = tmp_path / 'x.safetensors'
    path.write_bytes(b'\2\0\0\0\0\0\0\0{}')
    with pytest.raises(ImportError, match=r'x.safetensors: install safetensors'):
        load_checkpoint_file(path)


@pytest.mark.parametrize('zipped', [True, False])
def test_tensors_are_as_torch_reads_them(tmp_path, zipped):
    base = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        'base': base,
        'a view': base[:, 1:, ::2],
        'turned': base.permute(2, 0, 1),
        'empty': torch.empty(0, 3),
        'number': torch.tensor(3),
        'parameter': nn.Parameter(torch.ones(2), requires_grad=False),
        'with gradient': torch.ones(2, requires_grad=True),
        'dtypes': [
            torch.ones(3, dtype=dtype)
            for dtype in (torch.bfloat16, torch.half, torch.uint8, torch.bool)
        ],
        'model': nn.BatchNorm2d(3).state_dict(),
    }
    if zipped:  # the older format has no name for it
        content['newest'] = torch.ones(3, dtype=torch.uint16)
    path = tmp_path / 'x.pth'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read, expected = load_checkpoint_file(path), torch.load(path)
    assert read.keys() == expected.keys()
    for name in content:
        torch.testing.assert_close(read[name], expected[name])
        if isinstance(content[name], torch.Tensor):
            assert type(read[name]) is type(expected[name])
            assert read[name].stride() == expected[name].stride()
            assert read[name].requires_grad == expected[name].requires_grad
    assert read['model']._metadata == expected['model']._metadata
    read['base'].zero_()  # in memory of its own, which a view of it shares
    assert not read['a view'].any()


def test_device(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'x': torch.ones(2)}, path)
    asked = []

    def remember(storage, location):
        asked.append(location)
        return storage

    for location in (None, 'cpu', torch.device('cpu'), {'cpu': 'cpu'}, remember):
        assert load_checkpoint_file(path, location)['x'].device.type == 'cpu'
    assert asked == ['cpu']
    assert load_checkpoint_file(path, 'meta')['x'].is_meta
    with pytest.raises(RuntimeError, match=r'x\.pth: could not be read: .*nowhere'):
        load_checkpoint_file(path, 'nowhere')


def test_file_without_checksums(tmp_path):
    path = tmp_path / 'x.pth'
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'x': torch.ones(2)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint_file(path)['x'].tolist() == [1, 1]


def test_nonfinite_weights_are_taken_when_asked_for(tmp_path, monkeypatch):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': {'a.bias': torch.tensor([1, torch.nan])}}, path)
    for value in ('', '0'):
        monkeypatch.setenv('INTERNIMAGE_ALLOW_NONFINITE', value)
        with pytest.raises(pickle.UnpicklingError, match=r'1 of 1 .* number: a\.bias'):
            load_checkpoint_file(path)
    load_checkpoint_file(path, allow_nonfinite=True)
    monkeypatch.setenv('INTERNIMAGE_ALLOW_NONFINITE', '1')
    load_checkpoint_file(path)
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint_file(path, allow_nonfinite=False)


def test_masks_of_attention_are_infinite(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'text.attn_mask': torch.tensor([0, -torch.inf])}, path)
    load_checkpoint_file(path)
    torch.save({'text.attn_mask': torch.tensor([0, torch.nan])}, path)
    with pytest.raises(pickle.UnpicklingError, match=r'number: text\.attn_mask'):
        load_checkpoint_file(path)


@pytest.mark.parametrize('wrapper', ['model', 'ema_state_dict', 'module', 'bare'])
def test_weights_are_judged_wherever_they_are(tmp_path, wrapper):
    path = tmp_path / 'x.pth'
    weights = {'a.weight': torch.ones(1), 'b.weight': torch.ones(2).long()}
    torch.save(weights if wrapper == 'bare' else {wrapper: weights}, path)
    with pytest.raises(
        pickle.UnpicklingError, match=r'1 of 2 .* integers.*: b\.weight'
    ):
        load_checkpoint_file(path)
    # An optimizer counts its steps, a batch norm its batches.
    weights = {
        'bn.num_batches_tracked': torch.tensor(3),
        'relative_index': torch.ones(1).int(),
    }
    torch.save(
        {'state_dict': weights, 'optimizer': {'state': {0: {'step': torch.tensor(3)}}}},
        path,
    )
    load_checkpoint_file(path)


class Stranger:
    """What some program keeps in its checkpoints."""


@pytest.mark.parametrize('wrapper', ['model', 'state_dict'])
def test_advised_copy_keeps_all_but_the_stranger(tmp_path, wrapper, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        wrapper: {'x': torch.ones(2)},
        'optimizer': {'lr': 1},
        'meta': {'epoch': 3},
    }
    hidden = {'a': [{'stranger': Stranger()}]}
    torch.save(content | {'args': hidden}, 'x.pth')
    with pytest.raises(pickle.UnpicklingError, match='Stranger') as error:
        load_checkpoint_file('x.pth')
    advice = str(error.value).split('write a clean one: ')[1]
    exec(advice, {'torch': torch})  # what a user does with it
    clean = load_checkpoint_file('clean.pth')
    assert clean.keys() == content.keys() | {'args'}
    assert clean['args'] == {'a': [{}]}
    assert clean[wrapper]['x'].tolist() == [1, 1]
