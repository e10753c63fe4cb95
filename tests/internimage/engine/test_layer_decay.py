# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import nn

from internimage import InternImage, LayerDecayOptimWrapperConstructor
from internimage.engine import layer_decay

ARCH = {
    'channels': 4,
    'depths': (2, 1, 3, 2),
    'groups': (1, 1, 2, 2),
    'layer_scale': 1.0,
    'level2_post_norm': True,
    'level2_post_norm_block_ids': (0, 2),
    'center_feature_scale': True,
}

# Depth by the published rule, of 0 to 9: the stem, eight blocks, all the rest; and
# whether there is weight decay; or which rule for deformable attention applies.
# Written out by hand from the published code.
BACKBONE = """
backbone.patch_embed.conv1.weight                                   0  decay
backbone.patch_embed.conv1.bias                                     0  none
backbone.patch_embed.norm2.1.weight                                 0  none
backbone.levels.0.blocks.0.norm1.0.weight                           1  none
backbone.levels.0.blocks.0.dcn.dw_conv.0.weight                     1  decay
backbone.levels.0.blocks.0.dcn.dw_conv.1.1.weight                   1  none
backbone.levels.0.blocks.0.dcn.offset.weight                        1  decay
backbone.levels.0.blocks.0.dcn.offset.bias                          1  none
backbone.levels.0.blocks.0.dcn.mask.weight                          1  decay
backbone.levels.0.blocks.0.dcn.center_feature_scale_proj_weight     1  decay
backbone.levels.0.blocks.0.dcn.center_feature_scale_proj_bias       1  none
backbone.levels.0.blocks.0.gamma1                                   1  none
backbone.levels.0.blocks.1.mlp.fc1.weight                           2  decay
backbone.levels.0.norm.0.weight                                     3  none
backbone.levels.0.downsample.conv.weight                            3  decay
backbone.levels.0.downsample.norm.1.bias                            3  none
backbone.levels.1.blocks.0.dcn.input_proj.weight                    3  decay
backbone.levels.1.norm.0.bias                                       4  none
backbone.levels.1.downsample.conv.weight                            4  decay
backbone.levels.2.blocks.0.dcn.output_proj.weight                   4  decay
backbone.levels.2.blocks.1.mlp.fc2.bias                             5  none
backbone.levels.2.blocks.2.mlp.fc2.weight                           6  decay
backbone.levels.2.post_norms.0.0.weight                             4  none
backbone.levels.2.post_norms.1.0.weight                             5  none
backbone.levels.2.norm.0.weight                                     7  none
backbone.levels.2.downsample.conv.weight                            7  decay
backbone.levels.3.blocks.0.dcn.mask.weight                          7  decay
backbone.levels.3.blocks.1.dcn.offset.weight                        8  decay
backbone.levels.3.norm.0.weight                                     7  none
"""
HEADS = """
neck.fpn_convs.0.conv.weight                                        9  decay
neck.fpn_convs.0.conv.bias                                          9  none
roi_head.bbox_head.shared_fcs.0.weight                              9  decay
level_embed                                                         0  decay
query_embedding.weight                                              9  decay
memory_trans_fc.weight                                              9  decay
memory_trans_norm.weight                                            9  none
encoder.layers.0.self_attn.sampling_offsets.weight                  9  offset
encoder.layers.0.self_attn.sampling_offsets.bias                    9  offset
encoder.layers.0.self_attn.attention_weights.weight                 9  decay
reference_points_fc.weight                                          9  reference
bbox_head.cls_branches.0.weight                                     9  decay
auxiliary_head.conv_seg.weight                                      9  decay
decode_head.conv_seg.weight                                         9  decay
decode_head.query_embed.weight                                      0  decay
decode_head.query_feat.weight                                       0  decay
decode_head.level_embed.weight                                      0  decay
decode_head.cls_embed.weight                                        0  decay
decode_head.cls_embed.bias                                          0  none
decode_head.mask_embed.2.weight                                     0  decay
decode_head.pixel_decoder.level_encoding.weight                     9  decay
decode_head.pixel_decoder.relative_position_table                   9  none
decode_head.pixel_decoder.encoder.layers.0.self_attn.sampling_offsets.weight 9 segmentor
"""
TABLE = [line.split() for line in (BACKBONE + HEADS).split('\n') if line]


def put(model: nn.Module, name: str, value: nn.Parameter) -> None:
    """Give a model a parameter with a dotted name."""
    *path, last = name.split('.')
    for part in path:
        if not hasattr(model, part):
            model.add_module(part, nn.Module())
        model = getattr(model, part)
    model.register_parameter(last, value)


@pytest.fixture
def model() -> nn.Module:
    model = nn.Module()
    model.backbone = InternImage(ARCH)
    for name, _, _ in (line.split() for line in HEADS.split('\n') if line):
        shape = (2,) if name.endswith(('bias', 'norm.weight')) else (2, 3)
        put(model, name, nn.Parameter(torch.zeros(shape)))
    return model


