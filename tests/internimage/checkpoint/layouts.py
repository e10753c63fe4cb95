# SPDX-License-Identifier: Apache-2.0
"""Weights of a small InternImage, in each layout that published files have."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from internimage import InternImage
from tests.golden import fill, fill_value

SMALL = {'channels': 6, 'depths': (1, 2, 3, 1), 'groups': (1, 2, 3, 6)}


def small(**kwargs) -> InternImage:
    return InternImage({**SMALL, 'layer_scale': 1.0, **kwargs})


def weights(**kwargs) -> dict[str, Tensor]:
    return fill(small(**kwargs)).state_dict()


def others(*names: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(fill_value(name, (3,))) for name in names}


def classification(backbone: dict[str, Tensor]) -> dict:
    head = others('conv_head.0.weight', 'conv_head.1.0.running_var', 'head.weight')
    return {'model': {**backbone, **head}, 'model_ema': {}, 'epoch': 3}


def detection(backbone: dict[str, Tensor]) -> dict:
    named = {f'backbone.{name}': value for name, value in backbone.items()}
    heads = others('neck.fpn_convs.0.conv.weight', 'rpn_head.rpn_cls.bias')
    return {'meta': {'epoch': 12}, 'state_dict': OrderedDict(**named, **heads)}


def hugging_face(backbone: dict[str, Tensor]) -> dict:
    named = {
        'model.' + name.replace('gamma', 'layer_scale'): value
        for name, value in backbone.items()
    }
    return {**named, **others('model.head.weight')}


def data_parallel(backbone: dict[str, Tensor]) -> dict:
    inner = classification(backbone)['model']
    return {'module': {f'module.{name}': value for name, value in inner.items()}}


LAYOUTS = {
    layout.__name__: layout
    for layout in (classification, detection, hugging_face, data_parallel, dict)
}
every_layout = pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
