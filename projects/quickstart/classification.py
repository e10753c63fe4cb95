# SPDX-License-Identifier: Apache-2.0
"""What is peculiar to the classifier of the quickstart: its table and its picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import shape_crops
from mmengine.config import Config

CONFIG = Path(__file__).parent / 'configs' / 'internimage-nano_1xb16_shapes.py'
GRID = (3, 5)  # rows and columns of the picture; a column shows one class
CELL_SIZE = (192, 216)  # (h, w) of one image in it
CAPTION_HEIGHT = 28  # below each image
RIGHT, WRONG = (0, 110, 0), (0, 0, 200)  # BGR colours of captions


def draw_predictions(config: Config, checkpoint: str, path: Path) -> int:
    """Load the checkpoint, predict on validation images, and write a picture.

    A caption gives the predicted class and its score, and is red where it is wrong.

    Returns:
        How many images were drawn.
    """
    from mmpretrain import ImageClassificationInferencer  # late, because it prints

    rows, columns = GRID
    root = Path(config.data_root) / 'val'
    classes = config.metainfo.classes[:columns]
    by_class = [sorted((root / name).iterdir())[:rows] for name in classes]
    files = [file for row in zip(*by_class, strict=False) for file in row]
    inferencer = ImageClassificationInferencer(config, pretrained=checkpoint)
    results = inferencer([str(file) for file in files], batch_size=len(files))

    height, width = CELL_SIZE[0] + CAPTION_HEIGHT, CELL_SIZE[1]
    picture = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, (file, result) in enumerate(zip(files, results, strict=True)):
        row, column = divmod(number, columns)
        y, x = row * height, column * width
        image = cv2.resize(
            cv2.imread(str(file)), CELL_SIZE[::-1], interpolation=cv2.INTER_CUBIC
        )
        picture[y : y + CELL_SIZE[0], x : x + CELL_SIZE[1]] = image
        cv2.putText(
            picture,
            f'{result["pred_class"]} {result["pred_score"]:.2f}',
            (x + 6, y + height - 8),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.6,
            RIGHT if result['pred_class'] == file.parent.name else WRONG,
            thickness=1,
            lineType=cv2.LINE_AA,
        )
    cv2.imwrite(str(path), picture)
    return len(files)


def table(metrics: dict[str, float]) -> str:
    """Format the metrics of mmpretrain's Accuracy and SingleLabelMetric, in percent."""
    names = {
        'accuracy/top1': 'top-1',
        'single-label/precision': 'precision',
        'single-label/recall': 'recall',
    }
    header = 'classes' + ''.join(f'{name:>11}' for name in names.values())
    cells = ''.join(f'{metrics[name]:11.1f}' for name in names)
    return f'{header}\n{len(shape_crops.CLASSES):7}{cells}'
