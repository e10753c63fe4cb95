# SPDX-License-Identifier: Apache-2.0
"""Train, test and try a small InternImage, from nothing to a picture.

Without options it generates a data set of shapes and trains a Mask R-CNN on it;
``--model`` names another detector. With ``--data`` it takes any COCO-format folder.
``--task classification`` trains a classifier on views of single shapes, ``--task
segmentation`` a UperNet on the same scenes, or on any folder of images and masks.
``make demo`` runs this file.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import functools
import io
import locale
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERRUPTED = 130  # what a shell makes of Ctrl-C: 128 plus the number of the signal

if (
    __name__ == '__main__'
    and not sys.flags.utf8_mode
    and codecs.lookup(locale.getpreferredencoding(False)).name != 'utf-8'
):
    # The libraries open files in the encoding of the locale, and fail on a name or a
    # class that it does not have. Start again with UTF-8.
    os.execv(sys.executable, [sys.executable, '-X', 'utf8', *sys.orig_argv[1:]])

try:  # the libraries take seconds to come
    import classification
    import detection
    import scenes
    import segmentation
    import shape_crops
    import shape_masks
    import torch
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from internimage.data import DataError, check_datasets
except KeyboardInterrupt:
    print('stopped before it began', file=sys.stderr)
    sys.exit(INTERRUPTED)

FOLDER_ITERS = 150  # with --data; enough to see the loss fall, not to be accurate

Say = Callable[[str], None]


class Progress(Hook):
    """Say ten times how far the training is.

    Args:
        say: Writes one line.
    """

    def __init__(self, say: Say) -> None:
        self.say = say

    def before_train(self, runner: Runner) -> None:
        self.start = time.monotonic()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        done, total = runner.iter + 1, runner.max_iters
        if done % max(1, total // 10) == 0:
            elapsed = time.monotonic() - self.start
            left = elapsed / done * (total - done)
            self.say(
                f'      {done:>{len(str(total))}} of {total}: '
                f'loss {float(outputs["loss"]):.2f}, '
                f'{minutes(elapsed)} min, {minutes(left)} left'
            )


def set_iterations(config: Config, iters: int) -> None:
    """Change how long a config trains; the rate has to rise and fall within it."""
    config.train_cfg.max_iters = iters
    warm_up, falling = config.param_scheduler
    warm_up.end = max(2, min(warm_up.end, iters // 4))
    falling.T_max = iters


def train_and_test(config: Config, hooks: Sequence[Hook], say: Say) -> dict[str, float]:
    """Train, test once, and return the metrics of the test."""
    # Threads gain little on so small a model, and lose much on cores that are shared.
    torch.set_num_threads(1)
    runner = Runner.from_cfg(config)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    dataset = config.test_dataloader.dataset
    images, *_ = dataset.data_prefix.values()
    say(f'test  on {dataset.data_root}{images}')
    return runner.test()


def minutes(seconds: float) -> str:
    """Format a duration as m:ss."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02}'


@dataclass(frozen=True)
class Task:
    """What differs between the tasks.

    Args:
        configs: The config file of each model; the first is the default.
        generate: Writes the data set to a folder; says whether it had to.
        draw: Predicts, from a checkpoint, and writes the picture; counts the drawn.
        table: Formats the metrics of the test.
        work_dir: Where results of the first model go; of others, to a folder beside it.
        minutes: How long it all takes, unless told otherwise.
        write_folder_config: Writes the config for a folder of one's own; may return
            what there is to say about it.
        hooks: What else happens in training and test.
    """

    configs: dict[str, Path]
    generate: Callable[..., bool]
    draw: Callable[[Config, str, Path], int]
    table: Callable[[dict[str, float]], str]
    work_dir: Path
    minutes: str
    write_folder_config: Callable[..., str | None] | None = None
    hooks: tuple[Callable[[], Hook], ...] = ()


TASKS = {
    'detection': Task(
        detection.CONFIGS,
        scenes.generate,
        detection.draw_predictions,
        detection.table,
        Path('work_dirs/quickstart'),
        '5 to 10',
        detection.write_folder_config,
    ),
    'classification': Task(
        {'classifier': classification.CONFIG},
        shape_crops.generate,
        classification.draw_predictions,
        classification.table,
        Path('work_dirs/quickstart_classification'),
        '2 to 4',
    ),
    'segmentation': Task(
        {'upernet': segmentation.CONFIG},
        shape_masks.generate,
        segmentation.draw_predictions,
        segmentation.table,
        Path('work_dirs/quickstart_segmentation'),
        '3 to 5',
        segmentation.write_folder_config,
        (segmentation.ClassIoU,),
    ),
}


