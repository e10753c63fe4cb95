# SPDX-License-Identifier: Apache-2.0
"""mmseg's data sets: which images are read, and what their masks say."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .pictures import (
    IMAGE_SUFFIXES,
    Listing,
    displayed_size,
    is_remote,
    read_header,
    sample,
)
from .report import Report, Rule, list_counts, list_sizes
from .settings import Settings, Use

HIGHEST = 255  # that a mask can hold: mmseg reads it as 8 bits

READABLE = Rule('images and masks that mmseg can read')
FOLDERS = Rule('a folder of images and one of masks')
IMAGES = Rule('images')
MASKS = Rule('a mask of the same name for each image')
SUFFIX = Rule(
    'images of one suffix',
    'mmseg reads those of `img_suffix` alone, in this spelling: rename or convert them',
)
SAME_SIZE = Rule(
    'masks of the size (h, w) of their images, as they are displayed',
    'an EXIF tag that turns an image counts: mmseg turns the image and not the mask',
)
ONE_CHANNEL = Rule(
    'masks of one channel, the index of a class in each pixel',
    'write the indices in place of the colours',
)
EIGHT_BITS = Rule(
    f'masks of values up to {HIGHEST}', 'mmseg would keep their last 8 bits'
)
INDICES = Rule('indices of classes in the masks')
SOME_CLASS = Rule(
    'masks in which something is labelled',
    'if the ignored value is your second class, write 1 in its place',
)
TURNED = (
    'images that an EXIF tag turns or mirrors within the same size; whether their '
    'masks are as displayed, which mmseg needs, cannot be told'
)


def can_look(dataset: Any) -> bool:
    """Say whether a data set pairs images with masks in mmseg's way."""
    from mmseg.datasets import BaseSegDataset

    return isinstance(dataset, BaseSegDataset)


def look(dataset: Any, use: Use, settings: Settings, report: Report) -> None:
    """Look at the files of a ``BaseSegDataset`` that is not initialised yet.

    Args:
        dataset: The data set.
        use: What it is for.
        settings: How closely to look.
        report: Where to write what is found.
    """
    folders = [dataset.data_prefix.get(name) for name in ('img_path', 'seg_map_path')]
    if is_remote(folders[0] or ''):
        report.warn('not looked at, as it is not on this machine', str(folders[0]))
        return
    for folder in filter(None, folders):
        if not os.path.isdir(folder):
            report.fault(FOLDERS, f'none called {folder}')
    if report.faults:
        return
    try:
        records = dataset.load_data_list()
    except Exception as error:
        report.fault(READABLE, f'{type(error).__name__}: {error}')
        return
    if not os.path.isfile(dataset.ann_file):
        _look_for_others(dataset, records, report)
    if not records:
        if not report.faults:
            report.fault(IMAGES, f'none that ends with {dataset.img_suffix}')
        return
    listing = Listing()
    pairs = []
    for record in records:
        image, mask = record['img_path'], record.get('seg_map_path')
        if not listing.has(image):
            report.fault(IMAGES, f'no {image}')
        elif mask and not listing.has(mask):
            alike = listing.alike(mask)
            report.fault(MASKS, f'no {mask}' + (f', but {alike}' if alike else ''))
        else:
            pairs.append(record)
    _look_for_spare_masks(dataset, records, listing, report)
    report.num_images = len(records)
    opened = sample(pairs, settings.max_opened)
    _Look(dataset, use, report).at(opened, len(records))


def _look_for_others(
    dataset: Any, records: Sequence[dict[str, Any]], report: Report
) -> None:
    """Find images beside those that end with ``img_suffix``, which nothing reads.

    They are a fault where they belong to the set: a mask of that name is there, or
    the suffix is the same but for its case.
    """
    suffix = dataset.img_suffix
    folder, masks = (
        dataset.data_prefix.get(name) for name in ('img_path', 'seg_map_path')
    )
    read = {os.path.normpath(record['img_path']) for record in records}
    listing = Listing()
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = os.path.normpath(os.path.join(parent, name))
            stem, own = os.path.splitext(path)
            hidden = name.startswith('.')  # mmengine skips them
            if hidden or own.lower() not in IMAGE_SUFFIXES or path in read:
                continue
            mask = masks and os.path.join(
                masks, os.path.relpath(stem, folder) + dataset.seg_map_suffix
            )
            if name.lower().endswith(suffix.lower()) or (mask and listing.has(mask)):
                report.fault(SUFFIX, f'{path} beside {len(read)} of {suffix}')
            else:
                report.leave_out('images of another suffix than `img_suffix`', path)


