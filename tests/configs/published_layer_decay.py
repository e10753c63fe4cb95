# SPDX-License-Identifier: Apache-2.0
"""The learning rate and the decay of each parameter, as the published code has them.

Source: OpenGVLab/InternImage@31c962d,
{detection,segmentation}/mmcv_custom/custom_layer_decay_optimizer_constructor.py.
"""

from collections.abc import Iterable

import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from torch import nn

from internimage.checkpoint import convert_published

# What a segmentor's rule has beside a detector's.
FIRST_OF_SEGMENTORS = (
    *('decode_head.mask_embed', 'decode_head.cls_embed', 'decode_head.level_embed'),
    *('decode_head.query_embed', 'decode_head.query_feat'),
    'backbone.cb_modules.0.patch_embed',
)
NO_DECAY = ('relative_position', 'norm', 'sampling_offsets')
Group = tuple[float, bool]  # the factor on the rate, and whether there is weight decay


def depth_of(name: str, rule: dict, is_segmentor: bool) -> int:
    """Return the depth of a parameter, from 0 to ``num_layers + 1``."""
    first = FIRST_OF_SEGMENTORS if is_segmentor else ()
    if name.startswith(('backbone.patch_embed', *first)) or 'level_embeds' in name:
        return 0
    if not name.startswith('backbone.levels'):
        return rule['num_layers'] + 1
    level, part, *block = name.split('.')[2:5]
    depths = rule['depths']
    before = 1 + sum(depths[: min(int(level), 3)])
    if part in ('downsample', 'norm'):
        return before + (depths[int(level)] if int(level) < 3 else 0)
    return before + int(block[0])


def published_group(name: str, num_dims: int, rule: dict, is_segmentor: bool) -> Group:
    """Return the group of a parameter by its published name."""
    depth, last = depth_of(name, rule, is_segmentor), rule['num_layers'] + 1
    scale = rule['layer_decay_rate'] ** (last - depth)
    if rule.get('backbone_small_lr') and scale < 1:
        scale *= 0.1
    if 'sampling_offsets' in name or 'reference_points' in name:
        if depth == last and rule.get('dino_head'):
            scale *= 0.1
        elif not is_segmentor or 'backbone' in name:
            scale *= rule.get('offset_lr_scale', 1.0)
    decays = not (
        num_dims == 1
        or name.endswith('.bias')
        or any(word in name for word in NO_DECAY)
    )
    return scale, decays


def published_groups(
    keys: Iterable[tuple[str, list[int]]], rule: dict, is_segmentor: bool
) -> dict[str, Group]:
    """Return the group of each parameter by our name."""
    weights = {name: torch.empty(shape, device='meta') for name, shape in keys}
    groups = {
        id(weight): published_group(name, weight.dim(), rule, is_segmentor)
        for name, weight in weights.items()
    }
    converted = convert_published(weights)
    joined = [name for name, weight in converted.items() if id(weight) not in groups]
    # Of DINO-G, whose feed-forward layers are published in pieces.
    assert all('.ffn.' in name for name in joined)
    in_pieces = {name: (1.0, converted[name].dim() > 1) for name in joined}
    return in_pieces | {
        name: groups[id(weight)]
        for name, weight in converted.items()
        if name not in in_pieces
    }


def our_groups(config: Config, model: nn.Module) -> dict[str, Group]:
    """Return the group of each trained parameter, as its config has it."""
    settings = ConfigDict(config.optim_wrapper)
    wrapper = build_optim_wrapper(model, settings)
    return {
        name: (group['lr_scale'], group['weight_decay'] > 0)
        for group in wrapper.optimizer.param_groups
        for name in group['param_names']
    }
