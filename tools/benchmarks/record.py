# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share beside clocks: options, header, tables, JSON.

A result file is ``{"benchmark", "machine", "settings", "rows"}``. A row has one
participant of one case: ``case``, ``batch``, ``pass`` and ``participant``; then either
``missing``, the reason why it was not timed, or ``error`` (relative, against the
reference; None where it computes something else), ``median_s``, ``q1_s``, ``q3_s``,
``runs``, ``ratio`` (its time over ours), ``peak_bytes`` and what a benchmark adds.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timing import QUICK, Call, Effort, peak_memory, say, time_together

from ops_dcnv3 import build_info

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / 'results'
#: What our side of a comparison is called.
OURS = 'internimage'
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')

Row = dict[str, Any]


class WrongResultError(Exception):
    """Ours does not compute what the reference does; nothing is timed."""


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    has_cuda = torch.cuda.is_available()
    parser.add_argument('--device', default='cuda' if has_cuda else 'cpu', help='where')
    parser.add_argument('--dtype', choices=DTYPES, default='float32', help='of values')
    parser.add_argument(
        '--batch', nargs='+', type=int, default=[1, 8], help='images at once'
    )
    parser.add_argument('--threads', type=int, help='CPU threads (default: all)')
    parser.add_argument('--seconds', type=float, default=1.0, help='for each figure')
    parser.add_argument(
        '--quick', action='store_true', help='two runs each: does it run at all?'
    )
    parser.add_argument('--peers', nargs='*', help='whom to compare with (default all)')
    parser.add_argument(
        '--published', type=Path, help="folder of the published code's ops_dcnv3"
    )
    parser.add_argument('--commit', help='of our code, where there is no git to ask')
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder for the JSON')
    return parser


