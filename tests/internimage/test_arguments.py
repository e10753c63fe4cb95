# SPDX-License-Identifier: Apache-2.0
"""An argument that means nothing is refused at once, and by its name."""

import re

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

from internimage import (
    CBInternImage,
    InternImage,
    LayerDecayOptimWrapperConstructor,
)
from internimage.architecture import Architecture
from ops_dcnv3 import DCNv3, dcnv3

SMALL = {'channels': 6, 'depths': (1, 2, 4, 1), 'groups': (1, 2, 3, 6)}
TWO = ((0, 1, 2, 3), (1, 2, 3))
NAN, INF = float('nan'), float('inf')

# What each kind of argument is not.
NO_COUNT = [True, 1.0, '1', None, NAN, [1], 0, -1, np.True_, np.float64(1)]
NO_FLAG = [0, 1, 'True', None, 1.0, [True]]
NO_NAME = [None, True, 0, ['LN'], {'type': 'LN'}, '', 'gelu', 'ln']
NO_NUMBER = [True, '1', None, NAN, INF, -INF, [1.0], 1j]
NO_INTEGERS = [
    4,
    '1241',
    None,
    {},
    {1, 2},
    (),
    (True, 2, 4, 1),
    (1.0, 2, 4, 1),
    ('1', 2, 4, 1),
    (None, 2, 4, 1),
    np.ones(4),
    np.array(4),
    torch.ones(4),
]

ARCHITECTURE = {
    'core_op': [*NO_NAME, 'DCNv4', 'DCNv3_pytorch'],
    'channels': [*NO_COUNT, 9, '8', 7, 6.0],
    'depths': [*NO_INTEGERS, (0, 2, 4, 1), (-1, 2, 4, 1)],
    'groups': [*NO_INTEGERS, (0, 2, 3, 6), (1, 2, 3), (1, 5, 3, 6)],
    'mlp_ratio': [*NO_NUMBER, 0, -4.0, 0.01],
    'norm_layer': [*NO_NAME, 'GN'],
    'act_layer': [*NO_NAME, 'Tanh'],
    'layer_scale': [*(x for x in NO_NUMBER if x is not None), -1e-5, '1e-5', 'None'],
    'offset_scale': [*NO_NUMBER, 0, -2.0],
    'post_norm': NO_FLAG,
    'dw_kernel_size': [*(x for x in NO_COUNT if x is not None), 4, (5, 5)],
    'res_post_norm': NO_FLAG,
    'level2_post_norm': NO_FLAG,
    'level2_post_norm_block_ids': [4, '1', [1.0], [True], [1], {}, [], {0, 1}],
    'center_feature_scale': NO_FLAG,
    'remove_center': NO_FLAG,
}
BACKBONE = {
    'in_channels': NO_COUNT,
    'frozen_stages': [True, 1.0, '1', None, [1], NAN, -2, 5],
    'drop_path_rate': [*NO_NUMBER, 1, 1.0, -0.1],
    'drop_path_type': [*NO_NAME, 'cosine'],
    'with_cp': NO_FLAG,
    'recompute': NO_FLAG,
    'init_cfg': [0, '', 'x.pth', True, {'checkpoint': 'x.pth'}, ['Pretrained'], [{}]],
    'arch': [None, 4, True, [('channels', 6)], 'medium', '', 'T', b'tiny'],
    'pretrained': ['open-mmlab://resnet50_v1c', True, ''],
}
LEVELS = {
    'out_indices': [
        *(1, 1.0, '3', None, True, (), [], {}, {0, 1}),
        *((0, 0), (1, 0), (1.0,), (True,), ('0',), (None,), (-1,), (4,), (0, 1, 4)),
    ]
}
BRANCHES = {
    'out_indices': [
        *(1, None, '01', (0, 1, 2, 3), (), (TWO[0],), (*TWO, TWO[0]), {}),
        *((levels, TWO[1]) for levels in LEVELS['out_indices']),
        *((TWO[0], levels) for levels in LEVELS['out_indices']),
    ]
}
NO_PAIR = [True, 1.0, '3', None, (), (1, 2, 3), (True, 1), (1.0, 1), NAN, -1]
LAYER = {
    'channels': [*NO_COUNT, 7],
    'kernel_size': [*NO_PAIR, 0],
    'dw_kernel_size': [*(x for x in NO_PAIR if x is not None), 0, 4],
    'stride': [*NO_PAIR, 0],
    'padding': NO_PAIR,
    'dilation': [*NO_PAIR, 0],
    'groups': NO_COUNT,
    'offset_scale': [*NO_NUMBER, 0, -2.0],
    'act_layer': [*NO_NAME, 'Tanh'],
    'norm_layer': [*NO_NAME, 'GN'],
    'center_feature_scale': NO_FLAG,
    'remove_center': NO_FLAG,
    'recompute': NO_FLAG,
}
LAYER_OF_TENSORS = {
    'kernel_size': LAYER['kernel_size'],
    'stride': LAYER['stride'],
    'padding': LAYER['padding'],
    'dilation': LAYER['dilation'],
    'groups': LAYER['groups'],
    'offset_scale': NO_NUMBER,
    'remove_center': NO_FLAG,
}
LAYER_DECAY = {
    'layer_decay_rate': [*NO_NUMBER, 0, -0.9, 1.1],
    'backbone_small_lr': NO_FLAG,
    'dino_head': NO_FLAG,
    'offset_lr_scale': [*NO_NUMBER, -1.0],
    'dcn_offset_lr_scale': [*NO_NUMBER, -1.0],
    'paramwise_cfg': [1, 'x', [('layer_decay_rate', 0.9)], True],
    'optimizer.lr': [x for x in (*NO_NUMBER, -1.0) if x is not None],
    'optimizer.weight_decay': [x for x in (*NO_NUMBER, -1.0) if x is not None],
}


