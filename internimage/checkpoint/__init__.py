# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: read safely, by the names that our models use.

Published weights come in several layouts: a classification model's parameters bare, a
detector's or segmentor's with ``backbone.`` before them, the Hugging Face port's with
``model.``; wrapped by the program that saved them or not. :func:`convert_published`
maps them all. ``import internimage`` puts :func:`convert_loaded` behind every loader of
mmengine, so that a published file can be given wherever a checkpoint can.
"""

from .backbones import backbone_state_dict, load_pretrained
from .conversion import convert_loaded
from .key_maps import convert_published
from .loaders import register_safe_loaders
from .reading import load_checkpoint_file
from .reporting import report_loads

__all__ = [
    'backbone_state_dict',
    'convert_loaded',
    'convert_published',
    'load_checkpoint_file',
    'load_pretrained',
    'register_safe_loaders',
    'report_loads',
]