def build(model: nn.Module, **paramwise_cfg):
    """Return the optimizer's groups, and of each parameter by name its group."""
    wrapper = build_optim_wrapper(
        model,
        ConfigDict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=0.3, weight_decay=0.05),
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise_cfg,
        ),
    )
    groups = wrapper.optimizer.param_groups
    return groups, {name: group for group in groups for name in group['param_names']}


# paramwise_cfg; further factor for depths below 9; for names of the deformable
# attention's offsets after the backbone; for the layer dcn.offset.
VARIANTS = [
    ({}, 1, 1, 1),
    ({'layer_decay_rate': 0.5}, 1, 1, 1),
    ({'layer_decay_rate': 0.5, 'backbone_small_lr': True}, 0.1, 1, 1),
    ({'layer_decay_rate': 1.0, 'backbone_small_lr': True}, 1, 1, 1),
    ({'layer_decay_rate': 0.9, 'offset_lr_scale': 0.01}, 1, 0.01, 1),
    ({'layer_decay_rate': 0.9, 'offset_lr_scale': 0.01, 'dino_head': True}, 1, 0.1, 1),
    ({'layer_decay_rate': 0.9, 'dcn_offset_lr_scale': 0.01}, 1, 1, 0.01),
]


@pytest.mark.parametrize(('cfg', 'small', 'offset', 'dcn_offset'), VARIANTS)
def test_groups_follow_the_published_rule(model, cfg, small, offset, dcn_offset):
    _, group_of = build(model, **cfg)
    for name, depth, kind in TABLE:
        scale = cfg.get('layer_decay_rate', 1.0) ** (9 - int(depth))
        if int(depth) < 9:
            scale *= small
        if kind in ('offset', 'reference'):
            scale *= offset
        if kind == 'segmentor' and 'dino_head' in cfg:
            scale *= 0.1
        if '.dcn.offset.' in name:
            scale *= dcn_offset
        group = group_of[name]
        assert group['lr_scale'] == pytest.approx(scale), name
        assert group['lr'] == pytest.approx(0.3 * scale), name
        decays = kind in ('decay', 'reference')
        assert group['weight_decay'] == (0.05 if decays else 0), name
        assert group['group_name'].startswith(f'layer_{depth}_')


def test_groups_hold_every_trainable_parameter_once(model):
    model.backbone.patch_embed.requires_grad_(False)
    groups, group_of = build(model, layer_decay_rate=0.9, offset_lr_scale=0.01)
    params = dict(model.named_parameters())
    trainable = {name for name, param in params.items() if param.requires_grad}
    assert group_of.keys() == trainable
    assert not any('patch_embed' in name for name in trainable)
    for group in groups:
        assert [params[name] for name in group['param_names']] == group['params']
    assert len({group['group_name'] for group in groups}) == len(groups)


def test_group_names_are_the_published_ones(model):
    _, group_of = build(model, layer_decay_rate=0.9, dino_head=False)
    assert {
        group_of[name]['group_name']
        for name in (
            'backbone.patch_embed.conv1.weight',
            'backbone.levels.0.blocks.0.dcn.offset.bias',
            'encoder.layers.0.self_attn.sampling_offsets.weight',
        )
    } == {'layer_0_decay', 'layer_1_no_decay', 'layer_9_no_decay_offset_lr_scale'}
    _, group_of = build(model, layer_decay_rate=0.9, dino_head=True)
    assert group_of['reference_points_fc.weight']['group_name'] == 'layer_9_decay_0.1x'


def test_through_a_distributed_wrapper(model):
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        wrapped = MMDistributedDataParallel(model)
        groups, _ = build(wrapped, layer_decay_rate=0.9)
        constructor = LayerDecayOptimWrapperConstructor(
            dict(optimizer=dict(type='AdamW', lr=0.3, weight_decay=0.05)),
            dict(layer_decay_rate=0.9),
        )
        params = []
        constructor.add_params(params, wrapped)
    finally:
        torch.distributed.destroy_process_group()
    expected, _ = build(model, layer_decay_rate=0.9)
    for same in (groups, params):
        assert [g['lr_scale'] for g in same] == [g['lr_scale'] for g in expected]


def test_one_line_of_log(model, monkeypatch):
    logged = []
    monkeypatch.setattr(layer_decay, 'print_log', lambda text, **_: logged.append(text))
    build(model, layer_decay_rate=0.5)
    (line,) = logged
    count = len(list(model.parameters()))
    assert line.startswith(f'layer decay: {count} parameters in ')
    assert 'lr_scale 0.00195 to 1' in line


def test_errors(model):
    with pytest.raises(ValueError, match=r"unknown keys \['num_layers', 'depths'\].*"):
        build(model, layer_decay_rate=0.9, num_layers=8, depths=(2, 1, 3, 2))
    model.backbone = nn.Linear(1, 1)
    message = r'get_layer_depth\(name, prefix\), got Module without; layer_decay_rate=1'
    with pytest.raises(TypeError, match=message):
        build(model, layer_decay_rate=0.9)
    for optimizer in (dict(type='AdamW', lr=1), dict(type='AdamW', weight_decay=1)):
        with pytest.raises(ValueError, match='expected lr and weight_decay'):
            LayerDecayOptimWrapperConstructor(dict(optimizer=optimizer))
