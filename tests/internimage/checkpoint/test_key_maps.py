# SPDX-License-Identifier: Apache-2.0
"""Names of published weights; by hand, and those of all published models."""

import pytest
import torch
from torch import Tensor

from internimage.checkpoint import convert_published
from internimage.checkpoint.key_maps import (
    find_wrapper,
    innermost,
    is_known,
    shorten,
)
from tests.golden import read_json
from tests.internimage.checkpoint.layouts import (
    classification,
    every_layout,
    others,
    weights,
)

ZOO = read_json('zoo_backbones.json.gz')

# Of each layout: published name -> ours. What stays is there too.
T_TO_XL = {
    'patch_embed.conv1.weight': 'backbone.patch_embed.conv1.weight',
    'levels.2.blocks.17.gamma1': 'backbone.levels.2.blocks.17.gamma1',
    'conv_head.0.weight': 'neck.conv_head.0.weight',
    'conv_head.1.0.running_var': 'neck.conv_head.1.0.running_var',
    'head.bias': 'head.fc.bias',
    'ema.decay': 'ema.decay',
}
HUGE = {
    'patch_embed.conv1.weight': 'backbone.patch_embed.conv1.weight',
    'dcnv3_head_x4.0.weight': 'neck.dcnv3_head_x4.0.weight',
    'dcnv3_head_x3.0.bias': 'neck.dcnv3_head_x3.0.bias',
    'clip_projector.norm1_q.weight': 'neck.clip_projector.norm1_q.weight',
    'fc_norm.0.weight': 'neck.fc_norm.0.weight',
    'head.weight': 'head.fc.weight',
    'meta_head_1.2.norm_fn1.bias': 'head.meta_head_1.2.norm_fn1.bias',
    'meta_head_2.0.weight': 'head.meta_head_2.0.weight',
    'meta_norm.weight': 'head.meta_norm.weight',
    'meta_head.weight': 'head.meta_head.weight',
}
DINO_ENCODER = 'bbox_head.transformer.encoder.'
DINO_DECODER = 'bbox_head.transformer.decoder.'
DINO = {
    'backbone.patch_embed.conv1.weight': 'backbone.patch_embed.conv1.weight',
    'neck.0.convs.1.conv.weight': 'neck.convs.1.conv.weight',
    'neck.0.extra_convs.0.gn.bias': 'neck.extra_convs.0.gn.bias',
    'bbox_head.label_embedding.weight': 'dn_query_generator.label_embedding.weight',
    'bbox_head.cls_branches.6.bias': 'bbox_head.cls_branches.6.bias',
    'bbox_head.transformer.level_embeds': 'level_embed',
    'bbox_head.transformer.enc_output.weight': 'memory_trans_fc.weight',
    'bbox_head.transformer.enc_output_norm.bias': 'memory_trans_norm.bias',
    'bbox_head.transformer.query_embed.weight': 'query_embedding.weight',
    f'{DINO_ENCODER}layers.5.attentions.0.sampling_offsets.bias': (
        'encoder.layers.5.self_attn.sampling_offsets.bias'
    ),
    f'{DINO_ENCODER}layers.5.ffns.0.layers.0.0.weight': (
        'encoder.layers.5.ffn.layers.0.0.weight'
    ),
    f'{DINO_ENCODER}layers.5.norms.1.weight': 'encoder.layers.5.norms.1.weight',
    f'{DINO_DECODER}layers.3.attentions.0.attn.in_proj_bias': (
        'decoder.layers.3.self_attn.attn.in_proj_bias'
    ),
    f'{DINO_DECODER}layers.3.attentions.1.value_proj.weight': (
        'decoder.layers.3.cross_attn.value_proj.weight'
    ),
    f'{DINO_DECODER}layers.3.ffns.0.layers.1.bias': (
        'decoder.layers.3.ffn.layers.1.bias'
    ),
    f'{DINO_DECODER}ref_point_head.0.weight': 'decoder.ref_point_head.layers.0.weight',
    f'{DINO_DECODER}ref_point_head.2.weight': 'decoder.ref_point_head.layers.1.weight',
    f'{DINO_DECODER}norm.weight': 'decoder.norm.weight',
    # No part of a DINO that we know: not half of its name is new.
    'bbox_head.transformer.another.weight': 'bbox_head.transformer.another.weight',
}
PIXELS = 'decode_head.pixel_decoder.encoder.layers.4'
QUERIES = 'decode_head.transformer_decoder.layers.8'
MASK2FORMER = {
    'backbone.levels.0.norm.0.weight': 'backbone.levels.0.norm.0.weight',
    f'{PIXELS}.attentions.0.value_proj.bias': f'{PIXELS}.self_attn.value_proj.bias',
    f'{PIXELS}.ffns.0.layers.1.weight': f'{PIXELS}.ffn.layers.1.weight',
    f'{PIXELS}.norms.0.weight': f'{PIXELS}.norms.0.weight',
    f'{QUERIES}.attentions.0.attn.out_proj.bias': (
        f'{QUERIES}.cross_attn.attn.out_proj.bias'
    ),
    f'{QUERIES}.attentions.1.attn.out_proj.bias': (
        f'{QUERIES}.self_attn.attn.out_proj.bias'
    ),
    f'{QUERIES}.ffns.0.layers.0.0.bias': f'{QUERIES}.ffn.layers.0.0.bias',
    'decode_head.query_embed.weight': 'decode_head.query_embed.weight',
}
UPERNET = {
    name: name
    for name in (
        'backbone.patch_embed.conv1.weight',
        'decode_head.psp_modules.0.1.conv.weight',
        'auxiliary_head.convs.0.bn.running_mean',
    )
}
LAYOUTS = {
    't to xl': T_TO_XL,
    'h and g': HUGE,
    'dino': DINO,
    'mask2former': MASK2FORMER,
    'upernet': UPERNET,
}