def _look_for_spare_masks(
    dataset: Any,
    records: Sequence[dict[str, Any]],
    listing: Listing,
    report: Report,
) -> None:
    used = {record.get('seg_map_path') for record in records}
    if os.path.isfile(dataset.ann_file):
        return  # it chooses
    for folder in sorted({os.path.dirname(path) for path in used if path}):
        for name in sorted(listing.names(folder)):
            path = os.path.join(folder, name)
            if name.endswith(dataset.seg_map_suffix) and path not in used:
                report.leave_out('masks without an image', path)


class _Look:
    """What is done with pairs of images and masks, one after the other."""

    def __init__(self, dataset: Any, use: Use, report: Report) -> None:
        self.dataset, self.use, self.report = dataset, use, report
        self.classes = list(dataset.metainfo.get('classes') or ())
        self.pixels: Counter[int] = Counter()
        self.sizes: list[tuple[int, int]] = []

    def at(self, records: Sequence[dict[str, Any]], total: int) -> None:
        report = self.report
        for record in records:
            self._look_at_pair(record)
        if self.sizes:
            looked = '' if len(records) == total else f' ({len(records)} opened)'
            report.summary.append(
                f'{total} images{looked} of {list_sizes(self.sizes)} pixels (h x w)'
            )
        if self.pixels:
            self._count()

    def _look_at_pair(self, record: dict[str, Any]) -> None:
        path, mask = record['img_path'], record.get('seg_map_path')
        try:
            stored, orientation = read_header(path)
        except OSError as error:
            self.report.fault(IMAGES, f'{path}, which cannot be opened: {error}')
            return
        turned = orientation if self.use.heeds_orientation else 1
        size = displayed_size(stored, turned)
        self.sizes.append(size)
        if not mask or self.use.load_annotations is None:
            return
        labels = self._load(record)
        if labels is None:
            return
        if labels.ndim != 2:
            channels = f'{labels.shape[-1]} channels'
            self.report.fault(ONE_CHANNEL, f'{channels} in {mask}')
        elif labels.shape != size:
            self.report.fault(SAME_SIZE, f'{labels.shape} for {size} in {mask}')
        else:
            if turned > 1 and (turned < 5 or size == size[::-1]):
                self.report.warn(TURNED, path)
            values, counts = np.unique(labels, return_counts=True)
            self.pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            self._look_at_labels(values.tolist(), mask)

    def _load(self, record: dict[str, Any]) -> np.ndarray | None:
        """Return the labels as the model gets them, or report that there are none."""
        assert self.use.load_annotations is not None
        mask = record['seg_map_path']
        try:
            with Image.open(mask) as image:
                if image.mode[0] in 'IF' and np.asarray(image).max() > HIGHEST:
                    self.report.fault(EIGHT_BITS, mask)
                    return None
            results = self.use.load_annotations({**record, 'seg_fields': []})
        except Exception as error:
            self.report.fault(READABLE, f'{mask}: {type(error).__name__}: {error}')
            return None
        return results['gt_seg_map']

    def _look_at_labels(self, values: Sequence[int], mask: str) -> None:
        num_classes = len(self.classes)
        highest = max((v for v in values if v != self.dataset.ignore_index), default=0)
        if num_classes and highest >= num_classes:
            names = ' '.join(self.classes[:8])
            rule = Rule(
                f'indices from 0 to {num_classes - 1}, for {names}, and '
                f'{self.dataset.ignore_index} for what is ignored',
                'name all classes, in the order of their indices',
            )
            self.report.fault(rule, f'{highest} in {mask}')

    def _count(self) -> None:
        total = sum(self.pixels.values())
        ignored = self.pixels[self.dataset.ignore_index]
        self.report.labels = tuple(self.classes)
        for index, name in enumerate(self.classes):
            self.report.counts[name] = self.pixels[index]
        if ignored == total:
            self.report.fault(
                SOME_CLASS, f'only {self.dataset.ignore_index}, which is ignored'
            )
            return
        rates = {
            name: float(f'{100 * count / total:.2g}')
            for name, count in self.report.counts.items()
        }
        self.report.summary.append(
            f'pixels: {list_counts(rates, " %")}, ignored {100 * ignored / total:.2g} %'
        )
