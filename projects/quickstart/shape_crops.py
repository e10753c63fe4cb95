# SPDX-License-Identifier: Apache-2.0
"""Generate a small classification data set: views of single shapes of the scenes.

An image shows one shape near its centre, and perhaps a part of another one of its scene
behind or in front of it; the shape in the centre gives the class. A view is itself a
:class:`scenes.Scene`, so it is drawn sharp at its own size, not cut out and enlarged.

Usage: ``python shape_crops.py data/shape_crops --seed 0``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import data_set
import numpy as np
import scenes
from numpy.random import Generator

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
    paths = {
        split: [
            root / split / CLASSES[number % len(CLASSES)] / f'{number + 1:06d}.jpg'
            for number in range(num_images[split])
        ]
        for split in scenes.SPLITS
    }

    def draw() -> None:
        for split in scenes.SPLITS:
            for number, path in enumerate(paths[split]):
                rng = np.random.default_rng([seed, scenes.SPLITS.index(split), number])
                picture, _ = scenes.render(sample_crop(path.parent.name, rng))
                scenes.write_jpeg(path, picture)

    return data_set.write_once(
        root,
        MARKER,
        {'version': [VERSION, scenes.VERSION], 'seed': seed, **num_images},
        [path for split in scenes.SPLITS for path in paths[split]],
        draw,
    )


def main(argv: Sequence[str] | None = None) -> None:
    data_set.generate_from_command_line(
        __doc__.partition('\n')[0], generate, (NUM_TRAIN, NUM_VAL), argv
    )


if __name__ == '__main__':
    main()