@pytest.mark.parametrize('prefix', ['', 'module.', 'module.module.'])
@pytest.mark.parametrize('names', LAYOUTS.values(), ids=LAYOUTS)
def test_names_by_hand(names: dict[str, str], prefix: str):
    source = {prefix + name: torch.empty(0) for name in names}
    converted = convert_published(source)
    assert list(converted) == list(names.values())
    for before, after in zip(source.values(), converted.values(), strict=True):
        assert before is after


def test_names_of_hugging_face_by_hand():
    names = {
        'model.patch_embed.conv1.weight': 'backbone.patch_embed.conv1.weight',
        'model.levels.1.blocks.10.layer_scale2': 'backbone.levels.1.blocks.10.gamma2',
        # Only a block has such a parameter.
        'model.levels.1.layer_scale2': 'backbone.levels.1.layer_scale2',
        'model.head.weight': 'head.fc.weight',
    }
    converted = convert_published(dict.fromkeys(names, torch.empty(0)))
    assert list(converted) == list(names.values())


def test_prefix_that_not_all_names_have_stays():
    names = ['module.levels.0.x', 'model.levels.0.x', 'levels.1.x']
    converted = convert_published(dict.fromkeys(names, torch.empty(0)))
    assert list(converted) == names


@every_layout
def test_convert_is_pure_idempotent_and_complete(layout):
    source = layout(weights())
    before = repr(source)
    converted = convert_published(source)
    assert repr(source) == before
    again = convert_published(converted)
    assert list(again) == list(converted)
    stack, tensors = [source], []
    while stack:
        for value in stack.pop().values():
            (stack if isinstance(value, dict) else tensors).append(value)
    tensors = [value for value in tensors if isinstance(value, Tensor)]
    assert sorted(map(id, tensors)) == sorted(map(id, converted.values()))


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_backbone_alone_stays(prefix):
    content = {prefix + name: value for name, value in weights().items()}
    assert list(convert_published(content)) == list(content)


