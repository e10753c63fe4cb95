# SPDX-License-Identifier: Apache-2.0
"""Data looked at before work: what is there, what is left out and why, what is wrong.

Data set classes are made to be fast. They take annotations at their word, drop what
they cannot use, and end in a ``KeyError`` or, worse, in a model that learned something
else. :func:`check_datasets` looks once at what a config trains with, through these very
classes and at the files beside them. mmdet, mmseg and mmpretrain are imported where a
config needs them.
"""

from .checking import check_datasets
from .report import DataError, Report
from .settings import Settings
from .showing import show_datasets

__all__ = ['DataError', 'Report', 'Settings', 'check_datasets', 'show_datasets']
