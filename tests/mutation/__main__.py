# SPDX-License-Identifier: Apache-2.0
"""Put small faults into copies of the code: the tests have to catch nearly all.

    python -m tests.mutation --mutants 200 --seed 0

A mutant is caught if a test fails or does not end in time. First run the test files
that name the mutated module; then, if these pass, the other quick ones of its package.
Of survivors either a test is missing, or ``equivalents.json`` has to say why they
change nothing. No mutants are made of texts, annotations, ``raise`` and calls that
only tell something.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutation.mutants import Mutant, is_equivalent, sample

ROOT = Path(__file__).parents[2]
PATHS = ['internimage', 'ops_dcnv3', 'tools']
IGNORED = shutil.ignore_patterns(
    '.git', '.venv', '__pycache__', 'build', '*_cuda*.so', 'work_dirs'
)
NO_TESTS = 5  # pytest's exit status


def nearest_tests(root: Path, file: str) -> list[str]:
    """Return the test files that have the name of a module, or import it."""
    module = file.removesuffix('.py').replace('/', '.').removesuffix('.__init__')
    stem = module.rpartition('.')[2]
    return sorted(
        path.relative_to(root).as_posix()
        for path in (root / 'tests').rglob('test_*.py')
        if path.stem == f'test_{stem}' or module in path.read_text()
    )


def folders_of_tests(root: Path, file: str) -> list[str]:
    """Return the folders with tests of a package: the layers' are in two."""
    package = file.split('/')[0]
    names = {'ops_dcnv3': ['ops', 'internimage']}.get(package, [package])
    folders = [f'tests/{name}' for name in names]
    return folders if (root / folders[0]).is_dir() else ['tests']


def is_caught(copy: Path, mutant: Mutant, limit: float) -> bool:
    """Run the tests of a copy with one mutant in it."""
    path = copy / mutant.file
    text = path.read_text()
    nearest = nearest_tests(copy, mutant.file)
    others = folders_of_tests(copy, mutant.file)
    others += [f'--deselect={name}' for name in nearest]
    end = time.monotonic() + limit
    path.write_text(mutant.source)
    try:
        return any(
            fails(copy, arguments, end - time.monotonic())
            for arguments in (nearest, others)
            if arguments
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(text)


def fails(copy: Path, arguments: Sequence[str], limit: float) -> bool:
    """Run some quick tests; tell whether one fails, or cannot even be read."""
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider']
    run = subprocess.run(
        [*command, '-m', 'not slow', *arguments],
        cwd=copy,
        env=os.environ | {'PYTHONPATH': str(copy), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=limit,
    )
    return run.returncode not in (0, NO_TESTS)


def find_survivors(
    root: Path, mutants: Sequence[Mutant], jobs: int, limit: float
) -> Iterator[Mutant]:
    """Yield the mutants that no test catches, as they are found."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        copies: queue.Queue[Path] = queue.Queue()
        for index in range(jobs):
            copy = Path(folder, str(index), 'checkout')
            copies.put(shutil.copytree(root, copy, ignore=IGNORED))

        def run(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                return is_caught(copy, mutant, limit)
            finally:
                copies.put(copy)

        for mutant, caught in zip(mutants, pool.map(run, mutants), strict=True):
            if not caught:
                yield mutant


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> bool:
    """Run; return whether enough mutants were caught."""
    parser = argparse.ArgumentParser(description=str(__doc__).split('\n')[0])
    parser.add_argument('--mutants', type=int, default=200, help='how many')
    parser.add_argument('--seed', type=int, default=0, help='which ones')
    parser.add_argument('--jobs', type=int, default=2, help='how many at a time')
    parser.add_argument('--wanted', type=float, default=0.9, help='share to catch')
    parser.add_argument('--limit', type=float, default=1800, help='seconds of a mutant')
    parser.add_argument('paths', nargs='*', help=f'of what; default: {PATHS}')
    args = parser.parse_args(argv)
    drawn = sample(root, args.paths or PATHS, args.mutants, args.seed)
    equivalents = root / 'tests' / 'mutation' / 'equivalents.json'
    mutants = [x for x in drawn if not is_equivalent(x, equivalents)]
    survivors = 0
    for mutant in find_survivors(root, mutants, args.jobs, args.limit):
        survivors += 1
        print(f'NOT CAUGHT {mutant}', flush=True)
    share = 1 - survivors / len(mutants) if mutants else 1.0
    print(
        f'{len(mutants) - survivors} of {len(mutants)} mutants caught, {share:.1%}; '
        f'wanted {args.wanted:.0%}. {len(drawn) - len(mutants)} change nothing.'
    )
    return share >= args.wanted


if __name__ == '__main__':
    sys.exit(not main())
