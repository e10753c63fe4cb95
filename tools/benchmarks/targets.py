# SPDX-License-Identifier: Apache-2.0
"""What a machine should reach, and whether it does: ``make bench``.

Targets are ratios within one run on one machine, so that they hold on any. With
``--run`` the benchmarks are run first, which takes about ten minutes on two cores;
otherwise result files are read. Exits with 1 if a row misses its target or is missing.
"""

import argparse
import operator
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peers import (
    PUBLISHED,
    PUBLISHED_PATH,
    PUBLISHED_V3,
    PUBLISHED_V4,
    REFERENCE,
)
from record import OURS, RESULTS, ROOT, load_results
from timing import say

HERE = Path(__file__).parent
#: In the place of a peer: the time for the bytes that must move.
FLOOR = 'memory floor'


class Target(NamedTuple):
    """One figure that a run should give.

    ``wanted`` is a factor of speed for ``faster``, the peer's time over ours, which
    must reach it; otherwise our time over the peer's, which must not exceed it.
    """

    name: str
    benchmark: str
    case: str
    batch: int
    which: str
    peer: str
    wanted: float
    faster: bool
    dtype: str = 'float32'


CPU_TARGETS = [
    *(
        Target(
            f'operator, {which}, {case}',
            'operator',
            case,
            batch,
            which,
            PUBLISHED_PATH,
            wanted,
            faster=True,
        )
        for which, wanted in (('forward', 15.0), ('forward+backward', 8.0))
        for batch in (1, 8)
        for case in ('t1', 't2', 't3', 't4')
    ),
    *(
        Target(
            f'{model} {size}, forward',
            'backbone',
            f'InternImage-{model} {size}',
            batch,
            'forward',
            f'ConvNeXt-{model[0]}',
            1.0,
            faster=False,
        )
        for model, size, batches in (
            ('T', '224x224', (1, 8)),
            ('T with layer scale', '224x224', (1, 8)),
            ('S', '224x224', (1, 8)),
            ('B', '224x224', (1, 8)),
            ('T', '800x1216', (1,)),
            ('T with layer scale', '800x1216', (1,)),
        )
        for batch in batches
    ),
    Target(
        'Mask R-CNN T, training step',
        'detector',
        'Mask R-CNN 480x640',
        1,
        'training step',
        REFERENCE,
        0.5,
        faster=False,
    ),
]

# Of an H100. The published DCNv3 knows float16, but not bfloat16.
CUDA_TARGETS = [
    *(
        Target(
            f'operator, {which}, {case}',
            'operator-softmax',
            case,
            64,
            which,
            peer,
            wanted,
            faster=peer != FLOOR,
            dtype='float16',
        )
        for peer, which, wanted in (
            (PUBLISHED_V3, 'forward', 8.0),
            (PUBLISHED_V4, 'forward', 2.0),
            (PUBLISHED_V3, 'forward+backward', 4.0),
            (PUBLISHED_V4, 'forward+backward', 2.0),
            (FLOOR, 'forward', 2.0),
        )
        for case in (
            *(f'{arch}{stage}' for arch in 'tblh' for stage in (1, 2, 3, 4)),
            '64x56x56x128',
        )
    ),
    *(
        Target(
            f'InternImage-{arch}, forward',
            'backbone',
            f'InternImage-{arch} 224x224',
            64,
            'forward',
            peer,
            wanted,
            faster=True,
            dtype=dtype,
        )
        for arch in 'TBL'
        for peer, dtype, wanted in (
            (PUBLISHED, 'float16', 2.0),
            (f'ConvNeXt-{arch}', 'bfloat16', 1.0),
        )
    ),
]
TARGETS = {'cpu': CPU_TARGETS, 'cuda': CUDA_TARGETS}

#: Scripts and arguments that give these figures; {peer} is the published PyTorch path,
#: or our reference where there is no published code.
RUNS = {
    'cpu': [
        ('operator', '--dtype float32 --shapes t --batch 1 8 --peers "{peer}"'),
        (
            'backbone',
            '--dtype float32 --arch t t-scale s b h-short --batch 1 8 --passes forward '
            '--peers ConvNeXt-T ConvNeXt-S ConvNeXt-B --seconds 8',
        ),
        (
            'backbone',
            '--dtype float32 --arch t t-scale --image 800 1216 --batch 1 '
            '--passes forward --peers ConvNeXt-T --seconds 8',
        ),
        # An image of COCO as it is: on a smaller one, half of the step is RoI heads and
        # the optimizer. Enlarged as the recipe does, the reference needs some 20 GB.
        ('detector', '--dtype float32 --batch 1 --size 480 640 --seconds 10'),
    ],
    'cuda': [
        (
            'operator',
            '--dtype float16 --softmax --shapes t b l h 64x56x56x128 --batch 64 '
            f'--peers "{PUBLISHED_V3}" "{PUBLISHED_V4}"',
        ),
        (
            'backbone',
            '--dtype float16 --arch t b l --batch 64 --passes forward '
            f'--peers "{PUBLISHED}"',
        ),
        (
            'backbone',
            '--dtype bfloat16 --arch t b l --batch 64 --passes forward '
            '--peers ConvNeXt-T ConvNeXt-B ConvNeXt-L',
        ),
    ],
}


