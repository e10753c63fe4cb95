# SPDX-License-Identifier: Apache-2.0
"""Generate a small segmentation data set: the scenes, and the class of each pixel.

Usage: ``python shape_masks.py data/shape_masks --seed 0``
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import data_set
import numpy as np
import scenes

CLASSES = ('background', *scenes.CATEGORY_IDS)
IGNORED = 255  # the label of pixels that neither training nor metric looks at
VERSION = '1.0'  # of the masks' contents; part of what makes two data sets the same
NUM_TRAIN, NUM_VAL = scenes.NUM_TRAIN, scenes.NUM_VAL
MARKER = 'shape_masks.json'  # written last: says what a complete data set holds


def label_map(scene: scenes.Scene, index: np.ndarray) -> np.ndarray:
    """Say of which class each pixel is.

    Pixels that two classes share are ignored, and so are crowds: nobody can name shapes
    that are so small.

    Args:
        scene: The scene.
        index: Its :func:`scenes.index_map`.

    Returns:
        ``(h, w)`` uint8, an index of ``CLASSES`` or ``IGNORED``.
    """
    height, width = scene.size
    labels = [
        IGNORED if shape.is_crowd else CLASSES.index(shape.category)
        for shape in scene.shapes
    ]
    fine = np.uint8([0, *labels])[index]
    step = scenes.OVERSAMPLING
    blocks = fine.reshape(height, step, width, step)
    lowest, highest = blocks.min(axis=(1, 3)), blocks.max(axis=(1, 3))
    return np.where(lowest == highest, lowest, np.uint8(IGNORED))


def generate(
    root: Path, *, seed: int = 0, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> bool:
    """Write a data set, unless the same one is there already.

    Args:
        root: Folder to write to: ``images/{train,val}/*.jpg`` and
            ``masks/{train,val}/*.png``.
        seed: Seed of everything.
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: A split has no image; or ``root`` holds something else.
    """
    root = Path(root)
    num_images = {'train': num_train, 'val': num_val}
    for split, number in num_images.items():
        if number < 1:
            raise ValueError(f'num_{split}: expected at least 1 image, got {number}')
    pairs = {
        split: [
            (
                root / 'images' / split / f'{number:06d}.jpg',
                root / 'masks' / split / f'{number:06d}.png',
            )
            for number in range(1, num_images[split] + 1)
        ]
        for split in scenes.SPLITS
    }

    def draw() -> None:
        for split, paths in pairs.items():
            samples = scenes.sample_split(split, len(paths), seed)
            for scene, (image_path, mask_path) in zip(samples, paths, strict=True):
                picture, index = scenes.render(scene)
                scenes.write_jpeg(image_path, picture)
                cv2.imwrite(str(mask_path), label_map(scene, index))

    return data_set.write_once(
        root,
        MARKER,
        {'version': [VERSION, scenes.VERSION], 'seed': seed, **num_images},
        [path for paths in pairs.values() for pair in paths for path in pair],
        draw,
    )


def main(argv: Sequence[str] | None = None) -> None:
    data_set.generate_from_command_line(
        __doc__.partition('\n')[0], generate, (NUM_TRAIN, NUM_VAL), argv
    )


if __name__ == '__main__':
    main()
