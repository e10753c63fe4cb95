# SPDX-License-Identifier: Apache-2.0
"""Files of images, looked at without decoding them where that is enough."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

T = TypeVar('T')

NUM_SAMPLED = 200  # files opened of a set that is too large to open all
ORIENTATION = 0x0112  # the EXIF tag; 1 or nothing: as stored; 5 to 8: sides swapped
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')


class Listing:
    """Says which files exist; reads each folder once, however many files it has."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def names(self, folder: str) -> set[str]:
        """Return the names in a folder; none where there is no such folder."""
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder or '.'))
            except OSError:
                self._names[folder] = set()
        return self._names[folder]

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self.names(folder)

    def alike(self, path: str) -> str | None:
        """Return a file of the folder whose name differs in upper and lower case."""
        folder, name = os.path.split(path)
        matches = (n for n in self.names(folder) if n.lower() == name.lower())
        return next(matches, None)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is one of a storage backend, not of this machine."""
    return '://' in str(path)


def sample(items: Sequence[T], max_opened: int) -> Sequence[T]:
    """Return all items, or some at even distances where there are too many."""
    if len(items) <= max_opened:
        return items
    return items[:: -(-len(items) // min(NUM_SAMPLED, max_opened))]


def read_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """Return the (h, w) of an image as it is stored, and its EXIF orientation.

    Raises:
        OSError: It cannot be opened, or is not an image.
    """
    with Image.open(path) as image:
        width, height = image.size
        return (height, width), image.getexif().get(ORIENTATION, 1)


def displayed_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the (h, w) of an image as readers that heed its orientation give it."""
    return stored[::-1] if 5 <= orientation <= 8 else stored


def note_on_orientation(path: str | Path) -> str:
    """Return what to say where sizes disagree and a tag turns the image; or nothing."""
    stored, orientation = read_header(path)
    if orientation < 5:
        return ''
    return (
        f'; the file holds {stored}, and its EXIF tag turns it: the mask has to be as '
        'a viewer shows the image'
    )
