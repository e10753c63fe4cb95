# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's folders and lists of images: which label means what."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from .pictures import IMAGE_SUFFIXES, Listing, is_remote, read_header, sample
from .report import Report, Rule, list_counts, list_sizes
from .settings import Settings, Use

READABLE = Rule('images that mmpretrain can read')
FILE = Rule('images that are there')
ORDER = Rule(
    '`classes` in the order of the folders, sorted by name',
    'mmpretrain numbers the folders in that order, and does not compare the names',
)
NAMES = Rule('a folder for each class, with the name of the class')
LABELS = Rule('labels from 0 to the number of classes less 1')
HIDDEN = Rule(
    'folders of classes alone',
    'mmpretrain takes each folder for a class, also hidden ones: delete it',
)


def can_look(dataset: Any) -> bool:
    """Say whether a data set reads folders of classes, or a list of files."""
    from mmpretrain.datasets import CustomDataset

    return (
        isinstance(dataset, CustomDataset)
        and type(dataset).load_data_list is CustomDataset.load_data_list
        and dataset.with_label
    )


def look(dataset: Any, use: Use, settings: Settings, report: Report) -> None:
    """Look at the files of a ``CustomDataset`` that is not initialised yet.

    Args:
        dataset: The data set.
        use: What it is for.
        settings: How closely to look.
        report: Where to write what is found.
    """
    root = dataset.img_prefix
    if is_remote(root):
        report.warn('not looked at, as it is not on this machine', root)
        return
    in_folders = not dataset.ann_file
    if in_folders and not _check_folders(dataset, report):
        return
    try:
        records = dataset.load_data_list()
    except Exception as error:
        report.fault(READABLE, f'{type(error).__name__}: {error}')
        return
    report.num_images = len(records)
    classes = dataset.metainfo.get('classes')
    labels = Counter(record['gt_label'] for record in records)
    names = list(classes or map(str, range(max(labels, default=0) + 1)))
    odd = [label for label in labels if not 0 <= label < len(names)]
    if odd:
        report.fault(LABELS, f'{odd[0]}, and there are {len(names)} classes')
        return
    for label, name in enumerate(names):
        # ImageNet has two classes called crane.
        unique = f'{name} ({label})' if name in report.counts else name
        report.counts[unique] = labels[label]
    if in_folders:
        report.labels = tuple(dataset.folder_to_idx)
        _look_for_others(dataset, report)
    listing = Listing()
    there = []
    for record in records:
        if listing.has(record['img_path']):
            there.append(record['img_path'])
        else:
            report.fault(FILE, f'no {record["img_path"]}')
    sizes = []
    for path in sample(there, settings.max_opened):
        try:
            sizes.append(read_header(path)[0])
        except OSError as error:
            report.fault(FILE, f'{path}, which cannot be opened: {error}')
    if sizes:
        report.summary.append(
            f'{len(records)} images of {list_sizes(sizes)} pixels (h x w): '
            f'{list_counts(report.counts)}'
        )


def _check_folders(dataset: Any, report: Report) -> bool:
    """Compare the folders with the names of the classes, where these are alike.

    Those of ImageNet are not: n01440764 is a tench.
    """
    from mmpretrain.datasets.custom import find_folders

    try:
        folders, _ = find_folders(dataset.img_prefix)
    except OSError as error:
        report.fault(READABLE, f'{dataset.img_prefix}: {error.strerror}')
        return False
    for name in folders:
        if name.startswith('.'):
            report.fault(HIDDEN, name)
    if report.faults:
        return False
    classes = list(dataset.CLASSES or folders)
    common = set(folders) & set(classes)
    extra = [name for name in folders if name not in common]
    missing = [name for name in classes if name not in common]
    if len(folders) != len(classes) or (common and missing):
        place = f'{len(folders)} folders for {len(classes)} classes'
        if missing:
            place += f', none called {", ".join(missing[:3])}'
        if extra:
            place += f', others called {", ".join(extra[:3])}'
        report.fault(NAMES, place)
    elif common and folders != classes:
        report.fault(ORDER, f'{classes[:10]}; write classes={tuple(folders)}')
    return not report.faults


def _look_for_others(dataset: Any, report: Report) -> None:
    """Count the files that are not read, and those that no class has."""
    for parent, _, names in os.walk(dataset.img_prefix):
        outside = Path(parent) == Path(dataset.img_prefix)
        for name in sorted(names):
            path = os.path.join(parent, name)
            if name.startswith('.'):
                continue
            if not dataset.is_valid_file(name):
                what = (
                    'images of a suffix that is not read'
                    if Path(name).suffix.lower() in IMAGE_SUFFIXES
                    else 'files that are not images'
                )
                report.leave_out(what, path)
            elif outside:
                report.leave_out('images that are in no folder of a class', path)