def run(args: argparse.Namespace, say: Say) -> None:
    """Run all steps.

    Raises:
        DataError: The folder named by ``--data`` is not as expected, or what
            is in it.
    """
    work_dir: Path = args.work_dir
    task = TASKS[args.task]
    config_path = task.configs[args.model]
    note = None
    if args.data:
        config_path = work_dir / config_path.name.replace('shapes', 'folder')
        classes = {'classes': args.classes} if args.classes else {}
        note = task.write_folder_config(
            args.model, config_path, args.data, args.iters or FOLDER_ITERS, **classes
        )

    config = Config.fromfile(config_path)
    # Generated data are as they should be.
    reports = check_datasets(config) if args.data else []
    iters = args.iters or config.max_iters
    set_iterations(config, iters)
    # Not work_dir itself: mmengine writes a full copy of the config of this name there.
    config.work_dir = str(work_dir / 'train')
    config.randomness.seed = args.seed
    # The test after the training is enough.
    config.val_cfg = config.val_dataloader = config.val_evaluator = None

    if args.data:
        say(f'data  {args.data}, with the config {config_path}')
        if note:
            say(f'      {note}')
        for report in reports:
            say(str(report))
    else:
        root = Path(config.data_root)
        is_new = task.generate(root, seed=args.seed)
        say(f'data  {root}, {"generated" if is_new else "there already"}')
        say(f'      The whole run takes {task.minutes} minutes on 2 CPU cores.')
    say(
        f'train {iters} iterations of {config.train_dataloader.batch_size} images, '
        f'{len(config.metainfo.classes)} classes'
    )
    hooks = [Progress(say), *(make_hook() for make_hook in task.hooks)]
    metrics = train_and_test(config, hooks, say)
    checkpoint = work_dir / 'train' / f'iter_{iters}.pth'
    picture = work_dir / 'predictions.png'
    num_drawn = task.draw(config, str(checkpoint), picture)
    say(
        f'\n{task.table(metrics)}\n\ncheckpoint  {checkpoint}\n'
        f'picture     {picture}, {num_drawn} predictions'
    )
    if not num_drawn:
        say('            The model is not sure of anything yet: train it longer.')


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f'expected at least 1, got {value}')
        return value

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--task',
        choices=TASKS,
        default='detection',
        help='what to train for (default: %(default)s)',
    )
    parser.add_argument(
        '--model',
        help='; '.join(
            f'for {name}: {", ".join(task.configs)}' for name, task in TASKS.items()
        )
        + ' (default: the first)',
    )
    parser.add_argument(
        '--data',
        type=Path,
        metavar='FOLDER',
        help='for detection, in COCO format: annotations/instances_{train,val}.json, '
        'train/, val/; for segmentation: images/{train,val}/, masks/{train,val}/ '
        '(default: generate shapes)',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='for segmentation with --data: names of the classes of index 0, 1, ... in '
        'the masks (default: class0, class1, ...)',
    )
    parser.add_argument(
        '--iters',
        type=positive,
        metavar='N',
        help=f"training iterations (default: the config's; {FOLDER_ITERS} with --data)",
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        metavar='FOLDER',
        help='where results go (default: a folder in work_dirs)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of data and training (default: 0)'
    )
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    default, *others = task.configs
    args.model = args.model or default
    if args.model not in task.configs:
        parser.error(
            f'--model: expected, for {args.task}, one of {", ".join(task.configs)}; '
            f'got {args.model}'
        )
    if args.data and not task.write_folder_config:
        parser.error(
            '--data: expected the task detection or segmentation, '
            f'got {args.task}, which has none'
        )
    if args.classes and not (args.data and args.task == 'segmentation'):
        parser.error(
            '--classes: expected the task segmentation with --data; other data sets '
            'name their classes'
        )
    if not args.work_dir:
        suffix = f'_{args.model}' if args.model in others else ''
        args.work_dir = task.work_dir.with_name(task.work_dir.name + suffix)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. What the libraries print goes to a file."""
    args = parse_args(argv)
    start = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show the name of a folder shows its escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    say = functools.partial(print, file=sys.stdout, flush=True)
    complain = functools.partial(print, file=sys.stderr, flush=True)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    log_path = args.work_dir / 'demo.log'
    with (
        log_path.open('w', encoding='utf-8', errors='backslashreplace') as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            run(args, say)
        except DataError as error:
            complain(f'error: {error}')
            return 2
        except KeyboardInterrupt:
            complain(f'stopped by Ctrl-C; the log is {log_path}')
            return INTERRUPTED
        except Exception as error:
            traceback.print_exc()
            complain(f'error: {type(error).__name__}: {error}\nThe log is {log_path}.')
            return 1
    say(f'log         {log_path}\ntime        {minutes(time.monotonic() - start)} min')
    return 0


if __name__ == '__main__':
    sys.exit(main())