class Benchmark:
    """One run of a benchmark: its device, header and rows.

    Args:
        name: Of the benchmark.
        args: Of a parser made by ``make_parser``.
        part: What the file of this run has in its name besides.
    """

    def __init__(self, name: str, args: argparse.Namespace, part: str = '') -> None:
        if args.threads:
            torch.set_num_threads(args.threads)
        # float32 is float32, also in cuDNN, whose default is TF32.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.name = name
        self.part = part
        self.args = args
        self.device = torch.device(args.device)
        self.dtype = getattr(torch, args.dtype)
        self.effort = QUICK if args.quick else Effort(seconds=args.seconds)
        self.machine = describe_machine(self.device, args.commit)
        self.rows: list[Row] = []
        self._failures: list[Exception] = []
        self._said: set[tuple[str, str | None]] = set()
        say(f'# {name}')
        for key, value in self.machine.items():
            say(f'{key:14}{value}')

    def wants(self, peer: str) -> bool:
        """Return whether a participant is to be compared with."""
        return self.args.peers is None or peer in self.args.peers

    def attempt(self, run_case: Callable[..., None], *args: Any) -> None:
        """Run a case; one that fails does not keep the others from being timed.

        Args:
            run_case: Gets this benchmark and ``args``.
            args: What it gets besides.
        """
        try:
            run_case(self, *args)
        except (WrongResultError, RuntimeError) as error:
            say(f'FAILED: {type(error).__name__}: {error}')
            self._failures.append(error)

    def time(
        self,
        calls: dict[str, Call],
        rows: dict[str, Row],
        complete: Callable[[Row], None] | None = None,
    ) -> None:
        """Time calls in turns, measure their memory, and complete their rows.

        All rows so far are written: what stops a benchmark loses one case at most.

        Args:
            calls: By participant; ours is the one that ratios refer to.
            rows: What is known of each participant; those without a call are missing.
            complete: Adds to the row of a participant that was timed.
        """
        timings = time_together(calls, self.device, self.effort)
        ours = timings.get(OURS)
        for name, row in rows.items():
            if name in timings:
                row.update(timings[name]._asdict())
                row['ratio'] = row['median_s'] / ours.median_s if ours else None
                row['peak_bytes'] = peak_memory(calls[name], self.device)
                if complete:
                    complete(row)
            self.rows.append(row)
            reason = name, row.get('missing')
            if name in timings or reason not in self._said:
                say(format_row(row))
            self._said.add(reason)
        self._save()

    def write(self) -> Path:
        """Write the rows as JSON and return the file's path.

        Raises:
            WrongResultError: Ours was wrong in a case.
            RuntimeError: A case did not run.
        """
        path = self._save()
        say(f'\nWritten: {path}')
        if self._failures:
            say(f'Cases that failed: {len(self._failures)}')
            raise self._failures[0]
        return path

    def _save(self) -> Path:
        device = re.sub(r'[^a-z0-9]+', '-', self.machine['device'].lower()).strip('-')
        date = self.machine['date'][:10]
        dtype = '' if self.dtype == torch.float32 else f'_{self.args.dtype}'
        path = self.args.out / f'{device}_{date}_{self.name}{self.part}{dtype}.json'
        settings = {
            key: value
            for key, value in vars(self.args).items()
            # Paths say where things lie on this machine, not what was measured.
            if not isinstance(value, Path)
        }
        result = {
            'benchmark': self.name,
            'machine': self.machine,
            'settings': settings,
            'rows': self.rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix('.part')
        part.write_text(json.dumps(result, indent=1) + '\n')
        part.replace(path)  # at no time is there half a file
        return path


def new_row(case: str, batch: int, which: str, participant: str, **more: Any) -> Row:
    """Return the start of a row; ``which`` is the pass."""
    return dict(case=case, batch=batch, **{'pass': which}) | dict(
        participant=participant, **more
    )


def format_row(row: Row) -> str:
    """Return one line for the eye."""
    start = f'{row["case"]:28} {row["batch"]:3}  {row["pass"]:17} '
    start += f'{row["participant"]:24}'
    if row.get('missing'):
        return f'{start} -- {row["missing"]}'
    spread = (row['q3_s'] - row['q1_s']) / row['median_s']
    text = f'{start} {row["median_s"] * 1e3:10.3f} ms +-{spread / 2:4.0%}'
    if row.get('ratio') is not None:
        text += f'  {row["ratio"]:6.2f}x'
    if row.get('gb_per_s') is not None:
        text += f'  {row["gb_per_s"]:6.1f} GB/s, floor x{row["floor_ratio"]:5.1f}'
    if row.get('images_per_s') is not None:
        text += f'  {row["images_per_s"]:7.1f} img/s'
    if row.get('peak_bytes') is not None:
        text += f'  {row["peak_bytes"] / 2**20:7.0f} MiB'
    if row.get('error') is not None:
        text += f'  error {row["error"]:.0e}'
    return text


def describe_machine(device: torch.device, commit: str | None) -> dict[str, Any]:
    """Return what a figure depends on beside the code that is timed."""
    machine: dict[str, Any] = {'device': cpu_name()}
    if device.type == 'cuda':
        machine['device'] = torch.cuda.get_device_name(device)
        machine['driver'] = _output_of(
            'nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'
        )
        machine['cuda'] = torch.version.cuda
    else:
        machine['instructions'] = build_info()['cpu_capability']
    return machine | {
        'threads': torch.get_num_threads(),
        'cores': os.cpu_count(),
        # Above 0.5 before we start, somebody else computes and figures are noisy.
        'load': round(os.getloadavg()[0], 1),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'commit': commit or _commit(),
        'date': datetime.datetime.now().astimezone().isoformat(timespec='minutes'),
    }


def cpu_name() -> str:
    """Return the CPU's name, as Linux tells it."""
    try:
        text = Path('/proc/cpuinfo').read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r'^model name\s*:\s*(.*)$', text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _commit() -> str:
    commit = _output_of('git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD')
    changed = _output_of('git', '-C', str(ROOT), 'status', '--porcelain', '-uno')
    return f'{commit or "unknown"}{" with changes" if changed else ""}'


def _output_of(*command: str) -> str:
    """Return the first line that a command prints, nothing if it fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ''
    return (run.stdout.splitlines() or [''])[0]


def load_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read result files, and those in folders."""
    files = []
    for path in paths:
        files += sorted(path.glob('*.json')) if path.is_dir() else [path]
    return [json.loads(path.read_text()) for path in files]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over that of ``expected``; NaN is infinite.

    A norm, as gradients of offsets jump where a point crosses a pixel: rounding may
    put a few of a model's many points on the other side.
    """
    actual, expected = actual.detach().double(), expected.detach().double()
    error = (actual - expected).norm() / expected.norm().clamp(min=1e-30)
    return error.item() if error.isfinite() else float('inf')