def build_layer_decay(**kwargs):
    optimizer = dict(type='AdamW', lr=0.1, weight_decay=0.05)
    for name in ('lr', 'weight_decay'):
        if f'optimizer.{name}' in kwargs:
            optimizer[name] = kwargs.pop(f'optimizer.{name}')
    paramwise_cfg = kwargs.pop('paramwise_cfg', kwargs)
    return LayerDecayOptimWrapperConstructor(dict(optimizer=optimizer), paramwise_cfg)


def call_dcnv3(**kwargs):
    x = torch.zeros(1, 3, 5, 6)
    return dcnv3(
        x, x.new_zeros(1, 3, 5, 18), x.new_zeros(1, 3, 5, 9), **{'groups': 1, **kwargs}
    )


def in_scope(scope: str, module: str, name: str, **defaults):
    def build(**kwargs):
        part = pytest.importorskip(f'internimage.{module}')
        with DefaultScope.overwrite_default_scope(scope):
            return getattr(part, name)(**{**defaults, **kwargs})

    return build


BUILDERS = {
    'Architecture': (lambda **kw: Architecture(**{**SMALL, **kw}), ARCHITECTURE),
    'InternImage': (
        lambda **kw: InternImage(**{'arch': SMALL, **kw}),
        {**ARCHITECTURE, **BACKBONE, **LEVELS},
    ),
    'CBInternImage': (
        lambda **kw: CBInternImage(**{'arch': SMALL, **kw}),
        {**ARCHITECTURE, **BACKBONE, **BRANCHES},
    ),
    'DCNv3': (lambda **kw: DCNv3(**{'channels': 6, 'groups': 2, **kw}), LAYER),
    'dcnv3': (call_dcnv3, LAYER_OF_TENSORS),
    'layer decay': (build_layer_decay, LAYER_DECAY),
    'ConvPoolNeck': (
        in_scope(
            *('mmpretrain', 'classification', 'ConvPoolNeck'),
            in_channels=6,
            out_channels=4,
        ),
        {
            'in_channels': NO_COUNT,
            'out_channels': NO_COUNT,
            'act_layer': LAYER['act_layer'],
        },
    ),
    'AttentionPoolNeck': (
        in_scope(
            *('mmpretrain', 'classification', 'AttentionPoolNeck'),
            **dict(in_channels=(3, 6), embed_dims=8, num_heads=2, out_channels=4),
        ),
        {
            'in_channels': [*NO_INTEGERS, (6,), (3, 6, 12), (0, 6)],
            'embed_dims': [*NO_COUNT, 7],
            'num_heads': NO_COUNT,
            'out_channels': NO_COUNT,
        },
    ),
    'CBChannelMapper': (
        in_scope(
            *('mmdet', 'detection', 'CBChannelMapper'), in_channels=[3], out_channels=4
        ),
        {'cb_idx': [True, 1.0, '1', None, -1, 2]},
    ),
}