def find_figure(target: Target, rows: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """Return what was measured, and against whom.

    Where the published path is absent, the PyTorch reference of ours takes its place.

    Raises:
        LookupError: There is no such row.
    """
    found = {}
    for row in rows:
        if (row['benchmark'], row['dtype'], row['case'], row['batch'], row['pass']) == (
            target.benchmark,
            target.dtype,
            target.case,
            target.batch,
            target.which,
        ) and 'median_s' in row:
            found[row['participant']] = row['median_s']
            if row['participant'] == OURS and 'floor_s' in row:
                found[FLOOR] = row['floor_s']
    peers = [target.peer]
    if target.peer == PUBLISHED_PATH:
        peers.append(REFERENCE)
    for peer in peers:
        if peer in found and OURS in found:
            ratio = found[peer] / found[OURS]
            return (ratio if target.faster else 1 / ratio), peer
    raise LookupError(f'not measured against {target.peer}')


def judge(results: Sequence[dict[str, Any]], device: str) -> bool:
    """Print each target with its figure; return whether all are met.

    Args:
        results: Result files. Of two rows of the same case the later one counts.
        device: Whose targets; results of other devices do not count.
    """
    rows = [
        {
            **row,
            'benchmark': result['benchmark'],
            'dtype': result['settings']['dtype'],
        }
        for result in results
        if result['settings']['device'] == device
        for row in result['rows']
    ]
    all_met, others = True, set()
    say(f'{"target":38} batch  {"wanted":>9}  {"figure":>7}        against')
    for target in TARGETS[device]:
        sign, reaches = ('>=', operator.ge) if target.faster else ('<=', operator.le)
        try:
            figure, peer = find_figure(target, rows)
        except LookupError as error:
            met, text = False, f'{"-":>7}   MISSING  {error}'
        else:
            met = reaches(figure, target.wanted)
            text = f'{figure:6.2f}x   {"pass" if met else "FAIL":7}  {peer}'
            others |= {peer} - {target.peer}
        all_met = all_met and met
        say(f'{target.name:38} {target.batch:5}  {sign} {target.wanted:5.1f}x  {text}')
    if others:
        say(
            '\nThe published PyTorch path is not here, so that our own reference took '
            'its\nplace, which is slower. PUBLISHED=<its folder ops_dcnv3> gives it, '
            'from a clone of\nOpenGVLab/InternImage: make bench '
            'PUBLISHED=../InternImage/detection/ops_dcnv3'
        )
    return all_met


def run_all(
    device: str, out: Path, published: Path | None, commit: str | None
) -> tuple[list[Path], int]:
    """Run the benchmarks, each in its own process.

    Returns:
        Their results, and how many ended with an error; those still have results.
    """
    failed = 0
    before = {path: path.stat().st_mtime_ns for path in out.glob('*.json')}
    peer = PUBLISHED_PATH if published else REFERENCE
    for name, arguments in RUNS[device]:
        command: list[str | Path] = [sys.executable, '-W', 'ignore']
        command += [HERE / f'bench_{name}.py', '--device', device, '--out', out]
        command += shlex.split(arguments.format(peer=peer))
        if published:
            command += ['--published', published]
        if commit:
            command += ['--commit', commit]
        say(f'\n$ {shlex.join(map(str, command[3:]))}')
        failed += subprocess.run(command, cwd=ROOT).returncode != 0
    results = [
        path
        for path in out.glob('*.json')
        if path.stat().st_mtime_ns != before.get(path)
    ]
    return results, failed


def main(argv: Sequence[str] | None = None) -> bool:
    """Judge, after running if asked to; return whether all targets are met."""
    parser = argparse.ArgumentParser(description='Compare a machine with its targets.')
    parser.add_argument('files', nargs='*', type=Path, help='JSON files, or folders')
    parser.add_argument('--run', action='store_true', help='run the benchmarks first')
    parser.add_argument('--device', choices=list(TARGETS), default='cpu', help='whose')
    parser.add_argument('--published', type=Path, help='as in the benchmarks')
    parser.add_argument('--commit', help='as in the benchmarks')
    parser.add_argument('--out', type=Path, default=RESULTS, help='for the JSON')
    args = parser.parse_args(argv)
    files, failed = args.files or [RESULTS], 0
    if args.run:
        published = args.published and args.published.resolve()
        files, failed = run_all(args.device, args.out.resolve(), published, args.commit)
        say()
    all_met = judge(load_results(files), args.device)
    if failed:
        say(f'\nBenchmarks that ended with an error: {failed}')
    return all_met and not failed


if __name__ == '__main__':
    sys.exit(not main())
