# SPDX-License-Identifier: Apache-2.0
"""mmdet's COCO data sets: which objects reach the model, and which do not, and why."""

from __future__ import annotations

import contextlib
import copy
import io
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from . import coco
from .pictures import Listing, displayed_size, is_remote, read_header, sample
from .report import Report, Rule, list_counts, list_sizes
from .settings import Settings, Use

READABLE = Rule('an annotation file that mmdet can read')
CLASSES = Rule("the file's categories in the order of `classes`")
FILE = Rule('the images of the file')
SAME_SIZE = Rule(
    'images of the size (h, w) that the file gives, as they are displayed',
    'an EXIF tag that turns an image counts: write the sizes that a viewer shows',
)
LOADABLE = Rule('annotations that mmdet can load')
OBJECTS = Rule('objects to learn from or to measure with')

# Reasons that a config or an annotator wants.
NOT_A_CLASS = 'objects of categories that are not in `classes`'
MARKED = 'objects that are marked with `ignore`'
# Reasons that are slips; a few of them are in every large set.
OUTSIDE = 'boxes outside of the image'
TINY = 'boxes narrower or lower than 1 pixel'
NO_AREA = 'objects of area 0 or less'
NO_MASK = f'objects ignored because {coco.TOO_FEW_POINTS}'
UNKNOWN = 'objects that the data set class drops'
# What it keeps.
BEYOND = (
    'boxes that reach beyond their image by more than a pixel (bbox is x, y, width, '
    'height)'
)
CROWD = 'crowd'  # in place of a class: regions that are neither learned nor measured


def can_look(dataset: Any) -> bool:
    """Say whether a data set reads COCO's format in mmdet's own way."""
    from mmdet.datasets import CocoDataset

    return (
        isinstance(dataset, CocoDataset)
        and type(dataset).parse_data_info is CocoDataset.parse_data_info
    )


def look(dataset: Any, use: Use, settings: Settings, report: Report) -> None:
    """Look at all annotations of a ``CocoDataset`` that is not initialised yet.

    Args:
        dataset: The data set.
        use: What it is for.
        settings: How closely to look.
        report: Where to write what is found.
    """
    from mmdet.datasets import CocoDataset

    if is_remote(dataset.ann_file):
        report.warn('not looked at, as it is not on this machine', dataset.ann_file)
        return
    path = Path(dataset.ann_file)
    api = None
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            # One file of COCO takes seconds to read: it is read once, by the library.
            api = dataset.COCOAPI(str(path))
            content = api.dataset
        except Exception as error:
            reason = f'{type(error).__name__}: {error}'
            if isinstance(error, UnicodeDecodeError):
                reason += '; set PYTHONUTF8=1, or a locale of UTF-8'
            content = coco.read_json(path)
        reads_as_coco = type(dataset).load_data_list is CocoDataset.load_data_list
        coco.check_content(
            content,
            report,
            needs_annotations=use.objects,
            needs_file_name=reads_as_coco,
            needs_crowd=use.pycocotools,
        )
        if report.faults:
            return
        if api is None:
            report.fault(READABLE, reason)
            return
        dataset.COCOAPI = lambda _: api
        try:
            records = dataset.load_data_list()
        except Exception as error:
            report.fault(READABLE, f'{type(error).__name__}: {error}')
            return
    _check_classes(dataset, api, report)
    if not report.faults:
        _Look(dataset, api, use, settings, report).at(records)


def _check_classes(dataset: Any, api: Any, report: Report) -> None:
    """See that a label means the class of that place.

    The data set numbers the categories in the order of the file, and the names are
    those of ``classes`` in the order of the config.
    """
    classes = list(dataset.metainfo['classes'])
    names = {identity: category['name'] for identity, category in api.cats.items()}
    numbered = [names[identity] for identity in dataset.cat_ids]
    if numbered == classes:
        return
    others = [name for name in names.values() if name not in classes]
    missing = [name for name in classes if name not in names.values()]
    if missing:
        near = get_close_matches(missing[0], others, n=1)
        advice = f'did you mean {near[0]!r}? ' if near else ''
        place = (
            f'no {", ".join(map(repr, missing[:3]))} among its {len(names)} categories '
            f'({", ".join(map(repr, list(names.values())[:10]))}); {advice}'
            'each class is a category of the file, written alike'
        )
    else:
        place = f'{classes[:10]}; write classes={tuple(numbered)}'
    report.fault(CLASSES, place)


def _find_slip(annotation: dict[str, Any], height: int, width: int) -> str:
    """Say why mmdet drops an annotation of a class."""
    x, y, w, h = annotation['bbox']
    if w < 1 or h < 1:
        return TINY
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return OUTSIDE
    return NO_AREA if annotation['area'] <= 0 else UNKNOWN


