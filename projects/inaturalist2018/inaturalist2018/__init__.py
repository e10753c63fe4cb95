# SPDX-License-Identifier: Apache-2.0
"""The species of an observation from image, date and place (iNaturalist 2018).

Configs name this package in ``custom_imports``. Importing it needs mmpretrain.
"""

from .dataset import INaturalist2018
from .encoding import EncodeDateAndPlace, encode_date, encode_place
from .head import MetaLinearClsHead

__all__ = [
    'EncodeDateAndPlace',
    'INaturalist2018',
    'MetaLinearClsHead',
    'encode_date',
    'encode_place',
]
