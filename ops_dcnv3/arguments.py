# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments. Each returns the value as plain Python has it.

Every error reads ``name: expected ..., got ...``: a TypeError for a value of another
type, a ValueError for one out of range. Numbers of NumPy pass for those of Python. A
bool is no number, nor is a text of digits.

All take the ``name`` of the argument and the ``value`` that was given. ``fits`` tells
whether that is in range, and ``expected`` says in words what ``fits`` asks for.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from numbers import Integral, Real
from typing import Any


def is_integer(value: object) -> bool:
    """Tell whether it is an int, also of NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def integer(
    name: str,
    value: Any,
    expected: str = '1 or more',
    fits: Callable[[int], bool] = lambda number: number >= 1,
) -> int:
    """Return an integer."""
    if not is_integer(value):
        raise TypeError(f'{name}: expected an integer, {expected}, got {value!r}')
    if not fits(int(value)):
        raise ValueError(f'{name}: expected {expected}, got {value!r}')
    return int(value)


def integers(
    name: str, value: Any, expected: str, fits: Callable[[tuple[int, ...]], bool]
) -> tuple[int, ...]:
    """Return the integers of a list, a tuple, a range, an array."""
    has_order = isinstance(value, Iterable) and not isinstance(
        value, str | bytes | Mapping | Set
    )
    found = tuple(value) if has_order and getattr(value, 'ndim', 1) == 1 else (None,)
    if not all(map(is_integer, found)):
        raise TypeError(f'{name}: expected integers, {expected}, got {value!r}')
    numbers = tuple(map(int, found))
    if not fits(numbers):
        raise ValueError(f'{name}: expected {expected}, got {numbers}')
    return numbers


def number(
    name: str,
    value: Any,
    expected: str = 'a number of 0 or more',
    fits: Callable[[float], bool] = lambda number: number >= 0,
) -> float:
    """Return a number, which also has to be finite."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f'{name}: expected {expected}, got {value!r}')
    real: Any = value  # Real has no operators for mypy
    # Dynamo knows no math.isfinite of a number that may change.
    if not -math.inf < real < math.inf or not fits(float(real)):
        raise ValueError(f'{name}: expected {expected}, got {value!r}')
    return float(real)


def flag(name: str, value: Any) -> bool:
    """Return a bool, also for one of NumPy."""
    is_numpys = str(getattr(value, 'dtype', '')) == 'bool' and value.ndim == 0
    if not isinstance(value, bool) and not is_numpys:
        raise TypeError(f'{name}: expected a bool, got {value!r}')
    return bool(value)


def choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return one of some texts."""
    if isinstance(value, str) and value in choices:
        return str(value)
    *others, last = map(repr, choices)
    expected = f'{", ".join(others)} or {last}' if others else last
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f'{name}: expected {expected}, got {value!r}')
