# SPDX-License-Identifier: Apache-2.0
"""What differs between the published settings and ours, however either spells them."""

import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from internimage.backbone import Architecture


def flatten(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each setting."""
    if isinstance(value, dict):
        items = value.items()
    elif has_dict(value):
        items = enumerate(value)
    else:
        yield name, with_lists(value)
        return
    for key, item in items:
        yield from flatten(item, f'{name}.{key}' if name else str(key))


def find_differences(
    published: dict, ours: dict, ignored: re.Pattern[str]
) -> dict[str, tuple]:
    """Return setting -> (published value, our value), where they differ.

    Of ours only the parts that the published recipe has count, less what is ignored.
    """
    expected = dict(flatten(published))
    actual = {
        name: value
        for name, value in flatten(ours)
        if name.split('.')[0] in published and not ignored.fullmatch(name)
    }
    return {
        name: (expected.get(name), actual.get(name))
        for name in expected.keys() | actual.keys()
        if expected.get(name) != actual.get(name)
    }


def has_dict(value: Any) -> bool:
    """Whether a list has a dict in it, however deep."""
    if isinstance(value, list | tuple):
        return any(isinstance(item, dict) or has_dict(item) for item in value)
    return False


def with_lists(value: Any) -> Any:
    """Return the value with a list for each tuple, as JSON has it."""
    if isinstance(value, list | tuple):
        return [with_lists(item) for item in value]
    return value


def with_defaults(backbone: dict) -> dict:
    """Return a backbone's settings with all that it leaves to the constructor."""
    names = {field.name for field in fields(Architecture)}
    arch = Architecture(**{k: v for k, v in backbone.items() if k in names})
    levels = {'InternImage': (0, 1, 2, 3), 'CBInternImage': ((0, 1, 2, 3), (1, 2, 3))}
    return {
        'with_cp': False,
        'out_indices': levels[backbone['type']],
        **asdict(arch),
        **backbone,
    }
