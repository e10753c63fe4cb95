# SPDX-License-Identifier: Apache-2.0
"""Generate a small classification data set: views of single shapes of the scenes.

An image shows one shape near its centre, and perhaps a part of another one of its scene
behind or in front of it; the shape in the centre gives the class. A view is itself a
:class:`scenes.Scene`, so it is drawn sharp at its own size, not cut out and enlarged.

Usage: ``python shape_crops.py data/shape_crops --seed 0``
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import scenes
from numpy.random import Generator

logger = logging.getLogger(__name__)

CLASSES = tuple(sorted(scenes.CATEGORY_IDS))  # as readers of class folders order them
SIZE = (64, 72)  # (h, w) of an image, in pixels
RADIUS = (22.0, 30.0)  # of the shape in the centre, in pixels
MAX_SHIFT = 4.0  # of it from the centre, in pixels, along each side
MIN_VISIBLE_RATE = 0.8  # shapes that others hide further give no image
VERSION = '1.0'  # of the views' contents; part of what makes two data sets the same
MAX_OTHERS = 1  # other shapes of the scene that an image may show
NUM_TRAIN, NUM_VAL = 2000, 250
MARKER = 'shape_crops.json'  # written last: says what a complete data set holds


def crop(scene: scenes.Scene, number: int, rng: Generator) -> scenes.Scene:
    """View a scene from near, with one shape about the centre.

    Args:
        scene: The scene.
        number: Index of the shape in ``scene.shapes``.
        rng: Source of the shape's size and place.
    """
    subject = scene.shapes[number]
    scale = rng.uniform(*RADIUS) / subject.radius
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    origin = np.array(subject.center) - (np.array(SIZE) / 2 + shift) / scale

    def enlarge(texture: scenes.Texture) -> scenes.Texture:
        return replace(texture, period=texture.period * scale)

    def move(shape: scenes.Shape) -> scenes.Shape:
        y, x = (float(value) for value in (np.array(shape.center) - origin) * scale)
        return replace(
            shape,
            center=(y, x),
            radius=shape.radius * scale,
            texture=enlarge(shape.texture),
        )

    return scenes.Scene(
        size=SIZE,
        background=enlarge(scene.background),
        shapes=tuple(move(shape) for shape in scene.shapes),
        noise_seed=int(rng.integers(2**31)),
    )


def sample_crop(category: str, rng: Generator) -> scenes.Scene:
    """Draw a view of a shape that shows enough of itself to be named."""
    while True:
        scene = scenes.sample_scene(rng)
        scene = replace(scene, shapes=scene.shapes[: 1 + MAX_OTHERS])
        for number, shape in enumerate(scene.shapes):
            if shape.category == category:
                view = crop(scene, number, rng)
                visible = np.count_nonzero(scenes.index_map(view) == number + 1)
                full_area = scenes.full_area(view.shapes[number])
                if visible / scenes.OVERSAMPLING**2 >= MIN_VISIBLE_RATE * full_area:
                    return view


def generate(
    root: Path, *, seed: int = 0, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> bool:
    """Write a data set, unless the same one is there already.

    Args:
        root: Folder to write to: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``.
        seed: Seed of everything.
        num_train: Number of training images; the classes share them evenly.
        num_val: Number of validation images, likewise.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: A split has fewer images than there are classes; or ``root`` holds
            something else.
    """
    root = Path(root)
    num_images = {'train': num_train, 'val': num_val}
    for split, number in num_images.items():
        if number < len(CLASSES):
            raise ValueError(
                f'num_{split}: expected at least {len(CLASSES)} images, one of each '
                f'class, got {number}'
            )
    marker = root / MARKER
    parameters = {'version': [VERSION, scenes.VERSION], 'seed': seed, **num_images}
    paths = {
        split: [
            root / split / CLASSES[number % len(CLASSES)] / f'{number + 1:06d}.jpg'
            for number in range(num_images[split])
        ]
        for split in scenes.SPLITS
    }
    found = {split: set((root / split).rglob('*.*')) for split in scenes.SPLITS}
    if marker.exists():
        is_same = json.loads(marker.read_text()) == parameters
        if is_same and all(found[split] == set(paths[split]) for split in paths):
            return False
    elif any(found.values()):
        raise ValueError(
            f'{root}: expected a folder written by this generator, with {MARKER}, '
            'found another data set; choose another folder'
        )
    root.mkdir(parents=True, exist_ok=True)
    # Written first with no content: an interrupted run is known for what it is.
    marker.write_text('{}\n')
    for split in scenes.SPLITS:
        for path in found[split] - set(paths[split]):
            path.unlink()
        for number, path in enumerate(paths[split]):
            rng = np.random.default_rng([seed, scenes.SPLITS.index(split), number])
            picture, _ = scenes.render(sample_crop(path.parent.name, rng))
            bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
    marker.write_text(json.dumps(parameters) + '\n')
    return True


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('root', type=Path, help='folder to write the data set to')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--num-train', type=int, default=NUM_TRAIN, metavar='N')
    parser.add_argument('--num-val', type=int, default=NUM_VAL, metavar='N')
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        is_new = generate(
            args.root, seed=args.seed, num_train=args.num_train, num_val=args.num_val
        )
    except ValueError as error:
        parser.error(str(error))
    logger.info('%s: %s', args.root, 'written' if is_new else 'already complete')


if __name__ == '__main__':
    main()
