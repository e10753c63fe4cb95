# SPDX-License-Identifier: Apache-2.0
"""The set-up says in one sentence what is wrong, and does nothing twice."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tools import bootstrap
from tools.bootstrap import SetupError, UnexplainedError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A checkout with the files that the stages depend on, and no ``.venv``."""
    monkeypatch.setattr(bootstrap, 'ROOT', tmp_path)
    monkeypatch.setattr(bootstrap, 'VENV', tmp_path / '.venv')
    monkeypatch.setattr(bootstrap, 'STAMPS', tmp_path / '.venv/stamps')
    monkeypatch.setattr(bootstrap, 'LOGS', tmp_path / '.venv/logs')
    for name in (
        bootstrap.CONSTRAINTS,
        'pyproject.toml',
        'setup.py',
        'ops_dcnv3/csrc/cpu/kernel.cpp',
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.fixture
def installed(tree, monkeypatch):
    """The names of the stages carried out, with nothing really installed."""
    done = []

    def make_venv(self):
        done.append('venv')
        bootstrap.STAMPS.mkdir(parents=True, exist_ok=True)
        Path(self.python).parent.mkdir(exist_ok=True)
        Path(self.python).touch()

    monkeypatch.setattr(bootstrap.Setup, 'make_venv', make_venv)
    monkeypatch.setattr(bootstrap.Setup, 'check_machine', lambda self, todo: None)
    monkeypatch.setattr(
        bootstrap.Setup, 'install', lambda self, stage, title: done.append(stage.name)
    )
    return done


ALL = ['venv', *(stage.name for stage in bootstrap.STAGES)]


@pytest.mark.parametrize('version', [(3, 6, 9), (3, 9, 18), (3, 13, 0), (4, 0, 0)])
def test_wrong_python(version):
    with pytest.raises(SetupError, match=r'^Python 3\.10 to 3\.12 is needed .*PYTHON='):
        bootstrap.check_python(version)


@pytest.mark.parametrize('version', [(3, 10, 0), (3, 11, 7), (3, 12, 12)])
def test_right_python(version):
    bootstrap.check_python(version)


@pytest.mark.parametrize('missing', ['venv', 'ensurepip'])
def test_no_venv_module(missing):
    with pytest.raises(SetupError, match=r'apt-get install python3\.\d+-venv'):
        bootstrap.check_venv_modules(lambda name: name != missing)


def test_compiler_and_headers(tmp_path):
    environ = {'PATH': str(tmp_path), 'CXX': 'my-c++ -march=native'}
    with pytest.raises(SetupError, match=r'No C\+\+ compiler \(my-c\+\+\)'):
        bootstrap.check_compiler(environ, str(tmp_path))
    (tmp_path / 'my-c++').touch(mode=0o755)
    with pytest.raises(SetupError, match=r'headers are missing.*python3\.\d+-dev'):
        bootstrap.check_compiler(environ, str(tmp_path))
    (tmp_path / 'Python.h').touch()
    bootstrap.check_compiler(environ, str(tmp_path))


def test_disk_space_adds_up_per_disk(tmp_path, monkeypatch):
    Usage = namedtuple('Usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: Usage(0, 0, 5e9))
    bootstrap.check_disk([(tmp_path, 2), (tmp_path / 'not/there/yet', 3)])
    with pytest.raises(SetupError, match=r'has 5\.0 GB free and 5\.5 GB are needed'):
        bootstrap.check_disk([(tmp_path, 2), (tmp_path / 'not/there/yet', 3.5)])


@pytest.mark.parametrize(
    ('output', 'expected'),
    [
        ('OSError: [Errno 28] No space left on device', 'The disk is full'),
        ("nvcc error: 'cicc' died due to signal 9 (Kill signal)", 'MAX_JOBS=1'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        (
            'ImportError: libGL.so.1: cannot open shared object file: No such file',
            'library libGL.so.1 is missing',
        ),
        (
            'RuntimeError: The detected CUDA version (12.4) mismatches the version '
            'that was used to compilePyTorch (13.0). Please',
            'nvcc is of CUDA 12.4 and PyTorch of CUDA 13.0',
        ),
        ('error: incomplete-download', 'A download broke off'),
        (
            'Retrying (Retry(total=0)) after connection broken by NewConnectionError\n'
            'ERROR: No matching distribution found for torch==2.11.0',
            'The package index cannot be reached',
        ),
        (
            'ERROR: No matching distribution found for torch==2.11.0',
            'The package index has no torch==2.11.0',
        ),
        ('ERROR: Cannot install pip: conflicting dependencies.', 'PIP_CONSTRAINT'),
    ],
)
def test_failures_are_explained(output, expected):
    sentence = bootstrap.explain(['first line\n', output])
    assert expected in sentence
    assert sentence.endswith('run the same command again.')
    assert '\n' not in sentence


def test_other_failures_are_not_explained():
    assert bootstrap.explain(['error: something else']) is None


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('Collecting torch==2.11.0\n', 'looking up torch'),
        (
            '  Downloading torch-2.11.0-cp311-cp311-linux_x86_64.whl (530.6 MB)',
            'downloading torch (530.6 MB)',
        ),
        (
            '  Using cached onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl',
            "taking onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl from pip's cache",
        ),
        ("  building 'ops_dcnv3._cuda' extension", 'compiling ops_dcnv3._cuda'),
        ('  [41/78] c++ -MMD -MF x.o.d', 'compiling: 41/78 files'),
        ('Installing collected packages: torch, torchvision', 'unpacking'),
        ('  creating build/lib', None),
    ],
)
def test_what_pip_does_is_shown(line, expected):
    assert bootstrap.describe(line) == expected


@pytest.mark.parametrize(
    ('cores', 'free_gb', 'jobs'), [(2, 20, 2), (64, 6, 4), (8, 0.5, 1)]
)
def test_compile_jobs_fit_cores_and_memory(cores, free_gb, jobs):
    assert bootstrap.compile_jobs(cores, free_gb) == jobs


@pytest.mark.parametrize(
    ('gpu', 'nvcc', 'with_cuda', 'hidden', 'note'),
    [
        (False, '', False, False, ''),
        (True, '13.1', True, False, 'CUDA ops too'),
        (True, '', False, True, 'there is no nvcc'),
        (True, '12.4', False, True, 'nvcc is 12.4'),
    ],
)
def test_mmcv_gets_cuda_ops_where_they_can_be_built(gpu, nvcc, with_cuda, hidden, note):
    built, env, text = bootstrap.cuda_plan(gpu, '13.0', nvcc)
    assert built == with_cuda
    assert ('CUDA_VISIBLE_DEVICES' in env) == hidden
    assert note in text


def test_second_run_does_nothing(installed, capsys):
    bootstrap.Setup().run()
    assert installed == ALL
    capsys.readouterr()
    installed.clear()
    bootstrap.Setup().run()
    assert installed == []
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('changed', 'again'),
    [
        ('ops_dcnv3/csrc/cpu/kernel.cpp', ['internimage']),
        ('pyproject.toml', ['tools', 'internimage']),
        (bootstrap.CONSTRAINTS, ALL[1:]),
        ('.venv/stamps/mmcv', ALL[3:]),
        ('.venv/bin/python', ALL),
    ],
)
def test_a_change_repeats_what_depends_on_it(tree, installed, changed, again):
    bootstrap.Setup().run()
    installed.clear()
    path = tree / changed
    if path.is_relative_to(bootstrap.VENV):
        path.unlink()
    else:
        path.write_text('changed')
    bootstrap.Setup().run()
    assert installed == again


