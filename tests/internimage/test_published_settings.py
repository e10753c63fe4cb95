# SPDX-License-Identifier: Apache-2.0
"""Configs that were written for the published code, or on mmseg's base configs."""

from dataclasses import fields

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from internimage import CBInternImage, InternImage
from internimage.architecture import Architecture
from tests.golden import read_json
from tests.our_configs import build_on_meta

ZOO = read_json('zoo_backbones.json.gz')['backbones']
SMALL = dict(channels=6, depths=[1, 2, 1, 1], groups=[1, 2, 3, 6])
# As in OpenGVLab/InternImage@31c962d, beside what the zoo has of a backbone.
PUBLISHED = dict(
    type='InternImage',
    core_op='DCNv3',
    norm_layer='LN',
    drop_path_rate=0.4,
    with_cp=False,
    out_indices=[0, 1, 2, 3],
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/x.pth',
    ),
)


@pytest.mark.parametrize('entry', ZOO, ids=lambda e: e['configs'][0].split('/')[-1])
def test_published_backbone_as_it_is(entry):
    model = build_on_meta({**PUBLISHED, **entry['arch']})
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == entry['shapes']


def test_published_composite_backbone_as_it_is():
    settings = dict(type='CBInternImage', out_indices=[[0, 1, 2, 3], [1, 2, 3]])
    model = build_on_meta({**PUBLISHED, **SMALL, **settings, 'init_cfg': None})
    assert isinstance(model, CBInternImage)
    assert model.arch.depths == (1, 2, 1, 1)


@pytest.mark.parametrize('where', ['argument', 'arch'])
@pytest.mark.parametrize('core_op', ['DCNv3_pytorch', 'DCNv4', 'DCN', None])
def test_another_operator_is_refused(where, core_op):
    settings = dict(SMALL, core_op=core_op)
    with pytest.raises((TypeError, ValueError), match="core_op: expected 'DCNv3', got"):
        InternImage(settings) if where == 'arch' else InternImage(**settings)


def base_of_mmseg(name: str) -> ConfigDict:
    mmseg = pytest.importorskip('mmseg')
    path = f'{mmseg.__path__[0]}/.mim/configs/_base_/models/{name}.py'
    return Config.fromfile(path).model


def test_weights_of_a_base_config_are_not_blamed_on_the_backbone():
    model = base_of_mmseg('upernet_r50')
    model.backbone = ConfigDict({**PUBLISHED, **SMALL, 'init_cfg': None})
    model.decode_head.in_channels = [6, 12, 24, 48]
    model.auxiliary_head.in_channels = 24
    message = (
        r"pretrained: expected None, got 'open-mmlab://resnet50_v1c'\. mmseg hands on "
        r'model\.pretrained, .* set model\.pretrained=None\. .* init_cfg='
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        with pytest.raises(ValueError, match=message):
            build_on_meta(model.to_dict())
        model.pretrained = None
        assert isinstance(build_on_meta(model.to_dict()).backbone, InternImage)


def test_settings_of_another_backbone_come_with_the_remedy():
    backbone = base_of_mmseg('upernet_r50').backbone
    settings = dict(backbone, type='InternImage')
    with pytest.raises(ValueError, match=r"unknown .*'num_stages'.*_delete_=True"):
        build_on_meta(settings)


def test_what_a_dict_leaves_out_is_as_in_the_published_constructor():
    """Source: OpenGVLab/InternImage@31c962d, intern_image.py, InternImage.__init__."""
    published = dict(
        channels=64,
        depths=(3, 4, 18, 5),
        groups=(3, 6, 12, 24),
        mlp_ratio=4.0,
        norm_layer='LN',
        act_layer='GELU',
        layer_scale=None,
        offset_scale=1.0,
        post_norm=False,
        dw_kernel_size=None,
        res_post_norm=False,
        level2_post_norm=False,
        level2_post_norm_block_ids=None,
        center_feature_scale=False,
        remove_center=False,
    )
    ours = {field.name: field.default for field in fields(Architecture)}
    assert ours == {'core_op': 'DCNv3', **published}