def test_unknown_parts_of_a_classifier_stay():
    content = {**classification(weights())['model'], **others('ema.decay', 'fc.bias')}
    assert list(convert_published(content))[-2:] == ['ema.decay', 'fc.bias']


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({}, 'expected named tensors.* got nothing'),
        ({'state_dict': {}}, 'got nothing'),
        ({'epoch': 3, 'x': torch.empty(0)}, 'got epoch'),
        ({'optimizer': {'state': {}}}, 'got optimizer'),
        (
            {
                'levels.0.blocks.0.gamma1': torch.empty(0),
                'levels.0.blocks.0.layer_scale1': torch.empty(0),
            },
            r'several tensors for levels\.0\.blocks\.0\.gamma1',
        ),
        (
            {
                'patch_embed.conv1.weight': torch.empty(0),
                'head.weight': torch.empty(0),
                'backbone.patch_embed.conv1.weight': torch.empty(0),
            },
            r'several tensors for backbone\.patch_embed\.conv1\.weight',
        ),
    ],
)
def test_convert_errors(content, message):
    with pytest.raises(ValueError, match=message):
        convert_published(content)


@pytest.mark.parametrize('config', ZOO['other_keys'])
def test_published_names(config):
    entry = next(e for e in ZOO['backbones'] if config in e['configs'])
    is_classifier = config.startswith('classification/')
    prefix = '' if is_classifier else 'backbone.'
    backbone = {prefix + name: torch.empty(0) for name in entry['shapes']}
    rest = {name: torch.empty(0) for name in ZOO['other_keys'][config]}
    converted = convert_published({**backbone, **rest})
    # Detectors of mmdet 2 whose parts have the same names in mmdet 3 stay as they are.
    renamed = [
        name.replace('head.', 'head.fc.')
        if name.startswith('head.')
        else f'neck.{name}'
        for name in rest
    ]
    others = renamed if is_classifier else list(rest)
    assert list(converted) == [f'backbone.{name}' for name in entry['shapes']] + others


def test_split_feed_forward_layer_by_hand():
    """Of 2 features, with 3 hidden ones in pieces of 1 and 2; its order stays."""
    ffn = 'bbox_head.transformer.decoder.layers.1.ffns.0.'
    source = {
        'bbox_head.transformer.level_embeds': torch.zeros(1),
        f'{ffn}fc1_0.weight': torch.tensor([[1.0, 2.0]]),
        f'{ffn}fc1_0.bias': torch.tensor([7.0]),
        f'{ffn}fc1_1.weight': torch.tensor([[3.0, 4.0], [5.0, 6.0]]),
        f'{ffn}fc1_1.bias': torch.tensor([8.0, 9.0]),
        f'{ffn}fc2_0.weight': torch.tensor([[1.0], [4.0]]),
        f'{ffn}fc2_1.weight': torch.tensor([[2.0, 3.0], [5.0, 6.0]]),
        f'{ffn}fc2_bias': torch.tensor([10.0, 11.0]),
        'bbox_head.cls_branches.0.bias': torch.ones(1),
    }
    converted = convert_published(source)
    assert {name: value.tolist() for name, value in converted.items()} == {
        'level_embed': [0],
        'decoder.layers.1.ffn.layers.0.0.weight': [[1, 2], [3, 4], [5, 6]],
        'decoder.layers.1.ffn.layers.0.0.bias': [7, 8, 9],
        'decoder.layers.1.ffn.layers.1.weight': [[1, 2, 3], [4, 5, 6]],
        'decoder.layers.1.ffn.layers.1.bias': [10, 11],
        'bbox_head.cls_branches.0.bias': [1],
    }
    assert list(converted)[1].endswith('layers.0.0.weight')
    assert list(converted)[-1] == 'bbox_head.cls_branches.0.bias'


