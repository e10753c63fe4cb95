#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make `.venv`: the pinned stack and this project, in stages that resume.

`make setup` runs this with the Python that `.venv` shall have. It needs the standard
library only, and no syntax newer than Python 3.6, so that an old Python can still say
what is wrong.

Each finished stage leaves a stamp, a digest of all it was made from, and is skipped
while that stamp fits. So an interrupted run goes on where it stopped, and a run with
nothing to do ends at once. A failure is one sentence that says what to do.
"""

import ctypes
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
STAMPS = VENV / 'stamps'
LOGS = VENV / 'logs'
CONSTRAINTS = 'requirements/constraints.txt'
PYTHONS = ((3, 10), (3, 12))  # oldest and newest that the pins are tested with

# GB that a first installation takes, each measured and rounded up.
VENV_GB, TEMPORARY_GB, CACHE_GB = 6.5, 3, 3
# GB of memory that one compiler process of mmcv takes.
COMPILER_GB = 1.5


class SetupError(Exception):
    """A failure; its text is the sentence that the user reads."""


class UnexplainedError(SetupError):
    """A failure that no entry of `FAILURES` explains."""


class Stage(NamedTuple):
    """One call of `pip install`."""

    name: str
    summary: str
    pip: Tuple[str, ...]
    inputs: Tuple[str, ...] = ()  # globs of the files it depends on
    settings: Tuple[str, ...] = ()  # environment variables it depends on
    check: str = ''  # Python code that must run afterwards


STAGES = (
    Stage('base', 'pip and build tools', ('pip', 'setuptools', 'wheel', 'ninja')),
    Stage(
        'torch',
        'PyTorch, about 3 GB to download',
        ('torch', 'torchvision', 'numpy'),
        check='import torch, torchvision',
    ),
    Stage(
        'mmcv',
        "mmcv, compiled in about 7 minutes on 2 cores unless pip's cache has it",
        ('--verbose', '--no-build-isolation', 'onedl-mmcv'),
        check='import mmcv.ops',
    ),
    Stage(
        'openmmlab',
        'mim, mmdet, mmseg, mmpretrain',
        (
            '--no-build-isolation',
            'onedl-mim',
            'onedl-mmdetection',
            'onedl-mmsegmentation',
            'onedl-mmpretrain',
        ),
        check='import mmdet, mmseg, mmpretrain',
    ),
    Stage('tools', 'developer tools', ('--group', 'dev'), inputs=('pyproject.toml',)),
    Stage(
        'internimage',
        'this project, its operator compiled',
        ('--verbose', '--no-build-isolation', '--no-deps', '--editable', '.'),
        inputs=('pyproject.toml', 'setup.py', 'ops_dcnv3/csrc/**/*'),
        settings=('USE_CUDA', 'CUDA_HOME', 'TORCH_CUDA_ARCH_LIST', 'CXX', 'CFLAGS'),
        check='import ops_dcnv3, internimage',
    ),
)

NO_SPACE = (
    'The disk is full: make room (a first installation takes about '
    f'{VENV_GB + TEMPORARY_GB + CACHE_GB:.0f} GB), or point TMPDIR and PIP_CACHE_DIR '
    'to a larger disk, then run the same command again.'
)
NO_MEMORY = (
    'The machine ran out of memory: close other programs, set MAX_JOBS=1, and run the '
    'same command again.'
)

# What pip or a compiler prints when it fails, and the sentence for it; the first wins.
FAILURES = (
    (r'No space left on device|\[Errno 28\]', NO_SPACE),
    (
        r'Killed signal terminated program|signal 9|MemoryError|std::bad_alloc',
        NO_MEMORY,
    ),
    (
        r'detected CUDA version \(([\d.]+)\) mismatches the version that was used to '
        r'compile\s*PyTorch \(([\d.]+)\)',
        'nvcc is of CUDA {0} and PyTorch of CUDA {1}: set CUDA_HOME to a CUDA {1} '
        'toolkit, or USE_CUDA=0 to do without CUDA kernels, then run the same command '
        'again.',
    ),
    (
        r'(lib[\w.+-]+): cannot open shared object file',
        'The system library {0} is missing: install it (on Debian and Ubuntu: apt-get '
        'install libgl1 libglib2.0-0), then run the same command again.',
    ),
    (
        r'incomplete-download|IncompleteRead',  # pip says so for a full disk too
        f'A download broke off: check the network, and that TMPDIR has {TEMPORARY_GB} '
        'GB free, then run the same command again.',
    ),
    (
        r'NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|'
        r'Max retries exceeded|Temporary failure in name resolution|'
        r'Connection (?:refused|reset|aborted|broken)|Read timed out',
        'The package index cannot be reached: check the network and proxy, and what '
        '`pip config list` says, then run the same command again.',
    ),
    (
        r'No matching distribution found for (\S+)',
        'The package index has no {0} for this Python and machine: use an index that '
        'has it (`pip config list` shows yours), then run the same command again.',
    ),
    (
        r'conflicting dependencies',
        f'pip cannot bring {CONSTRAINTS} together with constraints of yours: unset '
        'PIP_CONSTRAINT and what `pip config list` shows of it, then run the same '
        'command again.',
    ),
)

# What pip prints while it works, and what to show for it.
ACTIVITIES = (
    (r'Collecting ([\w.-]+)', 'looking up {}'),
    (r'Processing (?:\S*/)?(\S+?)-\d', 'reading {}'),
    (r'Downloading (?:\S*/)?(\S+?)-\d\S* \((.+)\)', 'downloading {} ({})'),
    (r'Using cached (?:\S*/)?(\S+\.whl)', "taking {} from pip's cache"),
    (r'Building wheel for (\S+)', 'building {}'),
    (r"building '([\w.]+)' extension", 'compiling {}'),
    (r'\[(\d+/\d+)\] ', 'compiling: {} files'),
    (r'Installing collected packages', 'unpacking'),
    (r'WARNING: Retrying', 'no answer from the package index, trying again'),
)


def explain(output: List[str]) -> Optional[str]:
    """Find the sentence for a failed command, None where its output fits no entry."""
    for pattern, sentence in FAILURES:
        match = re.search(pattern, ''.join(output))
        if match:
            return sentence.format(*match.groups())
    return None


def describe(line: str) -> Optional[str]:
    """Turn a line of pip's output into what is shown, None where it is no news."""
    for pattern, text in ACTIVITIES:
        match = re.match(pattern, line.strip())
        if match:
            return text.format(*match.groups())
    return None


