# SPDX-License-Identifier: Apache-2.0
"""A COCO annotation file as it is, before pycocotools and mmdet make sense of it.

They take the file at its word: what is missing ends in a ``KeyError`` somewhere, ids
that occur twice hide each other, NaN passes every comparison, and what refers to
nothing is dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from .report import DataError, Report, Rule, raise_faults

LISTS = ('images', 'annotations', 'categories')
SMALLEST_POLYGON = 6  # numbers: three points. mmdet drops smaller ones

LIST = Rule('a list of each of ' + ', '.join(LISTS))
OBJECT = Rule('images, annotations and categories that are JSON objects')
UNIQUE = Rule('each id once', 'give each its own: of two with one id, one is lost')
UNIQUE_NAME = Rule('each category name once', 'rename or remove one of them')
INTEGER_ID = Rule(
    'category ids, and the ids of annotations, that are integers',
    'write 1, not "1": ids are compared by value and type',
)
IMAGE_ID = Rule('an integer or a text as the id of each image')
NAME = Rule('a name for each category')
SIZE = Rule('height and width of each image as positive integers')
FILE_NAME = Rule('a file_name for each image')
IMAGE_REFERENCE = Rule(
    'an image_id for each annotation, of the type of the ids of the images',
    'ids are compared by value and type: 1 is not "1"',
)
REFERENCE = Rule(
    "annotations of the file's categories",
    'mmdet would drop them without a word; compare the ids (often they start at 0 in '
    'one place and at 1 in the other)',
)
BOX = Rule('a bbox of 4 finite numbers, x, y, width and height in pixels')
NEGATIVE = Rule(
    'boxes of positive width and height',
    'a bbox is x, y, width and height, not two corners',
)
AREA = Rule(
    'an area for each annotation, a finite number of pixels',
    'without masks it is width times height',
)
CROWD = Rule(
    'iscrowd for each annotation, 0 or 1',
    'write 0 where it is one object: the evaluation after the training needs it',
)

NO_MASK = Rule(
    'a segmentation for each object',
    'the model learns from masks; one that learns from boxes alone is Faster R-CNN '
    'or DINO',
)
BAD_POLYGON = Rule('polygons of finite numbers')
RLE_SIZE = Rule('run lengths of the size of the image (h, w)')
RLE_COUNTS = Rule('run lengths that cover the image exactly')
NO_IMAGE = 'annotations of an image that the file does not have'
TOO_FEW_POINTS = 'its mask has no polygon of 3 points or more'


def read_json(path: Path) -> Any:
    """Read an annotation file.

    Raises:
        DataError: It is not there, or not JSON; the message says which.
    """
    try:
        text = path.read_bytes().decode()
        if text.startswith('\ufeff'):
            raise DataError(
                f'{path}: expected JSON, got a byte-order mark before it; save the '
                'file as UTF-8 without one'
            )
        return json.loads(text)
    except OSError as error:
        raise DataError(
            f'{path}: expected an annotation file, got {error.strerror}'
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: expected JSON in UTF-8, got {error}') from error
    except json.JSONDecodeError as error:
        raise DataError(f'{path}: expected JSON, got in it: {error}') from error


def read_checked(path: Path, *, needs_crowd: bool) -> dict[str, Any]:
    """Read an annotation file in which nothing is missing or refers to nothing.

    Raises:
        DataError: It cannot be read, or has faults; a line for each kind.
    """
    report = Report('', str(path))
    content = read_json(path)
    check_content(
        content,
        report,
        needs_annotations=True,
        needs_file_name=True,
        needs_crowd=needs_crowd,
    )
    raise_faults([report])
    return content


def check_content(
    data: Any,
    report: Report,
    *,
    needs_annotations: bool,
    needs_file_name: bool,
    needs_crowd: bool,
) -> None:
    """Look at all images, categories and annotations of a file, one by one.

    Masks are not looked at: who does not learn from them may have any.

    Args:
        data: What the file holds.
        report: Where faults go.
        needs_annotations: Whether it must have a list of them.
        needs_file_name: Whether images are found by it; LVIS has another way.
        needs_crowd: Whether pycocotools evaluates, which reads ``iscrowd``.
    """
    for name in LISTS:
        if name == 'annotations' and not needs_annotations and name not in data:
            continue
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            report.fault(LIST, f'no list of {name} in {found}')
        elif not all(isinstance(item, dict) for item in data[name]):
            odd = next(item for item in data[name] if not isinstance(item, dict))
            report.fault(OBJECT, f'in {name} {odd!r:.60}')
    if report.faults:
        return
    categories = _check_categories(data['categories'], report)
    images = _check_images(data['images'], report, needs_file_name)
    annotations = data.get('annotations', [])
    _check_annotations(annotations, report, images, categories, needs_crowd)


def _is_integer(value: Any) -> bool:
    return (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    ) and not isinstance(value, bool)


def _are_finite(values: list[Any]) -> bool:
    try:
        # One NaN or infinity is in the sum too, which is ten times faster than a loop.
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _check_categories(
    categories: list[dict[str, Any]], report: Report
) -> set[Hashable]:
    ids: set[Hashable] = set()
    names: set[str] = set()
    for category in categories:
        identity, name = category.get('id'), category.get('name')
        if not _is_integer(identity):
            report.fault(INTEGER_ID, f'category {name!r} with {identity!r}')
            continue
        if identity in ids:
            report.fault(UNIQUE, f'category {identity} again')
            continue
        ids.add(identity)
        if not isinstance(name, str):
            report.fault(NAME, f'category {identity} with {name!r}')
        elif name in names:
            report.fault(UNIQUE_NAME, f'{name!r} again, with id {identity}')
        else:
            names.add(name)
    return ids


def _check_images(
    images: list[dict[str, Any]], report: Report, needs_file_name: bool
) -> dict[Hashable, str]:
    """Return the name of each image by its id."""
    names: dict[Hashable, str] = {}
    files: set[str] = set()
    for image in images:
        identity, name = image.get('id'), image.get('file_name')
        place = f'image {identity!r} ({name})'
        if isinstance(identity, bool) or not isinstance(identity, int | str | float):
            report.fault(IMAGE_ID, place)
            continue
        if identity in names:
            report.fault(UNIQUE, f'{place} again')
        names[identity] = str(name)
        if needs_file_name and not (isinstance(name, str) and name):
            report.fault(FILE_NAME, place)
        elif needs_file_name and name in files:
            report.warn('a file is more than one image', place)
        files.add(str(name))
        size: list[Any] = [image.get('height'), image.get('width')]
        if not all(map(_is_integer, size)) or not all(side > 0 for side in size):
            report.fault(SIZE, f'{place} with {size}')
    return names


def _check_annotations(
    annotations: list[dict[str, Any]],
    report: Report,
    images: Mapping[Hashable, str],
    categories: set[Hashable],
    needs_crowd: bool,
) -> None:
    ids: set[Hashable] = set()
    image_texts = {str(identity) for identity in images}
    for annotation in annotations:
        identity, image = annotation.get('id'), annotation.get('image_id')
        place = f'annotation {identity!r}'
        if not _is_integer(identity):
            report.fault(INTEGER_ID, f'{place} of image {image!r}')
            continue
        if identity in ids:
            report.fault(UNIQUE, f'{place} again')
        ids.add(identity)
        if isinstance(image, Hashable) and image in images:
            _check_object(
                annotation,
                report,
                f'{place} ({images[image]})',
                categories,
                needs_crowd,
            )
        elif image is None or str(image) in image_texts:
            report.fault(IMAGE_REFERENCE, f'{place} with {image!r}')
        else:
            report.leave_out(NO_IMAGE, f'{place} of image {image!r}')
    if needs_crowd and 0 in ids:
        report.warn(
            'pycocotools counts an object of id 0 as not found; ids should start at 1',
            'annotation 0',
        )


def _check_object(
    annotation: dict[str, Any],
    report: Report,
    place: str,
    categories: set[Hashable],
    needs_crowd: bool,
) -> None:
    category, crowd = annotation.get('category_id'), annotation.get('iscrowd')
    if not _is_integer(category):
        report.fault(INTEGER_ID, f'{place} with category_id {category!r}')
    elif category not in categories:
        report.fault(REFERENCE, f'{place} of category {category}')
    if crowd not in ((0, 1) if needs_crowd else (None, 0, 1)):
        report.fault(CROWD, f'{place} with {crowd!r}')
    _check_box(annotation, report, place)


def _check_box(annotation: dict[str, Any], report: Report, place: str) -> None:
    box, area = annotation.get('bbox'), annotation.get('area')
    if not isinstance(box, list) or len(box) != 4 or not _are_finite(box):
        report.fault(BOX, f'{place} with {box!r:.80}')
    elif box[2] < 0 or box[3] < 0:
        report.fault(NEGATIVE, f'{place} with {box}')
    if not _are_finite([area]):
        report.fault(AREA, f'{place} with {area!r:.40}')


def check_mask(
    segmentation: Any, size: tuple[int, int], report: Report, place: str
) -> bool:
    """Look at the mask of one object, as mmdet and pycocotools read it.

    Args:
        segmentation: As it stands in the file.
        size: (h, w) of its image.
        report: Where faults go.
        place: What to call the object.

    Returns:
        Whether mmdet ignores the object because of it, which is not a fault yet.
    """
    if not segmentation:
        report.fault(NO_MASK, f'{place} with {segmentation!r}')
        return False
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, size, report, place)
        return False
    if not isinstance(segmentation, list):
        report.fault(NO_MASK, f'{place} with {segmentation!r:.60}')
        return False
    usable = 0
    for polygon in segmentation:
        if not isinstance(polygon, list) or not _are_finite(polygon):
            report.fault(BAD_POLYGON, f'{place} with {polygon!r:.60}')
            return False
        usable += len(polygon) >= SMALLEST_POLYGON and len(polygon) % 2 == 0
    if 0 < usable < len(segmentation):
        report.leave_out('polygons of fewer than 3 points, or half a point', place)
    return usable == 0


def _check_run_lengths(
    segmentation: dict[str, Any], size: tuple[int, int], report: Report, place: str
) -> None:
    counts, stated = segmentation.get('counts'), segmentation.get('size')
    if stated != list(size):
        report.fault(RLE_SIZE, f'{place} with {stated!r}, its image is {list(size)}')
        return
    runs = _decode_runs(counts) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(_is_integer(r) and r >= 0 for r in runs)
    if not whole or sum(runs or ()) != size[0] * size[1]:
        report.fault(RLE_COUNTS, f'{place} with {counts!r:.40}')


def _decode_runs(text: str) -> list[int] | None:
    """Decode the text form of run lengths; None if it is none.

    pycocotools does not look at it, and writes beyond its memory where it is damaged.

    Source: pycocotools, common/maskApi.c, rleFrString: groups of 5 bits from the lowest
    on, a character each, 32 added to all but the last of a number; from the third run
    on, a number is the difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs
