# SPDX-License-Identifier: Apache-2.0
"""Kill trainings at random moments and resume them: each has to end as if unbroken.

    python -m tests.kills --kills 30

The recipes of this project, small, on generated data: `tools/train.py` in a process of
its own gets a SIGKILL, again and again, and `--resume` until it is done. Half of the
kills come at any moment, half while a file is written. The last checkpoint then has to
be that of the run that nobody killed, bit for bit: weights, averages, optimizer.
"""

import argparse
import gc
import importlib
import multiprocessing
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from yapf.yapflib import yapf_api

from internimage.checkpoint import load_checkpoint_file
from tests.paths import ROOT
from tests.tools.small_trainings import FAMILIES, Family

AVERAGE = dict(type='EMAHook', momentum=0.1, update_buffers=True)


class Bench:
    """A folder with data and a small config, where trainings run.

    Args:
        family: What to train.
        folder: An empty folder.
    """

    def __init__(self, family: Family, folder: Path) -> None:
        # What a training imports is imported once: processes are forked.
        task = {'mmdet': 'detection', 'mmseg': 'segmentation'}
        importlib.import_module(
            f'internimage.{task.get(family.package, "classification")}'
        )
        for name in ('matplotlib.pyplot', 'torchvision', f'{family.package}.apis'):
            importlib.import_module(name)
        self.folder = folder
        family.write_data(folder / 'data' / family.data)
        config = Config.fromfile(ROOT / 'configs' / f'{family.config}.py')
        config.merge_from_dict(family.options)
        hooks = config.get('custom_hooks', [])
        if not any(hook['type'] == 'EMAHook' for hook in hooks):
            config.custom_hooks = [*hooks, AVERAGE]
        config.dump(folder / 'small.py')
        start = time.monotonic()
        self.unbroken = self.finish('unbroken')
        self.seconds = time.monotonic() - start

    def start(self, out: str, *arguments: str) -> Any:
        """Start a training, or go on with it, in a process of its own."""
        context = multiprocessing.get_context('fork')
        process = context.Process(target=self._train, args=(out, *arguments))
        process.start()
        return process

    def finish(self, out: str) -> Path:
        """Train to the end; return the last checkpoint."""
        process = self.start(out)
        process.join()
        log = (self.folder / f'{out}.txt').read_text()
        if process.exitcode:
            raise SystemExit(f'{out}: exit code {process.exitcode}\n{log[-3000:]}')
        pointed = (self.folder / out / 'last_checkpoint').read_text()
        return self.folder / pointed

    def kill(self, out: str, is_due: Callable[[], bool]) -> bool:
        """Train until a kill is due; return whether there was something to kill."""
        process = self.start(out)
        while process.is_alive() and not is_due():
            time.sleep(0.001)
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    def _train(self, out: str, *arguments: str) -> None:
        gc.freeze()  # mmengine collects garbage, and would look at all modules
        os.chdir(self.folder)
        torch.set_num_threads(1)  # a forked process has lost the others
        # mmengine formats the config for each checkpoint: half of the time of all this.
        yapf_api.FormatCode = lambda text, **_: (text, False)
        sys.path.insert(0, str(ROOT / 'tools'))
        main = runpy.run_path(str(ROOT / 'tools' / 'train.py'))['main']
        with open(f'{out}.txt', 'a', buffering=1) as log:
            sys.stdout = sys.stderr = log
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                main(['small.py', '--work-dir', out, '--resume', *arguments])
            except SystemExit as stopped:
                log.write(f'{stopped}\n')  # as Python does with it
                os._exit(1)
            except BaseException:
                traceback.print_exc(file=log)
                os._exit(1)


def differences(a: Path, b: Path) -> list[str]:
    """Return the names of what differs in the states of two trainings."""
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    one, other = (
        dict(_flatten({name: checkpoint[name] for name in parts}))
        for checkpoint in map(load_checkpoint_file, (a, b))
    )
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one or name not in other or not _same(one[name], other[name])
    ]


def _flatten(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _flatten(item, f'{name}.{key}')
    else:
        yield name, value


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def kill_and_resume(bench: Bench, num_kills: int, rng: random.Random) -> int:
    """Kill so many times, in as many trainings as that takes; return the good kills."""
    num_good = num_done = num_runs = 0
    while num_done < num_kills:
        num_runs += 1
        out, num_here = f'killed_{num_runs}', 0
        while num_done + num_here < num_kills:
            if not bench.kill(out, _moment(bench, out, rng)):
                break
            num_here += 1
        try:
            differing = differences(bench.unbroken, bench.finish(out))
        except (SystemExit, Exception) as error:  # whatever: it has not gone on
            differing = [repr(error)]
        num_done += num_here
        num_good += 0 if differing else num_here
        if differing:
            print(f'{out}: {num_here} kills: {len(differing)} differ: {differing[:3]}')
    return num_good


def _moment(bench: Bench, out: str, rng: random.Random) -> Callable[[], bool]:
    """Return when to kill: at some time, or when some file is being written."""
    if rng.random() < 0.5:
        end = time.monotonic() + rng.uniform(0.1, 1) * bench.seconds
        return lambda: time.monotonic() > end
    seen, wanted = set(), rng.randint(1, 6)

    def is_writing() -> bool:
        seen.update((bench.folder / out).glob('.*.part'))
        return len(seen) >= wanted

    return is_writing


def main() -> None:
    """Kill as the command line says; fail if one training did not go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=30, help='how many, in all')
    parser.add_argument(
        '--families', nargs='+', choices=FAMILIES, default=['mask-rcnn', 'classifier']
    )
    parser.add_argument('--seed', type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    print(f'seed {args.seed}', flush=True)
    good = 0
    for place, name in enumerate(args.families):
        share = len(range(place, args.kills, len(args.families)))
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(FAMILIES[name], Path(folder))
            found = kill_and_resume(bench, share, random.Random(args.seed + place))
        print(f'{name}: {found} of {share}', flush=True)
        good += found
    print(f'{good} of {args.kills} kills: went on, bit for bit')
    sys.exit(good != args.kills)


if __name__ == '__main__':
    main()