@pytest.mark.parametrize('name', BUILDERS)
def test_what_means_nothing_is_refused_by_name(name):
    build, table = BUILDERS[name]
    build()
    wrong = []
    for argument, values in table.items():
        for value in values:
            try:
                build(**{argument: value})
            except (TypeError, ValueError) as error:
                message = str(error)
                if not re.match(rf'{re.escape(argument)}: expected .* got ', message):
                    wrong.append(f'{argument}={value!r}: {message}')
            else:
                wrong.append(f'{argument}={value!r} is accepted')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('plural', [tuple, list, np.array, torch.Size])
def test_every_spelling_of_integers(plural):
    model = InternImage(
        ConfigDict(
            channels=np.int64(6),
            depths=plural((1, 2, 4, 1)),
            groups=plural((1, 2, 3, 6)),
            mlp_ratio=np.float32(2),
            layer_scale=1,
            dw_kernel_size=np.int8(5),
            level2_post_norm=np.True_,
            level2_post_norm_block_ids=plural((1, 3)),
        ),
        out_indices=range(1, 4),
        frozen_stages=np.int32(1),
        drop_path_rate=np.float64(0.1),
        in_channels=np.int16(4),
    )
    assert model.arch == Architecture(
        **SMALL,
        mlp_ratio=2.0,
        layer_scale=1.0,
        dw_kernel_size=5,
        level2_post_norm=True,
        level2_post_norm_block_ids=(1, 3),
    )
    assert model.out_indices == (1, 2, 3)
    assert repr(model.arch) == repr(Architecture(**model.arch.__dict__))
    for value in (model.in_channels, model.frozen_stages, *model.arch.depths):
        assert type(value) is int
    both = CBInternImage(SMALL, out_indices=[range(4), plural((1, 2, 3))])
    assert both.out_indices == ((0, 1, 2, 3), (1, 2, 3))


def test_numbers_of_numpy_for_a_layer():
    layer = DCNv3(
        np.int64(6),
        kernel_size=[np.int64(3), 5],
        padding=(1, np.int32(2)),
        groups=np.int8(2),
        offset_scale=np.float32(2),
    )
    assert layer.geometry == ((3, 5), (1, 1), (1, 2), (1, 1), 2, 2.0, False)
    assert all(type(side) is int for side in layer.geometry.kernel_size)
    assert layer(torch.zeros(1, 4, 5, 6)).shape == (1, 4, 5, 6)
    assert call_dcnv3(groups=np.int64(1), offset_scale=np.float32(0.5)).shape[1] == 3


@pytest.mark.parametrize('rule', [True, 0, ['freeze_backbone'], '', 'freeze_all'])
def test_a_rule_is_looked_at_before_the_detector_is_built(rule):
    detection = pytest.importorskip('internimage.detection')
    with pytest.raises(
        (TypeError, ValueError), match=r"^rule: expected 'freeze_.* got "
    ):
        detection.CBDINO(rule=rule)


@pytest.mark.parametrize('num_classes', NO_COUNT)
def test_classes_are_counted_before_the_head_is_built(num_classes):
    segmentation = pytest.importorskip('internimage.segmentation')
    with pytest.raises(
        (TypeError, ValueError), match=r'^num_classes: expected .* got '
    ):
        segmentation.InternImageMask2FormerHead(num_classes=num_classes)


@pytest.mark.parametrize('weight', [True, '1', None, NAN, -1.0])
def test_weight_of_the_first_branch(weight):
    detection = pytest.importorskip('internimage.detection')
    with pytest.raises(
        (TypeError, ValueError), match=r'^cb_first_weight: expected .* got '
    ):
        detection.CBDINOHead(cb_first_weight=weight)
