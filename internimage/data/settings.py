# SPDX-License-Identifier: Apache-2.0
"""How closely to look at a data set, and what it is looked at for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What ``data_check`` of a config may set.

    Args:
        max_opened: Files of a data set that are opened; of a larger one, only some are,
            at even distances. Annotations are always looked at wholly.
        max_left_out_rate: Share of the objects that may be left out because of a slip,
            such as a box without width. COCO itself has 2 in 860,000.
    """

    max_opened: int = 2000
    max_left_out_rate: float = 0.05

    @classmethod
    def from_config(cls, data_check: Mapping[str, Any]) -> Settings:
        """Take settings from a config.

        Raises:
            ValueError: One that does not exist.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in data_check if name not in known]
        if unknown:
            raise ValueError(f'data_check: expected {known} or False, got {unknown}')
        return cls(**data_check)


@dataclass(frozen=True)
class Use:
    """What the annotations of a split are for.

    Args:
        objects: Whether it is of no use without any.
        masks: Whether masks are read.
        pycocotools: Whether pycocotools evaluates with the file.
        heeds_orientation: Whether images are turned as their EXIF tag says.
        load_annotations: The step of the pipeline that reads annotations.
    """

    objects: bool = True
    masks: bool = False
    pycocotools: bool = False
    heeds_orientation: bool = True
    load_annotations: Callable[[Any], Any] | None = None
