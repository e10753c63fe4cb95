# SPDX-License-Identifier: Apache-2.0
"""The segmentor of the quickstart: folders of images and masks, table, picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import data_set
import numpy as np
import picture_grid
import scenes
import shape_masks
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from internimage.data import DataError, pictures

CONFIG = Path(__file__).parent / 'configs' / 'upernet_internimage-nano_shapes.py'
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')  # what the documents name
ALL_SUFFIXES = pictures.IMAGE_SUFFIXES
MASK_SUFFIX = '.png'
MAX_CLASSES = 255  # the indices below the ignored one
OPACITY = 0.6  # of the classes over the image

FOLDER_CONFIG = '''"""A small InternImage UperNet. For a good one, raise max_iters.

Train: mim train internimage {path}
"""
_base_ = {base!a}
data_root = {root!a}
metainfo = dict(classes={classes!r}, palette=[])
max_iters = {iters}
heads = dict(num_classes=len(metainfo['classes']), loss_decode=dict(class_weight=None))
model = dict(decode_head=heads, auxiliary_head=heads)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (512, 320)
train_pipeline[3].crop_size = (256, 256)
dataset = dict(data_root=data_root, metainfo=metainfo, img_suffix={suffix!r})
train_dataloader = dict(batch_size=4, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = max(2, min(40, max_iters // 4))
param_scheduler[1].T_max = max_iters
'''


class ClassIoU(Hook):
    """Add the IoU of each class to the metrics of a test, in percent.

    mmseg's ``IoUMetric`` computes it too, but only prints it.
    """

    def before_test(self, runner: Runner) -> None:
        self.classes = runner.test_dataloader.dataset.metainfo['classes']
        num_classes = len(self.classes)
        # [label, prediction], in pixels
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.long)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence | None = None,
    ) -> None:
        num_classes = len(self.classes)
        for sample in outputs:
            label = sample.gt_sem_seg.data.cpu()
            prediction = sample.pred_sem_seg.data.cpu()
            counted = label != shape_masks.IGNORED
            pairs = label[counted] * num_classes + prediction[counted]
            counts = torch.bincount(pairs, minlength=num_classes**2)
            self.counts += counts.view(num_classes, num_classes)

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        both = self.counts.diag()
        either = self.counts.sum(dim=0) + self.counts.sum(dim=1) - both
        iou = 100 * both / either  # nan for a class that is nowhere
        for name, value in zip(self.classes, iou.tolist(), strict=True):
            metrics[f'IoU/{name}'] = value


def table(metrics: dict[str, float]) -> str:
    """Format mmseg's mIoU, and below it the IoU of each class, in percent."""
    rows = {'mIoU': metrics['mIoU']}
    prefix = 'IoU/'
    for name, value in metrics.items():
        if name.startswith(prefix):
            rows[name.removeprefix(prefix)] = value
    width = max(map(len, rows))
    return '\n'.join(
        f'{name:{width}} {"-" if np.isnan(value) else f"{value:.1f}":>6}'
        for name, value in rows.items()
    )


def mask_of(image: Path, images: Path, masks: Path) -> Path:
    """Return where the mask of an image is, given the folders of both."""
    return masks / image.relative_to(images).with_suffix(MASK_SUFFIX)


def find_pairs(root: Path) -> tuple[str, list[tuple[Path, Path]]]:
    """Find the images of a folder, and the mask of each.

    Args:
        root: Folder with ``images/{train,val}`` and ``masks/{train,val}``.

    Returns:
        The suffix of the images, and images with their masks.

    Raises:
        DataError: Something is not there; the message says what was found.
    """
    if not root.is_dir():
        raise DataError(f'{root}: expected a folder, found none of that name')
    pairs = []
    for split in scenes.SPLITS:
        folders = {kind: root / kind / split for kind in ('images', 'masks')}
        for kind, folder in folders.items():
            if not folder.is_dir():
                parent = folder.parent if folder.parent.is_dir() else root
                found = ', '.join(sorted(p.name for p in parent.iterdir())) or 'nothing'
                raise DataError(
                    f'{root}: expected {kind}/{split}/, found in {parent} {found}; '
                    'rename or link yours'
                )
        files = sorted(path for path in folders['images'].rglob('*') if path.is_file())
        images = [
            path
            for path in files
            if path.suffix.lower() in ALL_SUFFIXES and path.name[0] != '.'
        ]
        if not images:
            raise DataError(
                f'{folders["images"]}: expected images ({", ".join(IMAGE_SUFFIXES)}), '
                f'found {files[0].name if files else "nothing"}'
            )
        for image in images:
            pairs.append((image, mask_of(image, **folders)))
    missing = [mask for _, mask in pairs if not mask.is_file()]
    if missing:
        raise DataError(
            f'{root}: expected a mask ({MASK_SUFFIX}) of the same name for each of the '
            f'{len(pairs)} images, {len(missing)} are missing, such as {missing[0]}'
        )
    suffixes = sorted({image.suffix for image, _ in pairs})
    if len(suffixes) > 1:
        raise DataError(
            f'{root}: expected images of one suffix, got {", ".join(suffixes)}; '
            'convert some of them'
        )
    return suffixes[0], pairs


