# SPDX-License-Identifier: Apache-2.0
"""The options of tools/train.py and tools/test.py, by the config they lead to."""

import errno
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from internimage.engine import NonFiniteError, SaveError
from tests.internimage.engine.test_resuming import write_checkpoint
from tests.paths import TOOLS

CONFIG = """
default_scope = '{scope}'
model = dict(type='Model')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0))
auto_scale_lr = dict(enable=False, base_batch_size=16)
test_dataloader = dict(dataset=dict(pipeline=['plain']))
test_evaluator = dict(type='Metric')
default_hooks = dict(visualization=dict(type='Hook'))
visualizer = dict(type='Visualizer')
data_check = False  # there is no data
"""
TTA = """
tta_model = dict(type='TTAModel')
tta_pipeline = ['flipped']
"""

Run = Callable[..., Config]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs a tool and returns the config it would use."""
    runners = []
    monkeypatch.setattr(
        Runner, 'from_cfg', lambda config: runners.append(config) or Mock()
    )
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setenv('LOCAL_RANK', '')  # so that it is as before after the test
    monkeypatch.delenv('LOCAL_RANK')

    def run(
        tool: str, *arguments: str, scope: str = 'mmdet', extra: str = ''
    ) -> Config:
        path = tmp_path / 'small_model.py'
        path.write_text(CONFIG.format(scope=scope) + extra)
        runpy.run_path(str(TOOLS / f'{tool}.py'))['main']([str(path), *arguments])
        return runners.pop()

    return run


def test_work_dir_is_of_option_then_config_then_name(run: Run):
    set_in_config = "work_dir = 'mine'"
    assert run('train').work_dir == 'work_dirs/small_model'
    assert run('train', extra=set_in_config).work_dir == 'mine'
    assert run('train', '--work-dir', 'x', extra=set_in_config).work_dir == 'x'


def test_config_options_and_launcher(run: Run):
    options = ['model.depth=3', 'model.arch._delete_=True', 'model.arch.channels=8']
    config = run(
        'train',
        *['--launcher', 'pytorch', '--local-rank=1', '--cfg-options', *options],
        extra="model['arch'] = 'tiny'",
    )
    assert config.model == {'type': 'Model', 'depth': 3, 'arch': {'channels': 8}}
    assert config.launcher == 'pytorch'
    assert os.environ['LOCAL_RANK'] == '1'


def test_rank_of_torchrun_wins(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('LOCAL_RANK', '3')
    run('train')
    assert os.environ['LOCAL_RANK'] == '3'


def test_amp(run: Run):
    assert run('train').optim_wrapper.type == 'OptimWrapper'
    wrapper = run('train', '--amp').optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert wrapper.optimizer.lr == 1.0


def test_auto_scale_lr(run: Run, capsys: pytest.CaptureFixture):
    assert not run('train').auto_scale_lr.enable
    assert run('train', '--auto-scale-lr').auto_scale_lr.enable
    with pytest.raises(SystemExit):
        run('train', '--auto-scale-lr', extra='auto_scale_lr = dict()')
    assert 'base_batch_size' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'resume', 'load_from'),
    [
        ([], None, 'start.pth'),
        (['--resume'], True, 'work/epoch_3.pth'),
        (['--resume', 'a.pth'], True, 'a.pth'),
    ],
)
def test_resume(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    resume: bool | None,
    load_from: str | None,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'work').mkdir()
    write_checkpoint(tmp_path / 'work' / 'epoch_3.pth', 3)
    (tmp_path / 'work' / 'last_checkpoint').write_text('work/epoch_3.pth')
    config = run(
        'train', *arguments, '--work-dir', 'work', extra="load_from = 'start.pth'"
    )
    assert config.get('resume') is resume
    assert config.get('load_from') == load_from


def test_resume_looks_where_the_hook_saves(run: Run, tmp_path: Path):
    (tmp_path / 'out' / 'work').mkdir(parents=True)
    write_checkpoint(tmp_path / 'out' / 'work' / 'epoch_3.pth', 3)
    out_dir = f'default_hooks.checkpoint.out_dir={tmp_path / "out"}'
    options = ['--work-dir', str(tmp_path / 'work'), '--cfg-options', out_dir]
    config = run('train', '--resume', *options)
    assert config.load_from == str(tmp_path / 'out' / 'work' / 'epoch_3.pth')


def test_resume_stops_where_nothing_loads(run: Run, tmp_path: Path):
    (tmp_path / 'epoch_3.pth').write_bytes(b'damaged')
    with pytest.raises(SystemExit) as stopped:
        run('train', '--resume', '--work-dir', str(tmp_path))
    assert f'train: {tmp_path}: no checkpoint here can be resumed' in stopped.value.code


@pytest.mark.parametrize(
    ('error', 'says'),
    [
        (NonFiniteError('iteration 5: loss is nan'), 'iteration 5: loss is nan'),
        (SaveError(errno.ENOSPC, 'a.pth: not saved'), 'a.pth: not saved'),
        (
            OSError(errno.ENOSPC, 'No space left on device', 'a.json'),
            "[Errno 28] No space left on device: 'a.json': make room and go on with "
            '--resume',
        ),
    ],
)
def test_an_end_of_training_is_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
):
    runner = Mock(**{'train.side_effect': error})
    monkeypatch.setattr(Runner, 'from_cfg', lambda _: runner)
    with pytest.raises(SystemExit) as stopped:
        run('train')
    assert stopped.value.code == f'train: {says}'
    runner.train.side_effect = FileNotFoundError(2, 'of a data set')
    with pytest.raises(FileNotFoundError):
        run('train')


def test_predictions_that_cannot_be_saved_are_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    error = SaveError(errno.ENOSPC, 'a.pkl: not saved')
    runner = Mock(**{'test.side_effect': error})
    monkeypatch.setattr(Runner, 'from_cfg', lambda _: runner)
    with pytest.raises(SystemExit) as stopped:
        run('test', 'a.pth', '--out', 'a.pkl')
    assert stopped.value.code == 'test: a.pkl: not saved'


def test_any_config_gets_our_hooks(run: Run):
    ours = {
        'random_streams': {'type': 'RandomStreamHook'},
        'finite_loss': {'type': 'FiniteLossHook'},
    }
    config = run('train')
    hooks = config.default_hooks
    whole = {'type': 'WholeCheckpointHook', 'interval': 1}
    assert hooks == {'visualization': {'type': 'Hook'}, 'checkpoint': whole, **ours}
    assert 'internimage' in config.custom_imports.imports
    extra = (
        "default_hooks['checkpoint'] = dict(type='CheckpointHook', max_keep_ckpts=2)\n"
        "default_hooks['random_streams'] = None\n"
        "custom_imports = dict(imports='internimage.architecture')"
    )
    options = ['default_hooks.finite_loss.max_skips=3']
    config = run('train', '--cfg-options', *options, extra=extra)
    hooks = config.default_hooks
    assert hooks.checkpoint == {'type': 'WholeCheckpointHook', 'max_keep_ckpts': 2}
    assert hooks.finite_loss == {'type': 'FiniteLossHook', 'max_skips': 3}
    assert 'random_streams' not in hooks
    assert config.custom_imports.imports == 'internimage.architecture'
    extra = "default_hooks['checkpoint'] = dict(type='Mine')"
    assert run('train', extra=extra).default_hooks.checkpoint.type == 'Mine'
    extra = "default_hooks['checkpoint'] = None"
    assert run('train', extra=extra).default_hooks.checkpoint is None


def test_resume_without_a_checkpoint_starts_as_without_the_option(
    run: Run, tmp_path: Path
):
    arguments = ['--resume', '--work-dir', str(tmp_path / 'work')]
    config = run('train', *arguments, extra="load_from = 'start.pth'")
    assert not config.resume
    assert config.load_from == 'start.pth'


@pytest.mark.parametrize(
    ('scope', 'metric'),
    [
        ('mmdet', 'DumpDetResults'),
        ('mmpretrain', 'DumpResults'),
        ('mmseg', 'DumpResults'),
    ],
)
def test_out(run: Run, scope: str, metric: str):
    config = run('test', 'a.pth', '--out', 'a.pkl', scope=scope)
    assert config.load_from == 'a.pth'
    assert config.test_evaluator == [
        {'type': 'Metric'},
        {'type': metric, 'out_file_path': 'a.pkl'},
    ]


@pytest.mark.parametrize(
    ('scope', 'expected'),
    [
        ('mmdet', {'draw': True, 'test_out_dir': 'x'}),
        ('mmpretrain', {'enable': True, 'out_dir': 'x'}),
        ('mmseg', {'draw': True}),
    ],
)
def test_show_dir(run: Run, scope: str, expected: dict):
    config = run('test', 'a.pth', '--show-dir', 'x', scope=scope)
    common = {'type': 'Hook', 'show': False, 'wait_time': 2}
    assert config.default_hooks.visualization == common | expected
    assert config.visualizer.get('save_dir') == ('x' if scope == 'mmseg' else None)


def test_tta(run: Run, capsys: pytest.CaptureFixture):
    config = run('test', 'a.pth', '--tta', extra=TTA)
    assert config.model == {'type': 'TTAModel', 'module': {'type': 'Model'}}
    assert config.test_dataloader.dataset.pipeline == ['flipped']
    with pytest.raises(SystemExit):
        run('test', 'a.pth', '--tta')
    assert 'tta_model' in capsys.readouterr().err


@pytest.mark.parametrize('tool', ['train', 'test'])
@pytest.mark.parametrize('where', ['itself', 'base'])
def test_a_byte_order_mark_is_named(run: Run, tmp_path: Path, tool: str, where: str):
    path, base = tmp_path / 'marked.py', tmp_path / 'base.py'
    encodings = {path: 'utf-8', base: 'utf-8'}
    encodings[path if where == 'itself' else base] = 'utf-8-sig'
    base.write_text("default_scope = 'mmdet'\n", encodings[base])
    path.write_text("_base_ = './base.py'\n", encodings[path])
    main = runpy.run_path(str(TOOLS / f'{tool}.py'))['main']
    with pytest.raises(SystemExit, match=r'marked\.py.*starts with a byte-order mark'):
        main([str(path), *(['x.pth'] if tool == 'test' else [])])
