# SPDX-License-Identifier: Apache-2.0
"""The names that published weights have, and those that our models have for them."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Where training programs put the weights, most specific first: mmengine and mmcv
# 'state_dict', the published classification code 'model', DeepSpeed 'module'.
_WRAPPERS = ('state_dict', 'model', 'module')

# A parameter that every layout has exactly once per InternImage backbone. What stands
# before it is what stands before the backbone's other parameters.
ANCHOR = 'patch_embed.conv1.weight'

# The parts of a published classifier, by their places in mmpretrain's.
_CLASSIFIER = {
    'patch_embed': 'backbone.patch_embed',
    'levels': 'backbone.levels',
    # T to XL
    'conv_head': 'neck.conv_head',
    # H and G
    'dcnv3_head_x4': 'neck.dcnv3_head_x4',
    'dcnv3_head_x3': 'neck.dcnv3_head_x3',
    'clip_projector': 'neck.clip_projector',
    'fc_norm': 'neck.fc_norm',
    # all
    'head': 'head.fc',
    # iNaturalist 2018: date and place
    'meta_head_1': 'head.meta_head_1',
    'meta_head_2': 'head.meta_head_2',
    'meta_norm': 'head.meta_norm',
    'meta_head': 'head.meta_head',
}

# The transformer of a published DINO is in its head, in mmdet 3 it is beside it.
_DINO_TRANSFORMER = 'bbox_head.transformer.'
_DINO_TRANSFORMER_NAMES = (
    (r'level_embeds$', 'level_embed'),
    (r'enc_output\.', 'memory_trans_fc.'),
    (r'enc_output_norm\.', 'memory_trans_norm.'),
    (r'query_embed\.', 'query_embedding.'),
    (r'decoder\.ref_point_head\.0\.', 'decoder.ref_point_head.layers.0.'),
    (r'decoder\.ref_point_head\.2\.', 'decoder.ref_point_head.layers.1.'),
    (r'(encoder|decoder)\.layers\.(\d+)\.attentions\.0\.', r'\1.layers.\2.self_attn.'),
    (r'decoder\.layers\.(\d+)\.attentions\.1\.', r'decoder.layers.\1.cross_attn.'),
    (r'(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.', r'\1.layers.\2.ffn.'),
)
_DINO_OTHER_NAMES = (
    (r'neck\.0\.(convs|extra_convs)\.', r'neck.\1.'),  # a list of one neck
    (r'bbox_head\.label_embedding\.', 'dn_query_generator.label_embedding.'),
)

# The attentions of a published Mask2Former have numbers, in the order of their use.
_MASK2FORMER = 'decode_head.'
_MASK2FORMER_NAMES = (
    (r'(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'(transformer_decoder\.layers\.\d+)\.attentions\.0\.', r'\1.cross_attn.'),
    (r'(transformer_decoder\.layers\.\d+)\.attentions\.1\.', r'\1.self_attn.'),
    (r'((pixel_decoder\.en|transformer_de)coder\.layers\.\d+)\.ffns\.0\.', r'\1.ffn.'),
)

# What the names of all our models' weights start with, once converted.
_KNOWN = re.compile(
    r'(patch_embed|levels)\.'  # a backbone alone
    r'|(backbone|neck)\.'
    r'|head\.'  # mmpretrain
    r'|(rpn_head|roi_head)\.|bbox_head\.(?!transformer\.)'  # mmdet
    r'|(encoder|decoder|memory_trans_fc|memory_trans_norm)\.'
    r'|(query_embedding|dn_query_generator)\.|level_embed$'
    r'|decode_head\.(?!(pixel|transformer)_decoder\..*\.(attentions|ffns)\.)'  # mmseg
    r'|auxiliary_head\.'
)


# A parameter of the published EfficientFFN.
_FFN_PIECE = re.compile(
    r'(?P<ffn>bbox_head\.transformer\..*\.ffns\.0\.)'
    r'(?P<layer>fc2_bias|fc[12]_\d)(\.(?P<kind>weight|bias))?'
)


def convert_published(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the weights of a published checkpoint the names that our models use.

    Pure, and idempotent: names that are right already stay.

    Args:
        state_dict: Bare weights, or a checkpoint that holds them as ``state_dict``,
            ``model`` or ``module``. What else a checkpoint holds (an optimizer, an
            averaged copy of the model) is not looked at.

    Returns:
        All the weights, by new name, in the old order. Of DINO on InternImage-G, whose
        feed-forward layers come in pieces, with the pieces put together.

    Raises:
        ValueError: There are no weights, something among them is not a tensor, or two
            of them would get the same name.
    """
    tensors = _unwrap(state_dict)
    for rule in _RULES:
        tensors = rule(tensors)
    return tensors


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    state_dict = innermost(state_dict)
    others = [k for k, v in state_dict.items() if not isinstance(v, Tensor)]
    if others or not state_dict:
        raise ValueError(
            'checkpoint: expected named tensors, bare or under one of '
            f'{_WRAPPERS}; got {shorten(others) or "nothing"}'
        )
    return dict(state_dict)


