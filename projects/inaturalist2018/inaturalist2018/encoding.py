# SPDX-License-Identifier: Apache-2.0
"""Date and place of an observation, as numbers for the model.

Source: OpenGVLab/InternImage@31c962d, classification/dataset/cached_image_folder.py,
``get_temporal_info`` and ``get_spatial_info``.
"""

import math
import re
from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

#: How many numbers :func:`encode_date` and :func:`encode_place` return.
DATE_SIZE, PLACE_SIZE = 4, 3


def encode_date(date: str | None) -> list[float]:
    """Put the month on a circle.

    Args:
        date: Begins with year, month and day: '2017-04-30', with or without a time.

    Returns:
        Sine and cosine of ``month / 12`` of a full turn, then two zeros: the published
        model has room for the hour, but never gets it. Four zeros if there is no date,
        or one that begins otherwise.
    """
    match = re.match(r'\s*\d+-(\d+)-\d+', date or '')
    if match is None:
        return [0.0] * DATE_SIZE
    angle = 2 * math.pi * int(match[1]) / 12
    return [math.sin(angle), math.cos(angle), 0.0, 0.0]


def encode_place(latitude: float | None, longitude: float | None) -> list[float]:
    """Put a place on the unit sphere.

    Args:
        latitude: Degrees, positive in the north.
        longitude: Degrees, positive in the east.

    Returns:
        x towards (0 N, 0 E), y towards (0 N, 90 E), z towards the North Pole. Three
        zeros if either angle is unknown. An angle of exactly 0 counts as unknown:
        the published weights were trained so.
    """
    if not latitude or not longitude:
        return [0.0] * PLACE_SIZE
    latitude, longitude = math.radians(latitude), math.radians(longitude)
    return [
        math.cos(latitude) * math.cos(longitude),
        math.cos(latitude) * math.sin(longitude),
        math.sin(latitude),
    ]


@TRANSFORMS.register_module()
class EncodeDateAndPlace(BaseTransform):
    """Encode what is known of date and place as ``metadata``.

    It reads the keys ``date``, ``latitude`` and ``longitude`` as :func:`encode_date`
    and :func:`encode_place` take them; what is absent or None is unknown. It adds the
    key ``metadata``, a float32 tensor of 4 numbers for the date and 3 for the place.
    ``PackInputs(algorithm_keys=('metadata',))`` hands that on to the model.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        date = encode_date(results.get('date'))
        place = encode_place(results.get('latitude'), results.get('longitude'))
        results['metadata'] = torch.tensor(date + place)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
