# SPDX-License-Identifier: Apache-2.0
"""What a look at a data set found: counts, what is left out, what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

NUM_NAMED = 3  # examples that a sentence gives
NUM_CLASSES_SHOWN = 20  # with more classes, those with the most and the fewest


class DataError(ValueError):
    """Data that would stop a training, or that it would learn something wrong from."""


@dataclass
class Tally:
    """How many times something was found, and the first places."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < NUM_NAMED:
            self.places.append(place)

    def __str__(self) -> str:
        more = self.count - len(self.places)
        return ', '.join(self.places) + (f' and {more} more' if more else '')


@dataclass(frozen=True)
class Rule:
    """What is expected of data, and what to do where it is not so.

    Args:
        expected: Follows "expected".
        advice: Follows a semicolon.
    """

    expected: str
    advice: str = ''


@dataclass
class Report:
    """What was found in the data set of one split.

    Args:
        split: ``'train'``, ``'val'`` or ``'test'``.
        source: The file or folder that the annotations are in.
        num_images: How many images there are to learn or to measure with.
        summary: How much of what there is; a line each.
        counts: Class name to number of images, objects or pixels that a model gets.
        labels: What the labels 0, 1, ... mean, by the data.
        left_out: Reason to what the data set class leaves out for it.
        warnings: What is used, but may be wrong.
        faults: What must be mended; a report with any of them is an error.
    """

    split: str
    source: str
    num_images: int = 0
    summary: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    left_out: dict[str, Tally] = field(default_factory=dict)
    warnings: dict[str, Tally] = field(default_factory=dict)
    faults: dict[Rule, Tally] = field(default_factory=dict)

    def fault(self, rule: Rule, place: str) -> None:
        self.faults.setdefault(rule, Tally()).add(place)

    def leave_out(self, reason: str, place: str) -> None:
        self.left_out.setdefault(reason, Tally()).add(place)

    def warn(self, what: str, place: str) -> None:
        self.warnings.setdefault(what, Tally()).add(place)

    def errors(self) -> list[str]:
        """Return a sentence for each kind of fault."""
        return [
            f'{self.source}: expected {rule.expected}, got {tally}'
            + (f'; {rule.advice}' if rule.advice else '')
            for rule, tally in self.faults.items()
        ]

    def __str__(self) -> str:
        lines = [
            *self.summary,
            *(f'left out: {reason}: {t}' for reason, t in self.left_out.items()),
            *(f'warning: {what}: {tally}' for what, tally in self.warnings.items()),
        ]
        return f'{self.split:5} {self.source}' + ''.join(f'\n      {x}' for x in lines)


def raise_faults(reports: Iterable[Report]) -> None:
    """Raise one error for all faults.

    Raises:
        DataError: There is a fault; the message has a line for each kind.
    """
    errors = [error for report in reports for error in report.errors()]
    if errors:
        raise DataError('\n'.join(errors))


def list_counts(counts: Mapping[str, float], unit: str = '') -> str:
    """Write the count of each class, or of the largest and smallest of many."""

    def join(items: Iterable[tuple[str, float]]) -> str:
        return ', '.join(f'{name} {count:.10g}{unit}' for name, count in items)

    if len(counts) <= NUM_CLASSES_SHOWN:
        return join(counts.items())
    falling = sorted(counts.items(), key=lambda item: -item[1])
    half = NUM_CLASSES_SHOWN // 4
    return (
        f'{len(counts)} classes, most: {join(falling[:half])}; '
        f'fewest: {join(falling[-half:])}'
    )


def list_sizes(sizes: Iterable[tuple[int, int]]) -> str:
    """Write the smallest and the largest (h, w), by area, of at least one."""
    by_area = sorted(set(sizes), key=lambda size: size[0] * size[1])
    ends = [f'{height} x {width}' for height, width in (by_area[0], by_area[-1])]
    return ends[0] if len(by_area) == 1 else ' to '.join(ends)
