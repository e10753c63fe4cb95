# SPDX-License-Identifier: Apache-2.0
"""Train, test and try a small InternImage, from nothing to a picture.

Without options it generates a data set of shapes and trains a Mask R-CNN on it. With
``--data`` it takes any COCO-format folder; with ``--task classification`` it trains a
classifier on views of single shapes. ``make demo`` runs this file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import classification
import cv2
import numpy as np
import scenes
import shape_crops
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

CONFIG = Path(__file__).parent / 'configs' / 'mask-rcnn_internimage-nano_fpn_shapes.py'
FOLDER_ITERS = 150  # with --data; enough to see the loss fall, not to be accurate
# Columns of the table, and the ends of their names in mmdet.
METRICS = dict(AP='', AP50='_50', AP75='_75', APs='_s', APm='_m', APl='_l')
GRID = (2, 3)  # rows and columns of the picture
CELL_SIZE = (480, 640)  # (h, w) of one image in it
MARGIN = 8  # between images
MASK_ALPHA = 0.5  # 0: invisible, 1: hides what it covers
SCORE_THR = 0.4  # of the predictions drawn; lower where the best ones are worse
MAX_DRAWN = 10  # predictions in one image

Say = Callable[[str], None]

FOLDER_CONFIG_NAME = 'mask-rcnn_internimage-nano_fpn_folder.py'
FOLDER_CONFIG = '''"""A small InternImage Mask R-CNN on a COCO-format folder.

Written by the quickstart. For your own data, change data_root and classes; for a model
that is worth something, raise max_iters.
Train: mim train internimage {path}
"""

_base_ = {base!r}

data_root = {root!r}
# In the order of the annotation file.
metainfo = dict(classes={classes!r}, palette=None)
max_iters = {iters}

num_classes = len(metainfo['classes'])
model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=num_classes),
        mask_head=dict(num_classes=num_classes),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.001)),  # a young model is sure of nothing
)

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (512, 320)
dataset = dict(data_root=data_root, metainfo=metainfo)
train_dataloader = dict(batch_size=2, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = max_iters
'''


class FolderError(ValueError):
    """A folder that is not in the COCO format, or not wholly."""


def read_classes(root: Path) -> tuple[str, ...]:
    """Check a COCO-format folder and return its class names, in the file's order.

    Raises:
        FolderError: Something is not there; the message says what was found.
    """
    if not root.is_dir():
        raise FolderError(f'{root}: expected a folder, found none of that name')
    names: dict[str, list[str]] = {}
    for split in scenes.SPLITS:
        path = root / 'annotations' / f'instances_{split}.json'
        if not path.is_file() or not (root / split).is_dir():
            found = ', '.join(sorted(p.name for p in root.iterdir())) or 'nothing'
            raise FolderError(
                f'{root}: expected annotations/instances_{split}.json and {split}/, '
                f'found {found}; rename or link yours'
            )
        data = json.loads(path.read_text())
        names[split] = [category['name'] for category in data['categories']]
        missing = [
            image['file_name']
            for image in data['images']
            if not (root / split / image['file_name']).is_file()
        ]
        if missing:
            raise FolderError(
                f'{root / split}: expected the {len(data["images"])} images of '
                f'{path.name}, {len(missing)} are missing, such as {missing[0]}'
            )
        if not any(
            annotation.get('segmentation') for annotation in data['annotations']
        ):
            raise FolderError(
                f'{path}: expected objects with a segmentation, found none; '
                'Mask R-CNN learns from masks'
            )
    if names['train'] != names['val']:
        raise FolderError(
            f'{root}: expected the same categories in both annotation files, got '
            f'{names["train"]} and {names["val"]}'
        )
    return tuple(names['train'])


def write_folder_config(path: Path, root: Path, iters: int) -> None:
    """Write the config that trains on a COCO-format folder, for the user to keep."""
    path.write_text(
        FOLDER_CONFIG.format(
            path=path,
            base=str(CONFIG.resolve()),
            root=f'{root.resolve()}/',
            classes=read_classes(root),
            iters=iters,
        )
    )


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
    """Change how long a config trains."""
    config.train_cfg.max_iters = iters
    config.param_scheduler[1].T_max = iters


def train_and_test(config: Config, say: Say) -> dict[str, float]:
    """Train, test once, and return the metrics of the test."""
    # Threads gain little on so small a model, and lose much on cores that are shared.
    torch.set_num_threads(1)
    runner = Runner.from_cfg(config)
    runner.register_hook(Progress(say))
    runner.train()
    dataset = config.test_dataloader.dataset
    [prefix] = dataset.data_prefix.values()
    say(f'test  on {dataset.data_root}{prefix}')
    return runner.test()


def draw_predictions(config: Config, checkpoint: str, path: Path) -> int:
    """Load the checkpoint, predict on validation images, and write a picture.

    The images are the first ones with objects, enlarged so that labels are readable;
    the model sees the scale that its pipeline asks for.

    Returns:
        How many predictions were drawn.
    """
    from mmdet.apis import DetInferencer  # late, because it prints

    dataset = config.test_dataloader.dataset
    root = Path(dataset.data_root)
    data = json.loads((root / dataset.ann_file).read_text())
    with_objects = {annotation['image_id'] for annotation in data['annotations']}
    names = [i['file_name'] for i in data['images'] if i['id'] in with_objects]
    rows, columns = GRID
    images = [
        fit(cv2.imread(str(root / dataset.data_prefix.img / name)))
        for name in names[: rows * columns]
    ]
    inferencer = DetInferencer(config, weights=checkpoint, show_progress=False)
    samples = inferencer(images, return_datasamples=True)['predictions']
    inferencer.visualizer.alpha = MASK_ALPHA
    scores = [float(score) for s in samples for score in s.pred_instances.scores]
    score_thr = min(SCORE_THR, max(scores, default=0.0) / 2)

    picture = np.full((rows * CELL_SIZE[0], columns * CELL_SIZE[1], 3), 255, np.uint8)
    num_drawn = 0
    for number, (image, sample) in enumerate(zip(images, samples, strict=True)):
        sure = sample.pred_instances.scores > score_thr
        sample.pred_instances = sample.pred_instances[sure][:MAX_DRAWN]  # best first
        num_drawn += len(sample.pred_instances)
        inferencer.visualizer.add_datasample(
            'prediction', image, sample, draw_gt=False, pred_score_thr=score_thr
        )
        drawn = inferencer.visualizer.get_image()
        row, column = divmod(number, columns)
        y, x = row * CELL_SIZE[0], column * CELL_SIZE[1]
        picture[y : y + drawn.shape[0], x : x + drawn.shape[1]] = drawn
    cv2.imwrite(str(path), picture)
    return num_drawn


def fit(image: np.ndarray) -> np.ndarray:
    """Resize an image to the largest size that fits a cell of the picture."""
    height, width = image.shape[:2]
    scale = min((CELL_SIZE[0] - MARGIN) / height, (CELL_SIZE[1] - MARGIN) / width)
    size = (int(width * scale), int(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def minutes(seconds: float) -> str:
    """Format a duration as m:ss."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02}'