def check_python(version: Tuple[int, ...]) -> None:
    """Refuse a Python that the pins are not tested with."""
    if not PYTHONS[0] <= tuple(version[:2]) <= PYTHONS[1]:
        oldest, newest = ('{}.{}'.format(*pair) for pair in PYTHONS)
        raise SetupError(
            f'Python {oldest} to {newest} is needed and this is Python '
            f'{version[0]}.{version[1]}: name one that you have, for example '
            f'`make setup PYTHON=python{newest}`.'
        )


def check_venv_modules(find: Callable = find_spec) -> None:
    """Refuse a Python that cannot make virtual environments (Debian splits it)."""
    if not (find('venv') and find('ensurepip')):
        version = '{}.{}'.format(*sys.version_info)
        raise SetupError(
            'This Python cannot make virtual environments: install its venv module '
            f'(on Debian and Ubuntu: apt-get install python{version}-venv), then run '
            'the same command again.'
        )


def check_compiler(environ: Mapping[str, str], include: str) -> None:
    """Refuse to start where mmcv could not be compiled."""
    compiler = environ.get('CXX', 'c++').split()[0]
    if not shutil.which(compiler, path=environ.get('PATH')):
        raise SetupError(
            f'No C++ compiler ({compiler}) was found: install one (on Debian and '
            'Ubuntu: apt-get install g++), then run the same command again.'
        )
    if not Path(include, 'Python.h').exists():
        version = '{}.{}'.format(*sys.version_info)
        raise SetupError(
            "Python's C headers are missing: install them (on Debian and Ubuntu: "
            f'apt-get install python{version}-dev), then run the same command again.'
        )