def test_settings_of_the_build_repeat_it(installed, monkeypatch):
    bootstrap.Setup().run()
    installed.clear()
    monkeypatch.setenv('USE_CUDA', '0' if os.environ.get('USE_CUDA') != '0' else '1')
    bootstrap.Setup().run()
    assert installed == ['internimage']


def test_an_environment_of_the_user_is_left_alone(tree):
    (tree / '.venv').mkdir()
    with pytest.raises(SetupError, match='was not made by this script'):
        bootstrap.Setup().make_venv()


def test_an_unknown_failure_shows_log_and_last_lines(tree):
    log = tree / 'stage.log'
    with pytest.raises(UnexplainedError, match='boom') as error:
        bootstrap.run(['sh', '-c', 'echo boom; exit 3'], os.environ, log)
    assert str(log) in str(error.value)
    assert 'boom' in log.read_text()


def test_an_interrupt_ends_the_command(tree):
    def interrupt(activity):
        if activity.startswith('compiling'):
            raise KeyboardInterrupt

    command = ['sh', '-c', 'echo $$ > pid; echo "[1/2] c++"; sleep 100']
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        bootstrap.run(command, os.environ, tree / 'stage.log', interrupt)
    assert time.monotonic() - begin < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int((tree / 'pid').read_text()), 0)


