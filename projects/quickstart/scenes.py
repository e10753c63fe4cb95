# SPDX-License-Identifier: Apache-2.0
"""Generate a small COCO-format data set: overlapping textured shapes.

A :class:`Scene` is plain data: a background and shapes listed from back to front.
:func:`render` paints it, anti-aliased, and returns beside the picture an index map that
says which shape is visible where. All labels are read from that map, so other tasks
(classification crops, segmentation label maps) can use the same scenes.

Usage: ``python scenes.py data/shapes --seed 0 --num-train 320 --num-val 48``
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import data_set
import numpy as np
from numpy.random import Generator
from pycocotools import mask as coco_mask

# Ids have gaps, as in COCO, so that code which takes an id for an index fails here.
CATEGORY_IDS = {'ellipse': 1, 'triangle': 2, 'rectangle': 4, 'star': 5, 'ring': 7}
SPLITS = ('train', 'val')
VERSION = '1.0'  # of the scenes' contents; part of what makes two data sets the same
NUM_TRAIN, NUM_VAL = 320, 48

OVERSAMPLING = 3  # index map pixels per image pixel, along each side
MIN_VISIBLE_RATE = 0.4  # shapes that others, or the border, hide further are left out
MIN_VISIBLE_AREA = 80  # px; about 9 x 9
MIN_PART_AREA = 4  # px; smaller slivers of a visible shape get no polygon
CROWD_PERIOD, EMPTY_PERIOD = (
    12,
    16,
)  # images 0, 12, ... have a crowd, 1, 17, ... nothing
NOISE_SIGMA = 5.0  # grey levels

Color = tuple[float, float, float]  # RGB, 0-255


@dataclass(frozen=True)
class Texture:
    """A pattern of two colours, defined on the whole plane.

    Args:
        pattern: One of :data:`PATTERNS`.
        colors: The two RGB colours, 0-255.
        period: Length of one repetition, in pixels.
        angle: Rotation, in radians.
    """

    pattern: str
    colors: tuple[Color, Color]
    period: float
    angle: float


@dataclass(frozen=True)
class Shape:
    """One object of a scene.

    Args:
        category: A key of :data:`CATEGORY_IDS`.
        center: ``(y, x)``, in pixels.
        radius: Half of the longer side before rotation, in pixels.
        aspect: Shorter by longer side, 0-1.
        angle: Rotation, in radians.
        texture: What fills it.
        is_crowd: Whether it is annotated together with the other crowd shapes.
    """

    category: str
    center: tuple[float, float]
    radius: float
    aspect: float
    angle: float
    texture: Texture
    is_crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything that determines one picture.

    Args:
        size: ``(h, w)``, in pixels.
        background: Texture behind the shapes.
        shapes: From back to front.
        noise_seed: Seed of the sensor noise.
    """

    size: tuple[int, int]
    background: Texture
    shapes: tuple[Shape, ...]
    noise_seed: int


def _circle(num_points: int, *radii: float) -> np.ndarray:
    """Return ``(num_points, 2)`` points around 0 whose radii alternate."""
    angle = np.arange(num_points) * (2 * math.pi / num_points)
    radius = np.resize(radii, num_points)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# Outlines, from -1 to 1; a point inside an even number of them is outside.
_OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    'ellipse': (_circle(64, 1.0),),
    'triangle': (_circle(3, 1.0),),
    'rectangle': (np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]),),
    'star': (_circle(10, 1.0, 0.42),),
    'ring': (_circle(64, 1.0), _circle(64, 0.52)),
}

# Blend of the two colours, 0-1, given the sines along and across the texture's axis.
PATTERNS = {
    'gradient': lambda u, v: 0.5 + 0.5 * u,
    'stripes': lambda u, v: u > 0,
    'checks': lambda u, v: u * v > 0,
    'dots': lambda u, v: u * v > 0.3,
    'clouds': lambda u, v: 0.5 + 0.5 * np.sin(2 * u + 1.5 * np.sin(2 * v)),
}


def outlines(shape: Shape) -> list[np.ndarray]:
    """Return the outlines of a shape as ``(K, 2)`` arrays of (x, y) in pixels."""
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    scale = shape.radius * np.array([1.0, shape.aspect])
    center = np.array(shape.center[::-1])
    return [unit * scale @ rotation + center for unit in _OUTLINES[shape.category]]