def test_split_feed_forward_layer_of_the_largest_dino():
    """InternImage-G's sums over quarters of the hidden features."""
    published_ffn = 'bbox_head.transformer.encoder.layers.2.ffns.0.'
    inner = [(torch.randn(3, 5), torch.randn(3)) for _ in range(4)]
    outer = [torch.randn(5, 3) for _ in range(4)]
    weights = {f'{published_ffn}fc2_bias': torch.randn(5)}
    for piece in range(4):
        weights[f'{published_ffn}fc1_{piece}.weight'] = inner[piece][0]
        weights[f'{published_ffn}fc1_{piece}.bias'] = inner[piece][1]
        weights[f'{published_ffn}fc2_{piece}.weight'] = outer[piece]
    ffn = pytest.importorskip('mmcv.cnn.bricks.transformer').FFN(5, 12)
    prefix = 'encoder.layers.2.ffn.'
    converted = convert_published(weights)
    ffn.load_state_dict({k.removeprefix(prefix): v for k, v in converted.items()})
    x = torch.randn(7, 5)
    expected = x + weights[f'{published_ffn}fc2_bias']
    for (weight, bias), back in zip(inner, outer, strict=True):
        expected = expected + (x @ weight.T + bias).relu() @ back.T
    torch.testing.assert_close(ffn(x), expected)
    assert convert_published(converted) == converted


@pytest.mark.parametrize(
    ('checkpoint', 'wrapper', 'inner'),
    [
        ({'x': 1}, None, {'x': 1}),
        # An averaged copy beside it is not looked at.
        ({'model_ema': {'x': 2}, 'model': {'x': 1}}, 'model', {'x': 1}),
        ({'module': {'x': 1}, 'model': {'x': 2}}, 'model', {'x': 2}),
        ({'model': {'x': 2}, 'state_dict': {'x': 1}}, 'state_dict', {'x': 1}),
        ({'module': {'state_dict': {'model': {'x': 1}}}}, 'module', {'x': 1}),
        # A parameter, or a number, of such a name is none.
        ({'model': 3, 'module': {'x': 1}}, 'module', {'x': 1}),
        ({'model': torch.zeros(1)}, None, {'model': torch.zeros(1)}),
        ({'state_dict': {}, 'model': {'x': 1}}, 'state_dict', {}),
    ],
)
def test_wrappers(checkpoint: dict, wrapper: str | None, inner: dict):
    assert find_wrapper(checkpoint) == wrapper
    assert innermost(checkpoint) == inner


@pytest.mark.parametrize(
    'name',
    [
        *('levels.0.x', 'patch_embed.x', 'backbone.x', 'neck.x', 'head.fc.weight'),
        *('rpn_head.x', 'roi_head.x', 'bbox_head.cls_branches.0.bias', 'encoder.x'),
        *('decoder.x', 'memory_trans_norm.bias', 'query_embedding.weight'),
        *('dn_query_generator.x', 'level_embed', 'auxiliary_head.x'),
        *(UPERNET | MASK2FORMER).values(),
    ],
)
def test_known_name(name: str):
    assert is_known(name)


@pytest.mark.parametrize(
    'name',
    [
        *(
            'x',
            'head',
            'heads.x',
            'level_embeds',
            'my.backbone.x',
            'conv_head.0.weight',
        ),
        *(name for name in DINO if name.startswith('bbox_head.transformer.')),
        *(old for old, new in MASK2FORMER.items() if old != new),
    ],
)
def test_unknown_name(name: str):
    assert not is_known(name)


def test_shortened_list():
    assert shorten([]) == ''
    assert shorten(['a', 'b', 'c'], 3) == 'a, b, c'
    assert shorten(['a', 'b', 'c', 'd'], 3) == 'a, b, c, ... (4 in all)'
    assert shorten(list('abcdefg')) == 'a, b, c, d, e, f, ... (7 in all)'