def test_without_a_compiler_the_script_ends_with_one_sentence(tree):
    script = tree / 'tools/bootstrap.py'
    script.parent.mkdir()
    shutil.copy(bootstrap.__file__, script)
    result = subprocess.run(
        [sys.executable, str(script)],
        env={'PATH': str(tree)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stdout == ''
    assert result.stderr.strip().startswith('No C++ compiler (c++) was found')
    assert result.stderr.strip().count('\n') == 0
    assert not (tree / '.venv').exists()


@pytest.mark.slow
def test_an_unreachable_index_ends_with_one_sentence(tree, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith('PIP_')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_RETRIES', '1')
    monkeypatch.setattr(bootstrap, 'check_disk', lambda needs: None)
    (tree / bootstrap.CONSTRAINTS).write_text('pip==0.0.1\n')
    assert bootstrap.main() == 1
    error = capsys.readouterr().err
    assert error.strip().startswith('The package index cannot be reached')
    assert error.strip().count('\n') == 0


def test_programs_get_an_environment_of_texts_alone(tree, monkeypatch):
    """Pip neither asks nor looks for a newer pip, and nobody's PYTHONPATH is heeded."""
    monkeypatch.setenv('PYTHONPATH', 'elsewhere')
    env = bootstrap.Setup().env
    assert all(isinstance(value, str) for value in env.values())
    assert (env['PIP_DISABLE_PIP_VERSION_CHECK'], env['PIP_NO_INPUT']) == ('1', '1')
    assert (env['PIP_USER'], env['PYTHONUNBUFFERED']) == ('0', '1')
    assert env['PATH'].split(os.pathsep)[0] == str(bootstrap.VENV / 'bin')
    assert 'PYTHONPATH' not in env


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(bootstrap.time, 'monotonic', lambda: clock[0])
    console = bootstrap.Console()
    for seconds in (9, 2, 9, 2):
        clock[0] += seconds
        console.show(f'after {clock[0]:.0f}')
    printed = capsys.readouterr().out.split()
    assert printed == ['after', '111', 'after', '122']


class Commands:
    """In place of ``bootstrap.run``: what would run, and what it would print."""

    def __init__(self, failures: int, gpu: bool = False, nvcc: str = '') -> None:
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.failures = failures
        self.gpu = gpu
        self.nvcc = nvcc

    def __call__(self, command, env, log, show=None):
        assert isinstance(log, Path)
        self.commands.append(command)
        self.environments.append(dict(env))
        if command[-1] == '--version':
            return ['nvcc', 'Cuda compilation tools, release ' + self.nvcc + ',']
        if 'CUDA_HOME' in command[-1]:
            home = str(bootstrap.ROOT / 'cuda')
            return ['warning', json.dumps([self.gpu, '12.4', home])]
        if command[1] == '-c' and self.failures:
            self.failures -= 1
            raise UnexplainedError('it does not fit')
        return ['Using cached onedl_mmcv-2.whl'] if 'pip' in command else []

    def installs(self) -> list[list[str]]:
        return [command[4:] for command in self.commands if 'pip' in command]


@pytest.fixture
def stages(tree):
    bootstrap.STAMPS.mkdir(parents=True)
    bootstrap.LOGS.mkdir()
    nvcc = tree / 'cuda' / 'bin' / 'nvcc'
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    return {stage.name: stage for stage in bootstrap.STAGES}


def test_each_stage_says_what_it_is(stages):
    assert list(stages) == ALL[1:]
    for stage in stages.values():
        assert stage.summary.strip()
        assert all(isinstance(name, str) for name in stage.pip)


@pytest.mark.parametrize(
    ('gpu', 'nvcc', 'with_cuda'),
    [(False, '12.4', False), (True, '12.4', True), (True, '11.8', False)],
)
def test_mmcv_is_compiled_anew_where_the_cached_one_does_not_fit(
    stages, gpu, nvcc, with_cuda, monkeypatch, capsys
):
    commands = Commands(failures=1, gpu=gpu, nvcc=nvcc)
    monkeypatch.setattr(bootstrap, 'run', commands)
    bootstrap.Setup().install(stages['mmcv'], 'mmcv')
    first, again = commands.installs()
    assert first[0] == again[0] == '--constraint'
    assert 'onedl-mmcv' in first
    assert '--no-cache-dir' not in first
    assert {'--no-cache-dir', '--force-reinstall', '--no-deps'} <= set(again)
    said = capsys.readouterr().out
    assert 'the installed one does not fit, compiling' in said
    assert "done in 0:00, from pip's cache" in said
    (env,) = (
        env
        for env, command in zip(commands.environments, commands.commands, strict=True)
        if 'pip' in command and '--no-cache-dir' in command
    )
    assert env['CFLAGS'] == '-O2 -g0'
    assert int(env['MAX_JOBS']) >= 1
    # mmcv must not find a GPU that it cannot be compiled for.
    is_hidden = gpu and not with_cuda
    assert (env.get('CUDA_VISIBLE_DEVICES') == '') is is_hidden
    checks = [c[2] for c in commands.commands if c[1] == '-c' and 'mmcv' in c[2]]
    assert len(checks) == 2
    assert all(('get_compiling_cuda_version' in check) is with_cuda for check in checks)


def test_another_stage_that_does_not_work_is_an_error(stages, monkeypatch):
    commands = Commands(failures=1)
    monkeypatch.setattr(bootstrap, 'run', commands)
    with pytest.raises(UnexplainedError, match='does not fit'):
        bootstrap.Setup().install(stages['torch'], 'torch')
    assert len(commands.installs()) == 1
