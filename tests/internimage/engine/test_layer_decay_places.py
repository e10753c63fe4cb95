# SPDX-License-Identifier: Apache-2.0
"""Backbones are found wherever they are in a model; at rate 1 none is needed."""

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from internimage import CBInternImage, InternImage
from tests.our_configs import build_on_meta

ARCH = {'channels': 4, 'depths': (2, 1, 3, 2), 'groups': (1, 1, 2, 2)}
OTHER = {'channels': 4, 'depths': (1, 1, 1, 2), 'groups': (1, 1, 1, 1)}
DEPTHS = {  # of ARCH, of 0 to 9
    'patch_embed.conv1.weight': 0,
    'levels.0.blocks.1.mlp.fc1.weight': 2,
    'levels.2.blocks.0.dcn.offset.weight': 4,
    'levels.3.blocks.1.norm1.0.weight': 8,
}


def scales(model: nn.Module, rate: float = 0.5, **paramwise_cfg) -> dict[str, float]:
    """Return of each trained parameter by name the factor on its learning rate."""
    wrapper = build_optim_wrapper(
        model,
        ConfigDict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=rate, **paramwise_cfg),
        ),
    )
    groups = wrapper.optimizer.param_groups
    assert len({group['group_name'] for group in groups}) == len(groups)
    return {
        name: group['lr_scale'] for group in groups for name in group['param_names']
    }


def with_head(**children: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    model.bbox_head = nn.Linear(2, 3)
    return model


PLACES = {
    'backbone.': lambda: with_head(backbone=InternImage(ARCH)),
    'encoder.': lambda: with_head(encoder=InternImage(ARCH)),
    '': lambda: InternImage(ARCH),
    'student.backbone.': lambda: with_head(
        student=with_head(backbone=InternImage(ARCH)),
        teacher=with_head(backbone=InternImage(ARCH)).requires_grad_(False),
    ),
    'detector.inner.backbone.': lambda: with_head(
        detector=with_head(inner=with_head(backbone=InternImage(ARCH)))
    ),
}


@pytest.mark.parametrize('prefix', PLACES)
def test_backbone_is_found(prefix):
    model = PLACES[prefix]()
    found = scales(model)
    for name, depth in DEPTHS.items():
        assert found[prefix + name] == 0.5 ** (9 - depth), name
    heads = {name: scale for name, scale in found.items() if 'bbox_head' in name}
    assert set(heads.values()) <= {1.0}
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert found.keys() == trained
    assert set(scales(PLACES[prefix](), rate=1.0).values()) == {1.0}


def test_several_backbones_end_alike():
    model = with_head(image=InternImage(ARCH), depth=InternImage(OTHER))
    found = scales(model)
    for name, depth in DEPTHS.items():
        assert found[f'image.{name}'] == 0.5 ** (9 - depth), name
    assert found['depth.levels.3.blocks.1.norm1.0.weight'] == 0.5
    assert found['depth.patch_embed.conv1.weight'] == 0.5**6
    assert found['bbox_head.weight'] == 1.0


def test_composite_backbone_answers_for_its_branches():
    model = with_head(student=with_head(backbone=CBInternImage(ARCH)))
    assert set(scales(model).values()) == {1.0}


@pytest.mark.parametrize('prefix', ['', 'student.', 'wrapped.'])
def test_heads_are_known_wherever_they_are(prefix):
    """Slowest are the queries of Mask2Former; its offsets have the usual rate."""
    model, inner = with_head(backbone=InternImage(ARCH)), nn.Module()
    inner.query_embed = nn.Embedding(2, 3)
    inner.sampling_offsets = nn.Linear(2, 3)
    model.decode_head = inner
    whole = with_head(**{prefix[:-1]: model}) if prefix else model
    found = scales(whole, offset_lr_scale=0.1)
    assert found[f'{prefix}decode_head.query_embed.weight'] == 0.5**9
    assert found[f'{prefix}decode_head.sampling_offsets.weight'] == 1.0


@pytest.mark.parametrize('is_frozen', [False, True])
def test_without_any_backbone(is_frozen):
    model = with_head(backbone=nn.Conv2d(3, 4, 1).requires_grad_(not is_frozen))
    assert set(scales(model, rate=1.0).values()) == {1.0}
    message = (
        r'layer decay: expected a model with a backbone that has get_layer_depth'
        r'\(name, prefix\), got Module without; layer_decay_rate=1 needs none'
    )
    with pytest.raises(TypeError, match=message):
        scales(model)


def test_backbones_of_mmpretrain_tell_depths_too():
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(
                    type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[4] * 4)
                ),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=4),
            )
        )
    found = scales(model)
    assert found['head.fc.weight'] == 1.0
    assert found['backbone.downsample_layers.0.0.weight'] == 0.5**7


def test_soft_teacher():
    pytest.importorskip('mmdet')
    config = Config.fromstring(
        "_base_ = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_"
        "semi-0.1-coco.py'",
        '.py',
    )
    detector = config.model.detector
    detector.backbone = dict(type='InternImage', arch=ARCH)
    detector.neck.in_channels = [4, 8, 16, 32]
    model = build_on_meta(config.model, 'mmdet')
    for rate in (1.0, 0.5):
        found = scales(model, rate)
        assert all(name.startswith('student.') for name in found)
        for name, depth in DEPTHS.items():
            assert found[f'student.backbone.{name}'] == rate ** (9 - depth), name
        assert found['student.rpn_head.rpn_cls.weight'] == 1.0