def innermost(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what all wrappers are around."""
    wrapper = find_wrapper(state_dict)
    return state_dict if wrapper is None else innermost(state_dict[wrapper])


def find_wrapper(state_dict: Mapping[str, Any]) -> str | None:
    """Return the key that the weights are under, None where they are bare."""
    holds_weights = (key for key in _WRAPPERS if isinstance(state_dict.get(key), dict))
    return next(holds_weights, None)


def _rename(
    tensors: dict[str, Tensor], new_name: Callable[[str], str]
) -> dict[str, Tensor]:
    renamed = {new_name(key): tensor for key, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        counts = Counter(map(new_name, tensors))
        clashes = [key for key, count in counts.items() if count > 1]
        raise ValueError(f'checkpoint: several tensors for {shorten(clashes)}')
    return renamed


def _strip_common_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while all(key.startswith(prefix) for key in tensors):
        tensors = _rename(tensors, lambda key: key.removeprefix(prefix))
    return tensors


def _strip_data_parallel(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the ``module.`` that (Distributed)DataParallel puts before every name."""
    return _strip_common_prefix('module.', tensors)


def _strip_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo what the Hugging Face port did to a classification model's names.

    Its ``gamma`` had to be called something else: transformers used to rename
    parameters with that word in their name.
    """
    tensors = _strip_common_prefix('model.', tensors)
    layer_scale = re.compile(r'(levels\.\d+\.blocks\.\d+\.)layer_scale([12])$')
    return _rename(tensors, lambda key: layer_scale.sub(r'\1gamma\2', key))


def _place_classifier(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sort the parts of a classification model into backbone, neck and head.

    A backbone alone belongs to no classifier, and keeps its names.
    """
    parts = {key.split('.')[0] for key in tensors} & _CLASSIFIER.keys()
    if ANCHOR not in tensors or parts <= {'patch_embed', 'levels'}:
        return tensors

    def new_name(key: str) -> str:
        part, *rest = key.split('.')
        return '.'.join([_CLASSIFIER.get(part, part), *rest])

    return _rename(tensors, new_name)


def _join_split_ffns(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put together the feed-forward layers that DINO on InternImage-G has in pieces.

    Its ``EfficientFFN`` computes a quarter of the hidden features at a time, to save
    memory; the sum is that of one layer with all of them.
    """
    joined: dict[str, Tensor] = {}
    pieces: dict[tuple[str, int], list[Tensor]] = {}
    for key, tensor in tensors.items():
        match = _FFN_PIECE.fullmatch(key)
        if match is None:
            joined[key] = tensor
        elif match['layer'] == 'fc2_bias':
            joined[match['ffn'] + 'layers.1.bias'] = tensor
        else:
            layer, dim = (
                ('layers.0.0', 0) if 'fc1' in match['layer'] else ('layers.1', 1)
            )
            name = f'{match["ffn"]}{layer}.{match["kind"]}'
            joined.setdefault(name, tensor)  # keeps its place in the order
            pieces.setdefault((name, dim), []).append(tensor)
    for (name, dim), parts in pieces.items():
        joined[name] = torch.cat(parts, dim)
    return joined


def _place_dino(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the parts of a published DINO to where mmdet 3 has them."""

    def new_name(key: str) -> str:
        name = key.removeprefix(_DINO_TRANSFORMER)
        inside = name != key
        for pattern, new in _DINO_TRANSFORMER_NAMES if inside else _DINO_OTHER_NAMES:
            name = re.sub(f'^{pattern}', new, name)
        return name if is_known(name) else key

    return _rename(tensors, new_name)


def _rename_mask2former(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the parts of a published Mask2Former's layers as mmdet 3 does.

    UperNet and SegFormer's head have no such parts: their names are those of mmseg 1.
    """

    def new_name(key: str) -> str:
        name = key.removeprefix(_MASK2FORMER)
        if name == key:
            return key
        for pattern, new in _MASK2FORMER_NAMES:
            name = re.sub(f'^{pattern}', new, name)
        return _MASK2FORMER + name

    return _rename(tensors, new_name)


# Applied in this order. A rule knows one layout, and leaves the others alone.
_RULES: tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], ...] = (
    _strip_data_parallel,
    _strip_hugging_face,
    _place_classifier,
    _join_split_ffns,
    _place_dino,
    _rename_mask2former,
)


def is_known(name: str) -> bool:
    """Tell whether one of our models can have a parameter of that name."""
    return _KNOWN.match(name) is not None


def shorten(items: list[str], limit: int = 6) -> str:
    """Name the first few of many items, and how many there are."""
    shown = ', '.join(items[:limit])
    return shown + (f', ... ({len(items)} in all)' if len(items) > limit else '')
