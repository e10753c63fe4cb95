# SPDX-License-Identifier: Apache-2.0
"""Run programs of ours without the seconds that their imports take.

A server that has imported PyTorch and the codebases, and nothing of this project, forks
for each. One is started per process of pytest, when it is first needed.
"""

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tests.paths import ROOT, TOOLS

PRELOADED = (
    *('torch', 'torchvision', 'mmcv.ops', 'mmengine.runner', 'matplotlib.pyplot'),
    *('mmdet.apis', 'mmpretrain.apis', 'mmseg.apis'),
)


class Printed(NamedTuple):
    """What a program printed."""

    output: str
    errors: str


def run_tool(verb: str, *arguments: str, cwd: Path) -> str:
    """Run ``tools/<verb>.py`` in a folder; return what it printed, on both streams."""
    return ''.join(run_program(TOOLS / f'{verb}.py', *arguments, cwd=cwd))


def run_program(program: Path, *arguments: str, cwd: Path) -> Printed:
    """Run a program in a folder; it must not fail."""
    with (
        tempfile.NamedTemporaryFile('r') as output,
        tempfile.NamedTemporaryFile('r') as errors,
    ):
        order = {
            'program': str(program),
            'arguments': arguments,
            'folder': str(cwd),
            'environment': dict(os.environ),
            'streams': [os.devnull, output.name, errors.name],
        }
        server = _server()
        server.stdin.write(json.dumps(order) + '\n')
        server.stdin.flush()
        exit_code = server.stdout.readline().strip()
        printed = Printed(output.read(), errors.read())
    assert exit_code == '0', f'{program}: {exit_code}\n{"".join(printed)[-3000:]}'
    return printed


@cache
def _server() -> Any:
    """Start the server; it ends with its standard input, so with this process."""
    paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    return subprocess.Popen(
        # A program of ours starts itself again where files are not read as UTF-8.
        [sys.executable, '-X', 'utf8', '-m', __name__],
        cwd=ROOT,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(filter(None, paths)),
            'OMP_NUM_THREADS': '1',  # more threads lose time on so small a model
            # Asks for GPUs without CUDA, which a forked process could not start again.
            'PYTORCH_NVML_BASED_CUDA_CHECK': '1',
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _serve() -> None:
    """Carry out orders, one a line, and answer each with its exit code."""
    # Stays open, as mmengine's progress bar writes to the stream of its import.
    void = open(os.devnull, 'w')  # noqa: SIM115
    with redirect_stdout(void), redirect_stderr(void):
        for name in PRELOADED:
            with suppress(ImportError):
                import_module(name)
    from yapf.yapflib import yapf_api

    # mmengine formats the config that it logs: half of the time of a short training.
    yapf_api.FormatCode = lambda text, **_: (text, False)
    gc.freeze()  # mmengine collects garbage, and would look at all modules
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f'{os.waitstatus_to_exitcode(status)}\n')
        sys.stdout.flush()
    return None


def _become(
    program: str,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    streams: list[str],
) -> None:
    """Go on as the program; how it ends is how this process ends."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), stream)
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).parent)
    runpy.run_path(program, run_name='__main__')


if __name__ == '__main__':
    _serve()