def check_disk(needs: List[Tuple[Path, float]]) -> None:
    """Refuse to start a first installation that cannot fit; ``needs`` are in GB."""
    places = {}  # type: Dict[int, Tuple[Path, float]]
    for path, need in needs:
        while not path.exists():
            path = path.parent
        device = path.stat().st_dev
        first, sum_so_far = places.get(device, (path, 0.0))
        places[device] = first, sum_so_far + need
    for path, need in places.values():
        free = shutil.disk_usage(str(path)).free / 1e9
        if free < need:
            raise SetupError(
                f'The disk of {path} has {free:.1f} GB free and {need:.1f} GB are '
                'needed: make room, or point TMPDIR and PIP_CACHE_DIR to a larger '
                'disk, then run the same command again.'
            )


def compile_jobs(cores: int, free_gb: float) -> int:
    """Compile with as many processes as there are cores and memory for."""
    return max(1, min(cores, int(free_gb / COMPILER_GB)))


def free_memory_gb() -> float:
    """Read how much memory may be used, the container's limit included."""
    free = []
    try:
        meminfo = Path('/proc/meminfo').read_text()
        free.append(int(re.search(r'MemAvailable:\s+(\d+)', meminfo).group(1)) * 1024)
        free.append(int(Path('/sys/fs/cgroup/memory.max').read_text()))
    except (OSError, ValueError, AttributeError):
        pass  # not Linux, or no limit
    return min(free) / 1e9 if free else 4.0


def cuda_plan(
    gpu: bool, torch_cuda: str, nvcc_cuda: str
) -> Tuple[bool, Dict[str, str], str]:
    """Decide whether mmcv gets CUDA ops, from versions such as '13.0' ('' for none).

    mmcv asks for a compiler as soon as it sees a GPU. Where nvcc is absent, or torch
    would refuse it for its major version, the GPU is hidden from that build.

    Returns:
        Whether CUDA ops are built, the environment for it, and a note for the user.
    """
    if not gpu:
        return False, {}, ''
    if nvcc_cuda.split('.')[0] == torch_cuda.split('.')[0]:
        return True, {}, 'a GPU and nvcc are here: mmcv gets its CUDA ops too'
    found = f'nvcc is {nvcc_cuda}' if nvcc_cuda else 'there is no nvcc'
    return (
        False,
        {'CUDA_VISIBLE_DEVICES': ''},
        f'{found}: mmcv gets CPU ops only; for its CUDA ops install CUDA {torch_cuda}, '
        'delete .venv and run again',
    )


class Console:
    """Permanent lines, and below them one line that changes.

    Where the output is no terminal, the changing line is printed now and then.
    """

    QUIET_S = 10  # least time between two lines of a log

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.printed_at = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        start = '\r\x1b[K' if self.is_terminal else ''
        print(f'{start}{text}', flush=True)
        self.printed_at = time.monotonic()

    def show(self, text: str) -> None:
        """Change the line that shows what is going on."""
        if self.is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f'\r\x1b[K{text[:width]}', end='', flush=True)
        elif time.monotonic() - self.printed_at >= self.QUIET_S:
            self.say(text)


def clock(seconds: float) -> str:
    """Write a duration as minutes and seconds."""
    return '{}:{:02d}'.format(*divmod(int(seconds), 60))


def run(
    command: List[str],
    env: Mapping[str, str],
    log: Path,
    show: Callable[[str], None] = lambda activity: None,
) -> List[str]:
    """Run a command, its output appended to ``log``; ``show`` what it is doing.

    Returns:
        The lines of its output.

    Raises:
        SetupError: The command failed; the message says what to do.
    """
    process = subprocess.Popen(
        command,
        cwd=str(ROOT),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors='replace',
        start_new_session=True,  # so that an interrupt reaches it once, from here
    )
    lines = queue.Queue()  # type: queue.Queue[Optional[str]]

    def read() -> None:
        with process.stdout as stream:
            for line in stream:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    output, activity, percent = [], 'starting', ''
    try:
        with log.open('a', errors='replace') as file:
            file.write(f'$ {" ".join(command)}\n')
            while True:
                show(activity + percent)
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    continue
                if line is None:
                    break
                progress = re.match(r'Progress (\d+) of ([1-9]\d*)', line)
                if progress:
                    done, total = map(int, progress.groups())
                    percent = f' {done / total:.0%}'
                    continue
                file.write(line)
                file.flush()
                output.append(line)
                news = describe(line)
                if news:
                    activity, percent = news, ''
        status = process.wait()
    except BaseException:
        stop(process)
        raise
    if status == 0:
        return output
    sentence = NO_MEMORY if status == -signal.SIGKILL else explain(output[-60:])
    if sentence:
        raise SetupError(sentence)
    raise UnexplainedError(
        f'It failed for a reason that is in {log}: mend it, then run the same command '
        'again. The last lines are:\n'
        + ''.join(f'  {line[:300].rstrip()}\n' for line in output[-15:])
    )


