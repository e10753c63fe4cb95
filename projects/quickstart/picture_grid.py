# SPDX-License-Identifier: Apache-2.0
"""The picture that shows what was predicted on a few images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

SHAPE = (2, 3)  # rows and columns
NUM_CELLS = SHAPE[0] * SHAPE[1]
CELL_SIZE = (480, 640)  # (h, w) of one image in it
MARGIN = 8  # between images


def fit(image: np.ndarray) -> np.ndarray:
    """Resize an image to the largest size that fits a cell of the picture."""
    height, width = image.shape[:2]
    scale = min((CELL_SIZE[0] - MARGIN) / height, (CELL_SIZE[1] - MARGIN) / width)
    size = (int(width * scale), int(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def write(path: Path, images: Sequence[np.ndarray]) -> None:
    """Write images that fit the cells, row by row, into one picture."""
    rows, columns = SHAPE
    picture = np.full((rows * CELL_SIZE[0], columns * CELL_SIZE[1], 3), 255, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        y, x = row * CELL_SIZE[0], column * CELL_SIZE[1]
        picture[y : y + image.shape[0], x : x + image.shape[1]] = image
    cv2.imwrite(str(path), picture)