def read_indices(image: Path, mask: Path) -> set[int]:
    """Check a mask and return the indices in it.

    Raises:
        DataError: It is not of the size of its image, or does not hold indices.
    """
    try:
        # mmseg turns an image as its EXIF tag says; a mask it leaves as it is.
        height, width = pictures.displayed_size(*pictures.read_header(image))
        with Image.open(mask) as opened:
            # Where there is a palette, its indices: as mmseg.
            pixels = np.asarray(opened).astype(int)
    except OSError as error:
        raise DataError(
            f'{mask}: expected a mask that can be opened, and its image {image} too, '
            f'got {error}'
        ) from error
    if pixels.ndim != 2:
        raise DataError(
            f'{mask}: expected one channel, the index of a class in each pixel, got '
            f'{pixels.shape[2]} channels; write the indices in place of the colours'
        )
    if pixels.shape != (height, width):
        raise DataError(
            f'{mask}: expected {(height, width)} (h, w), the size of {image}, got '
            f'{pixels.shape}' + pictures.note_on_orientation(image)
        )
    return set(np.unique(pixels).tolist())


def read_classes(
    root: Path, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], str]:
    """Check a folder of images and masks, all of it.

    Args:
        root: The folder.
        classes: Names of the classes. Without it they are called after their indices.

    Returns:
        Names of the classes, and the suffix of the images.

    Raises:
        DataError: Something is not there, or not as expected; the message says what
            was found.
    """
    suffix, pairs = find_pairs(root)
    places = {}  # index -> a mask that has it
    for image, mask in pairs:
        for index in read_indices(image, mask):
            places.setdefault(index, mask)
    ignored = places.pop(shape_masks.IGNORED, None)
    if ignored and set(places) <= {0}:
        raise DataError(
            f'{root}: expected masks of 0, 1, ..., the indices of classes, got only '
            f'{" and ".join(map(str, [*places, shape_masks.IGNORED]))}, of which '
            f'{shape_masks.IGNORED} is ignored; if it is your second class, write 1 in '
            'its place: cv2.imwrite(path, cv2.imread(path, 0) // 255) for each mask'
        )
    highest = max(places)
    if classes is None:
        classes = [f'class{index}' for index in range(highest + 1)]
    num_classes = len(classes)
    if not 2 <= num_classes <= MAX_CLASSES:
        raise DataError(
            f'{places[highest]}: expected 2 to {MAX_CLASSES} classes, one of which may '
            f'be the background, got {num_classes}: {" ".join(classes[:5])}'
        )
    if highest >= num_classes:
        raise DataError(
            f'{places[highest]}: expected indices from 0 to {num_classes - 1}, for '
            f'{" ".join(classes)}, and {shape_masks.IGNORED} for what is ignored, got '
            f'{highest}; name all classes, in the order of their indices'
        )
    return tuple(classes), suffix


def write_folder_config(
    model: str,
    path: Path,
    root: Path,
    iters: int,
    classes: Sequence[str] | None = None,
) -> str | None:
    """Write the config that trains on a folder, for the user to keep.

    Args:
        model: There is only one.
        path: Where to write it.
        root: The folder.
        iters: How many iterations it trains.
        classes: Names of the classes, in the order of their indices in the masks.

    Returns:
        How the classes are called where no names are given.
    """
    names, suffix = read_classes(root, classes)
    data_set.write_config(
        path,
        FOLDER_CONFIG,
        base=str(CONFIG.resolve()),
        root=f'{root.resolve()}/',
        classes=names,
        suffix=suffix,
        iters=iters,
    )
    if classes:
        return None
    return (
        f'The masks have indices up to {len(names) - 1}: {names[0]} to {names[-1]}. '
        '--classes gives names.'
    )


def draw_predictions(config: Config, checkpoint: str, path: Path) -> int:
    """Load the checkpoint, predict on validation images, and write a picture.

    The images are the first ones with more than one class.

    Returns:
        How many images were drawn.
    """
    from mmseg.apis import MMSegInferencer  # late, because it prints

    dataset = config.test_dataloader.dataset
    root, prefix = Path(dataset.data_root), dataset.data_prefix
    images = root / prefix.img_path
    files = sorted(images.rglob(f'*{dataset.get("img_suffix", ".jpg")}'))
    with_objects = (
        file
        for file in files
        if len(read_indices(file, mask_of(file, images, root / prefix.seg_map_path)))
        > 1
    )
    shown = list(itertools.islice(with_objects, picture_grid.NUM_CELLS))
    inferencer = MMSegInferencer(config, weights=checkpoint, show_progress=False)
    visualizer = inferencer.visualizer
    # It would show the classes of Cityscapes.
    visualizer.set_dataset_meta(**inferencer.model.dataset_meta)
    visualizer.alpha = OPACITY
    drawn = []
    for file in shown or files[: picture_grid.NUM_CELLS]:
        bgr = picture_grid.fit(cv2.imread(str(file)))
        sample = inferencer(bgr, return_datasamples=True)
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        visualizer.add_datasample('prediction', rgb, sample, draw_gt=False)
        drawn.append(cv2.cvtColor(visualizer.get_image(), cv2.COLOR_RGB2BGR))
    picture_grid.write(path, drawn)
    return len(drawn)
