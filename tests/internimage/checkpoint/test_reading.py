# SPDX-License-Identifier: Apache-2.0
import io
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
    return Runner(
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
        **kwargs,
    )


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
    state = [HistoryBuffer([1.5, 2], [1, 1]), np.float64(3), np.array([True])]
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    assert b'cnumpy._core.multiarray\n' in content
    old = content.replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n')
    history, scalar, array = load_checkpoint_file(io.BytesIO(old))
    assert history.current() == 2
    assert scalar == 3
    assert array.tolist() == [True]


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
    with pytest.raises(pickle.UnpicklingError, match=r'page.pth: expected a PyTorch'):
        load_checkpoint_file(page)
    cut = tmp_path / 'cut.pth'
    torch.save({'x': torch.zeros(1000)}, cut)
    cut.write_bytes(cut.read_bytes()[:-500])
    with pytest.raises(RuntimeError, match=r'cut.pth: could not be read'):
        load_checkpoint_file(cut)
    empty = tmp_path / 'empty.pth'
    empty.touch()
    with pytest.raises(RuntimeError, match=r'empty.pth: could not be read'):
        load_checkpoint_file(empty)
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
    path.touch()
    with pytest.raises(ImportError, match=r'x.safetensors: install safetensors'):
        load_checkpoint_file(path)