def full_area(shape: Shape) -> float:
    """Return the area of a shape that nothing hides, in square pixels."""
    areas = [cv2.contourArea(np.float32(line)) for line in outlines(shape)]
    return areas[0] - sum(areas[1:])


def index_map(scene: Scene) -> np.ndarray:
    """Say which shape is visible where.

    Returns:
        ``(h * OVERSAMPLING, w * OVERSAMPLING)`` uint8: 0 is background, ``i + 1`` is
        ``scene.shapes[i]``.
    """
    height, width = scene.size
    index = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING), np.uint8)
    shift = 4  # fillPoly reads fixed-point coordinates with this many binary places
    for number, shape in enumerate(scene.shapes, start=1):
        # Pixel i of the map covers [i, i + 1): its centre has coordinate i + 0.5.
        points = [
            np.round((line * OVERSAMPLING - 0.5) * 2**shift).astype(np.int32)
            for line in outlines(shape)
        ]
        cv2.fillPoly(index, points, number, shift=shift)
    return index


def _paint(texture: Texture, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the RGB colours of a texture at points in pixels, ``(K, 3)``."""
    cos, sin = math.cos(texture.angle), math.sin(texture.angle)
    to_phase = 2 * math.pi / texture.period
    along = np.sin(to_phase * (cos * x + sin * y))
    across = np.sin(to_phase * (cos * y - sin * x))
    blend = np.asarray(PATTERNS[texture.pattern](along, across))[:, None]
    first, second = np.float32(texture.colors)
    return first + blend * (second - first)


def render(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Paint a scene.

    Returns:
        The RGB picture, ``(h, w, 3)`` uint8, and its :func:`index_map`.
    """
    height, width = scene.size
    index = index_map(scene)
    canvas = np.empty((*index.shape, 3), np.float32)
    textures = [scene.background, *(shape.texture for shape in scene.shapes)]
    for number, texture in enumerate(textures):
        y, x = np.nonzero(index == number)
        y, x = np.float32(y) / OVERSAMPLING, np.float32(x) / OVERSAMPLING
        canvas[index == number] = _paint(texture, y, x)
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(scene.noise_seed).normal(0, NOISE_SIGMA, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8), index


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture, ``(h, w, 3)`` uint8."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])


def _sample_texture(rng: Generator, *, is_background: bool = False) -> Texture:
    """Draw a texture; backgrounds are paler and coarser, categories play no part."""
    saturation = (0.0, 0.3) if is_background else (0.5, 1.0)
    period = (40.0, 120.0) if is_background else (8.0, 40.0)
    patterns = ['gradient', 'clouds'] if is_background else list(PATTERNS)
    hsv = [
        (rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(0.3, 1.0))
        for _ in range(2)
    ]
    if not is_background:
        # Close hues keep a shape in one piece; the pattern shows in the brightness.
        hsv[1] = (hsv[0][0] + rng.uniform(-40, 40)) % 360, *hsv[1][1:]
    rgb = cv2.cvtColor(np.float32([hsv]), cv2.COLOR_HSV2RGB)[0] * 255
    first, second = (tuple(float(c) for c in color) for color in rgb)
    return Texture(
        pattern=patterns[rng.integers(len(patterns))],
        colors=(first, second),
        period=rng.uniform(*period),
        angle=rng.uniform(0, math.pi),
    )


def _sample_shape(rng: Generator, size: tuple[int, int]) -> Shape:
    """Draw a shape, most of it in a picture of ``size`` = (h, w)."""
    category = list(CATEGORY_IDS)[rng.integers(len(CATEGORY_IDS))]
    aspect = (0.35, 0.6) if category == 'rectangle' else (0.75, 1.0)
    radius = min(size) * rng.uniform(0.13, 0.3)
    y, x = (rng.uniform(radius / 2, length - radius / 2) for length in size)
    return Shape(
        category=category,
        center=(y, x),
        radius=radius,
        aspect=rng.uniform(*aspect),
        angle=rng.uniform(0, 2 * math.pi),
        texture=_sample_texture(rng),
    )


def _sample_crowd(rng: Generator, size: tuple[int, int]) -> list[Shape]:
    """Draw a cluster of tiny shapes of one category."""
    radius = min(size) * 0.03
    spread = radius * 4
    center = [rng.uniform(2 * spread, length - 2 * spread) for length in size]
    model = _sample_shape(rng, size)
    return [
        replace(
            model,
            center=(rng.normal(center[0], spread), rng.normal(center[1], spread)),
            radius=radius * rng.uniform(0.8, 1.3),
            angle=rng.uniform(0, 2 * math.pi),
            is_crowd=True,
        )
        for _ in range(rng.integers(14, 22))
    ]


def sample_scene(
    rng: Generator, *, with_crowd: bool = False, is_empty: bool = False
) -> Scene:
    """Draw a scene in which every shape shows enough of itself to be named.

    Args:
        rng: Source of all randomness.
        with_crowd: Whether a cluster of tiny shapes is added in front.
        is_empty: Whether the scene has no shape at all.
    """
    short, long = int(rng.integers(128, 176)), int(rng.integers(176, 225))
    size = (short, long) if rng.random() < 0.7 else (long, short)
    shapes = [_sample_shape(rng, size) for _ in range(rng.integers(3, 8))]
    if with_crowd:
        shapes += _sample_crowd(rng, size)
    scene = Scene(
        size=size,
        background=_sample_texture(rng, is_background=True),
        shapes=() if is_empty else tuple(shapes),
        noise_seed=int(rng.integers(2**31)),
    )
    # Leaving a shape out only uncovers others, so one pass is enough.
    counts = np.bincount(index_map(scene).ravel(), minlength=len(scene.shapes) + 1)
    visible_areas = counts[1:] / OVERSAMPLING**2
    shapes = [
        shape
        for shape, area in zip(scene.shapes, visible_areas, strict=True)
        if area >= MIN_VISIBLE_RATE * full_area(shape)
        and (shape.is_crowd or area >= MIN_VISIBLE_AREA)
    ]
    return replace(scene, shapes=tuple(shapes))


def to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Outline a mask in COCO's form, which knows several parts but no holes.

    A mask with a hole is cut in two through it, along a boundary of pixel columns.

    Args:
        mask: ``(h * OVERSAMPLING, w * OVERSAMPLING)`` bool.

    Returns:
        ``[x0, y0, x1, y1, ...]`` in image pixels for each part of at least
        ``MIN_PART_AREA``. Holes narrower than a pixel are filled.
    """
    contours, hierarchy = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    polygons = []
    for number, contour in enumerate(contours):
        is_hole = hierarchy[0][number][3] >= 0  # it has a parent
        if is_hole:
            left, right = contour[:, 0, 0].min(), contour[:, 0, 0].max()
            cut = round((left + right) / 2 / OVERSAMPLING) * OVERSAMPLING
            if left < cut < right:
                is_left = np.arange(mask.shape[1]) < cut
                return to_polygons(mask & is_left) + to_polygons(mask & ~is_left)
        elif cv2.contourArea(contour) >= MIN_PART_AREA * OVERSAMPLING**2:
            corners = cv2.approxPolyDP(contour, epsilon=1.0, closed=True)[:, 0]
            points = (corners + 0.5) / OVERSAMPLING
            polygons.append([round(float(value), 2) for value in points.ravel()])
    return polygons


def to_run_lengths(mask: np.ndarray) -> dict:
    """Encode an ``(h, w)`` bool mask as COCO's JSON does for crowds.

    Returns:
        ``counts``, the lengths of runs of 0 and 1 in turn, column by column, and
        ``size``, (h, w).
    """
    pixels = mask.ravel(order='F')
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([0, *changes, pixels.size]).tolist()
    return {'counts': [0, *counts] if pixels[0] else counts, 'size': [*mask.shape]}


def annotate(scene: Scene, index: np.ndarray) -> list[dict]:
    """Describe the visible part of each shape of a scene as COCO does.

    The area and the box are those of the mask that a reader of the segmentation gets.

    Args:
        scene: The scene.
        index: Its :func:`index_map`.

    Returns:
        Annotations without ``id`` and ``image_id``, crowds last.
    """
    height, width = scene.size
    annotations = []
    for number, shape in enumerate(scene.shapes, start=1):
        if not shape.is_crowd:
            polygons = to_polygons(index == number)
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
            annotations.append(_annotation(shape.category, polygons, rle))
    crowd = [n for n, shape in enumerate(scene.shapes, start=1) if shape.is_crowd]
    if crowd:
        center = OVERSAMPLING // 2
        mask = np.isin(index[center::OVERSAMPLING, center::OVERSAMPLING], crowd)
        runs = to_run_lengths(mask)
        rle = coco_mask.frPyObjects(runs, height, width)
        category = scene.shapes[crowd[0] - 1].category
        annotations.append(_annotation(category, runs, rle))
    return annotations


def _annotation(category: str, segmentation: list | dict, rle: dict) -> dict:
    return {
        'category_id': CATEGORY_IDS[category],
        'iscrowd': int(isinstance(segmentation, dict)),
        'segmentation': segmentation,
        'area': int(coco_mask.area(rle)),
        'bbox': coco_mask.toBbox(rle).tolist(),
    }


def sample_split(split: str, num_images: int, seed: int) -> Iterator[Scene]:
    """Draw the scenes of a split, each independent of how many there are.

    Every ``CROWD_PERIOD``-th scene, from the first, has a crowd; every
    ``EMPTY_PERIOD``-th, from the second, has no object.
    """
    for number in range(num_images):
        yield sample_scene(
            np.random.default_rng([seed, SPLITS.index(split), number]),
            with_crowd=number % CROWD_PERIOD == 0,
            is_empty=number % EMPTY_PERIOD == 1,
        )


def generate(
    root: Path, *, seed: int = 0, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> bool:
    """Write a data set, unless the same one is there already.

    Args:
        root: Folder to write to: ``annotations/instances_{train,val}.json``,
            ``train/*.jpg`` and ``val/*.jpg``.
        seed: Seed of everything.
        num_train: Number of training images, at least 2.
        num_val: Number of validation images, at least 2.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: A split has fewer than 2 images, so no room for the crowd and the
            image without an object; or ``root`` holds something else.
    """
    root = Path(root)
    num_images = {'train': num_train, 'val': num_val}
    for split, number in num_images.items():
        if number < 2:
            raise ValueError(f'num_{split}: expected at least 2 images, got {number}')
    parameters = {'version': VERSION, 'seed': seed, **num_images}
    found = {split: _read_annotations(root, split) for split in SPLITS}
    for split, data in found.items():
        if data and 'parameters' not in data['info']:
            raise ValueError(
                f'{_annotation_path(root, split)}: expected a file written by this '
                'generator, found another data set; choose another folder'
            )
    if all(_is_complete(root, split, found[split], parameters) for split in SPLITS):
        return False
    for split in SPLITS:
        _write_split(root, split, num_images[split], parameters)
    return True


def _annotation_path(root: Path, split: str) -> Path:
    return root / 'annotations' / f'instances_{split}.json'


def _read_annotations(root: Path, split: str) -> dict | None:
    path = _annotation_path(root, split)
    return json.loads(path.read_text()) if path.exists() else None


def _is_complete(root: Path, split: str, data: dict | None, parameters: dict) -> bool:
    return (
        data is not None
        and data['info']['parameters'] == parameters
        and all((root / split / i['file_name']).exists() for i in data['images'])
    )


def _write_split(root: Path, split: str, num_images: int, parameters: dict) -> None:
    """Write the images, then the annotations: a file of these means a whole split."""
    path = _annotation_path(root, split)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    scenes = sample_split(split, num_images, parameters['seed'])
    for image_id, scene in enumerate(scenes, start=1):
        picture, index = render(scene)
        height, width = scene.size
        file_name = f'{image_id:06d}.jpg'
        write_jpeg(root / split / file_name, picture)
        images.append(
            {
                'id': image_id,
                'file_name': file_name,
                'height': height,
                'width': width,
                'license': 1,
            }
        )
        for annotation in annotate(scene, index):
            ids = {'id': len(annotations) + 1, 'image_id': image_id}
            annotations.append({**ids, **annotation})
    data = {
        'info': {
            'description': 'Overlapping textured shapes, generated',
            'version': VERSION,
            'parameters': parameters,
        },
        'licenses': [
            {
                'id': 1,
                'name': 'CC0 1.0',
                'url': 'https://creativecommons.org/publicdomain/zero/1.0/',
            }
        ],
        'images': images,
        'annotations': annotations,
        'categories': [
            {'id': category_id, 'name': name, 'supercategory': 'shape'}
            for name, category_id in CATEGORY_IDS.items()
        ],
    }
    path.write_text(json.dumps(data) + '\n')


def main(argv: Sequence[str] | None = None) -> None:
    data_set.generate_from_command_line(
        __doc__.partition('\n')[0], generate, (NUM_TRAIN, NUM_VAL), argv
    )


if __name__ == '__main__':
    main()