def stop(process: 'subprocess.Popen[str]') -> None:
    """End a command and all that it started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


class Setup:
    """The stages, brought up to date one after the other."""

    def __init__(self) -> None:
        self.console = Console()
        self.python = str(VENV / 'bin' / 'python')
        self.env = dict(
            os.environ,
            PATH=f'{VENV / "bin"}{os.pathsep}{os.environ.get("PATH", "")}',
            VIRTUAL_ENV=str(VENV),
            PYTHONUNBUFFERED='1',
            PIP_DISABLE_PIP_VERSION_CHECK='1',
            PIP_NO_INPUT='1',
            PIP_USER='0',
        )
        for name in ('PYTHONPATH', 'PYTHONHOME'):
            self.env.pop(name, None)

    def run(self) -> None:
        """Install what is missing or out of date."""
        digest = f'Python {sys.version_info[:2]} at {VENV}'
        todo = {}  # stage -> digest
        if not (Path(self.python).exists() and fits('venv', digest)):
            todo['venv'] = digest
        for stage in STAGES:
            digest = stage_digest(digest, stage)
            if todo or not fits(stage.name, digest):
                todo[stage.name] = digest
        if not todo:
            return

        begin = time.monotonic()
        self.check_machine(todo)
        version = '.'.join(map(str, sys.version_info[:3]))
        self.console.say(
            f'Setting up .venv with Python {version}. An interrupted run goes on '
            'where it stopped.'
        )
        if 'venv' in todo:
            self.make_venv()
            stamp('venv', todo['venv'])
        LOGS.mkdir(exist_ok=True)
        for number, stage in enumerate(STAGES, 1):
            if stage.name in todo:
                self.install(stage, f'[{number}/{len(STAGES)}] {stage.name}')
                stamp(stage.name, todo[stage.name])
        self.console.say(f'.venv is ready ({clock(time.monotonic() - begin)}).')

    def check_machine(self, todo: Mapping[str, str]) -> None:
        """Refuse at once what would fail later."""
        if 'venv' in todo:
            check_venv_modules()
        if 'mmcv' in todo:
            check_compiler(self.env, sysconfig.get_path('include'))
            if sys.platform == 'linux':
                ctypes.CDLL('libGL.so.1')  # mmcv imports OpenCV, which loads it
        if 'venv' in todo:
            home_cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
            cache = os.environ.get('PIP_CACHE_DIR') or Path(home_cache, 'pip')
            check_disk(
                [
                    (VENV, VENV_GB),
                    (Path(tempfile.gettempdir()), TEMPORARY_GB),
                    (Path(cache), CACHE_GB),
                ]
            )

    def make_venv(self) -> None:
        """Make an empty environment in the place of one that this script made."""
        if VENV.exists() and not STAMPS.exists():
            raise SetupError(
                f'{VENV} was not made by this script: move it away or delete it, then '
                'run the same command again.'
            )
        STAMPS.mkdir(parents=True, exist_ok=True)
        for path in VENV.iterdir():
            if path == STAMPS:
                for old in STAMPS.iterdir():
                    old.unlink()
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(str(path))
            else:
                path.unlink()
        LOGS.mkdir()
        # Not sys.executable: that is in .venv itself where the user has activated it.
        python = getattr(sys, '_base_executable', sys.executable)
        run([python, '-m', 'venv', str(VENV)], self.env, LOGS / 'venv.log')

    def install(self, stage: Stage, title: str) -> None:
        """Carry out one stage."""
        begin = time.monotonic()
        self.console.say(f'{title}: {stage.summary}')
        log = LOGS / f'{stage.name}.log'
        for old in (log, STAMPS / stage.name):
            if old.exists():
                old.unlink()
        env, check = self.env, stage.check
        if stage.name == 'mmcv':
            env, check = self.mmcv_settings(log)

        def show(activity: str) -> None:
            spent = clock(time.monotonic() - begin)
            self.console.show(f'{title}: {activity} ({spent})')

        pip = [self.python, '-m', 'pip', 'install', '--constraint', CONSTRAINTS]
        if stage.name != 'base':  # the pip that comes with an old Python lacks it
            pip.append('--progress-bar=raw')
        output = run(pip + list(stage.pip), env, log, show)
        if check:
            test = [self.python, '-c', check]
            try:
                run(test, self.env, log)
            except UnexplainedError:
                if stage.name != 'mmcv':
                    raise
                # pip's cache tells its wheels apart by version, but not by the torch or
                # the CUDA that they were compiled with.
                self.console.say(f'{title}: the installed one does not fit, compiling')
                again = ['--no-cache-dir', '--force-reinstall', '--no-deps']
                output = run(pip + again + list(stage.pip), env, log, show)
                run(test, self.env, log)
        cached = [line for line in output if 'Using cached onedl_mmcv' in line]
        how = ", from pip's cache" if cached else ''
        self.console.say(f'{title}: done in {clock(time.monotonic() - begin)}{how}')

    def mmcv_settings(self, log: Path) -> Tuple[Dict[str, str], str]:
        """Choose what mmcv is compiled with, and what must work afterwards."""
        code = (
            'import json, torch; from torch.utils.cpp_extension import CUDA_HOME; '
            'print(json.dumps([torch.cuda.is_available(), torch.version.cuda or "", '
            'CUDA_HOME or ""]))'
        )
        gpu, torch_cuda, cuda_home = json.loads(
            run([self.python, '-c', code], self.env, log)[-1]
        )
        nvcc = Path(cuda_home, 'bin', 'nvcc')
        nvcc_cuda = ''
        if gpu and cuda_home and nvcc.exists():
            text = ''.join(run([str(nvcc), '--version'], self.env, log))
            nvcc_cuda = re.search(r'release ([\d.]+)', text).group(1)
        with_cuda, extra, note = cuda_plan(gpu, torch_cuda, nvcc_cuda)
        if note:
            self.console.say(f'  {note}')
        cores = len(os.sched_getaffinity(0)) if sys.platform == 'linux' else 4
        env = {
            'CFLAGS': '-O2 -g0',  # half the time of the default, which adds -g
            'MAX_JOBS': str(compile_jobs(cores, free_memory_gb())),
        }
        env.update(self.env)
        env.update(extra)
        check = 'import mmcv.ops'
        if with_cuda:
            check += '; assert mmcv.ops.get_compiling_cuda_version() != "not available"'
        return env, check


def stage_digest(previous: str, stage: Stage) -> str:
    """Digest all that a stage is made from, beginning with the stage before it."""
    digest = hashlib.sha256()
    digest.update(f'{previous} {stage}'.encode())
    for pattern in (CONSTRAINTS, *stage.inputs):
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                digest.update(f'{path.relative_to(ROOT)} '.encode())
                digest.update(path.read_bytes())
    for name in stage.settings:
        digest.update(f'{name}={os.environ.get(name, "")} '.encode())
    return digest.hexdigest()


def fits(name: str, digest: str) -> bool:
    """Tell whether a stage was finished with this digest."""
    path = STAMPS / name
    return path.exists() and path.read_text() == digest


def stamp(name: str, digest: str) -> None:
    """Note that a stage is finished."""
    (STAMPS / name).write_text(digest)


def main() -> int:
    """Set up; return the exit status."""
    try:
        check_python(sys.version_info)
        Setup().run()
    except SetupError as error:
        print(f'\n{error}', file=sys.stderr)
        return 1
    except OSError as error:
        print(f'\n{explain([str(error)]) or error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted: the same command goes on from here.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    sys.exit(main())