def table(metrics: dict[str, float]) -> str:
    """Format the metrics of mmdet's CocoMetric; -1 means no object of that size."""
    lines = ['       ' + ''.join(f'{name:>7}' for name in METRICS)]
    for title, kind in (('boxes', 'bbox'), ('masks', 'segm')):
        values = [
            metrics.get(f'coco/{kind}_mAP{end}', -1.0) for end in METRICS.values()
        ]
        cells = ['-' if value < 0 else f'{value:.3f}' for value in values]
        lines.append(f'{title:7}' + ''.join(f'{cell:>7}' for cell in cells))
    return '\n'.join(lines)


@dataclass(frozen=True)
class Task:
    """What differs between the tasks.

    Args:
        config: The config file.
        generate: Writes the data set to a folder; says whether it had to.
        draw: Predicts, from a checkpoint, and writes the picture; counts the drawn.
        table: Formats the metrics of the test.
        work_dir: Where results go, unless told otherwise.
        minutes: How long it all takes, unless told otherwise.
    """

    config: Path
    generate: Callable[..., bool]
    draw: Callable[[Config, str, Path], int]
    table: Callable[[dict[str, float]], str]
    work_dir: Path
    minutes: str


TASKS = {
    'detection': Task(
        CONFIG,
        scenes.generate,
        draw_predictions,
        table,
        Path('work_dirs/quickstart'),
        '5 to 8',
    ),
    'classification': Task(
        classification.CONFIG,
        shape_crops.generate,
        classification.draw_predictions,
        classification.table,
        Path('work_dirs/quickstart_classification'),
        '2 to 4',
    ),
}


def run(args: argparse.Namespace, say: Say) -> None:
    """Run all steps.

    Raises:
        FolderError: The folder named by ``--data`` is not as expected.
    """
    work_dir: Path = args.work_dir
    task = TASKS[args.task]
    config_path = task.config
    if args.data:
        config_path = work_dir / FOLDER_CONFIG_NAME
        write_folder_config(config_path, args.data, args.iters or FOLDER_ITERS)

    config = Config.fromfile(config_path)
    iters = args.iters or config.max_iters
    set_iterations(config, iters)
    # Not work_dir itself: mmengine writes a full copy of the config of this name there.
    config.work_dir = str(work_dir / 'train')
    config.randomness.seed = args.seed
    # The test after the training is enough.
    config.val_cfg = config.val_dataloader = config.val_evaluator = None

    if args.data:
        say(f'data  {args.data}, with the config {config_path}')
    else:
        root = Path(config.data_root)
        is_new = task.generate(root, seed=args.seed)
        say(f'data  {root}, {"generated" if is_new else "there already"}')
        say(f'      The whole run takes {task.minutes} minutes on 2 CPU cores.')
    say(
        f'train {iters} iterations of {config.train_dataloader.batch_size} images, '
        f'{len(config.metainfo.classes)} classes'
    )
    metrics = train_and_test(config, say)
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
        '--data',
        type=Path,
        metavar='FOLDER',
        help='COCO-format folder: annotations/instances_{train,val}.json, train/, val/ '
        '(default: generate shapes)',
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
        help='where results go (default: '
        + ', '.join(f'{task.work_dir} for {name}' for name, task in TASKS.items())
        + ')',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of data and training (default: 0)'
    )
    args = parser.parse_args(argv)
    if args.data and args.task != 'detection':
        parser.error('--data: expected the task detection, which reads COCO folders')
    args.work_dir = args.work_dir or TASKS[args.task].work_dir
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. What the libraries print goes to a file."""
    args = parse_args(argv)
    start = time.monotonic()
    say = functools.partial(print, file=sys.stdout, flush=True)
    complain = functools.partial(print, file=sys.stderr, flush=True)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    log_path = args.work_dir / 'demo.log'
    with (
        log_path.open('w') as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            run(args, say)
        except FolderError as error:
            complain(f'error: {error}')
            return 2
        except Exception as error:
            traceback.print_exc()
            complain(f'error: {type(error).__name__}: {error}\nThe log is {log_path}.')
            return 1
    say(f'log         {log_path}\ntime        {minutes(time.monotonic() - start)} min')
    return 0


if __name__ == '__main__':
    sys.exit(main())