class _Look:
    """What is done with the records of a data set, one image after the other."""

    def __init__(
        self, dataset: Any, api: Any, use: Use, settings: Settings, report: Report
    ) -> None:
        self.dataset, self.api = dataset, api
        self.use, self.settings, self.report = use, settings, report
        self.names = {key: value['name'] for key, value in api.cats.items()}
        self.names[CROWD] = CROWD
        self.given: Counter[str] = Counter()  # objects of the classes, by class
        self.kept: Counter[str] = Counter()
        self.slips: Counter[str] = Counter()  # left out, by reason

    def at(self, records: Sequence[dict[str, Any]]) -> None:
        report, classes = self.report, self.dataset.metainfo['classes']
        for record in records:
            self._look_at_image(record)
        self.dataset.data_list = list(records)
        used = self.dataset.filter_data()
        report.labels = tuple(classes)
        for name in classes:
            report.counts[name] = self.kept[name]
        crowds = self.kept.pop(CROWD, 0)
        report.num_images = len(used)
        sizes = [(record['height'], record['width']) for record in records]
        if sizes:
            report.summary.append(
                f'{len(used)} images of {list_sizes(sizes)} pixels (h x w), '
                f'{sum(self.kept.values())} objects: {list_counts(report.counts)}'
                + (f'; {crowds} crowds' if crowds else '')
            )
        if len(used) < len(records):
            kept = {id(record) for record in used}
            for record in records:
                if id(record) not in kept:
                    report.leave_out(
                        'images without an object of the classes, or too small for '
                        'min_size',
                        Path(record['img_path']).name,
                    )
        self._judge(len(used))
        self._look_at_files(used)

    def _look_at_image(self, record: dict[str, Any]) -> None:
        annotations = self.api.imgToAnns.get(record['img_id'], [])
        file = Path(record['img_path']).name
        kept = annotations
        if len(record['instances']) != len(annotations):
            kept = [a for a in annotations if self._is_kept(a, record, file)]
        height, width = record['height'], record['width']
        for annotation in kept:
            place = f'annotation {annotation["id"]} ({file})'
            self._count(self.given, annotation)
            if self.use.masks and coco.check_mask(
                annotation.get('segmentation'), (height, width), self.report, place
            ):
                self._slip(NO_MASK, place)
                continue
            self._count(self.kept, annotation)
            x, y, w, h = annotation['bbox']
            if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
                self.report.warn(BEYOND, f'{place} with {annotation["bbox"]}')

    def _count(self, counts: Counter[str], annotation: dict[str, Any]) -> None:
        name = CROWD if annotation.get('iscrowd') else annotation['category_id']
        counts[self.names[name]] += 1

    def _is_kept(
        self, annotation: dict[str, Any], record: dict[str, Any], file: str
    ) -> bool:
        """Ask the data set about one annotation, and report why it drops it."""
        image = {**self.api.imgs[record['img_id']], 'img_id': record['img_id']}
        parsed = self.dataset.parse_data_info(
            {'raw_img_info': image, 'raw_ann_info': [annotation]}
        )
        if parsed['instances']:
            return True
        place = f'annotation {annotation["id"]} ({file})'
        name = self.names[annotation['category_id']]
        if annotation.get('ignore'):
            self.report.leave_out(MARKED, place)
        elif name not in self.dataset.metainfo['classes']:
            self.report.leave_out(NOT_A_CLASS, f'{place}, a {name}')
        else:
            self._count(self.given, annotation)
            reason = _find_slip(annotation, record['height'], record['width'])
            details = f'{annotation["bbox"]}, area {annotation["area"]}'
            self._slip(reason, f'{place} with {details}')
        return False

    def _slip(self, reason: str, place: str) -> None:
        self.slips[reason] += 1
        self.report.leave_out(reason, place)

    def _judge(self, num_images: int) -> None:
        """Decide whether what is left is enough."""
        report, given = self.report, sum(self.given.values())
        lost = sum(self.slips.values())
        gone = [n for n in self.given if n != CROWD and not self.kept[n]]
        if lost > self.settings.max_left_out_rate * given or (lost and gone):
            for reason in self.slips:
                tally = report.left_out.pop(reason)
                report.faults[
                    Rule(
                        f'no {reason} (mmdet leaves them out without a word; few are '
                        f'tolerated, here {lost} of {given})',
                        ADVICE.get(reason, ''),
                    )
                ] = tally
        elif not num_images or (self.use.objects and not sum(self.kept.values())):
            found = [f'{r}: {tally}' for r, tally in report.left_out.items()]
            why = f' ({"; ".join(found)})' if found else ''
            report.fault(OBJECTS, f'none in {num_images} images{why}')

    def _look_at_files(self, records: Sequence[dict[str, Any]]) -> None:
        if not records or is_remote(records[0]['img_path']):
            return
        listing = Listing()
        there = []
        for record in records:
            path = record['img_path']
            if listing.has(path):
                there.append(record)
                continue
            alike = listing.alike(path)
            self.report.fault(FILE, f'no {path}' + (f', but {alike}' if alike else ''))
        # Damaged masks would end the process, not only fail to load.
        load = None if self.report.faults else self.use.load_annotations
        for record in sample(there, self.settings.max_opened):
            self._open(record)
            if load is not None:
                self._load(record, load)

    def _open(self, record: dict[str, Any]) -> None:
        path, size = record['img_path'], (record['height'], record['width'])
        try:
            stored, orientation = read_header(path)
        except OSError as error:
            self.report.fault(FILE, f'{path}, which cannot be opened: {error}')
            return
        turned = orientation if self.use.heeds_orientation else 1
        displayed = displayed_size(stored, turned)
        if displayed != size:
            name = Path(path).name
            self.report.fault(SAME_SIZE, f'{name} of {displayed}, in the file {size}')
        elif turned > 1:
            self.report.warn(
                'images that an EXIF tag turns or mirrors; the boxes have to be drawn '
                'on what a viewer shows',
                Path(path).name,
            )

    def _load(self, record: dict[str, Any], load: Callable[[Any], Any]) -> None:
        results = copy.deepcopy(record)
        results['ori_shape'] = results['img_shape'] = (
            record['height'],
            record['width'],
        )
        try:
            load(results)
        except Exception as error:
            self.report.fault(
                LOADABLE,
                f'{type(error).__name__}: {error} for {Path(record["img_path"]).name}',
            )


ADVICE = {
    NO_AREA: 'write the area of the mask or, without masks, width times height',
    OUTSIDE: 'a bbox is x, y, width and height in pixels of the image in the file',
    NO_MASK: 'draw it again, or take a model that learns from boxes alone',
}
