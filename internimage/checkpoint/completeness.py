# SPDX-License-Identifier: Apache-2.0
"""Find what is missing from weights by what is there."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import pairwise

# Of the levels of a backbone, all but the last have one.
_BETWEEN = 'downsample.'

# What published heads have once. Who has half of it, has it all.
_TOGETHER = (
    ('', ('head.fc.weight', 'head.fc.bias', 'neck')),
    ('', ('neck.conv_head.0', 'neck.conv_head.1', 'head.fc')),
    (
        '',
        (
            *('neck.dcnv3_head_x3', 'neck.dcnv3_head_x4', 'neck.clip_projector'),
            *('neck.fc_norm', 'head.fc'),
        ),
    ),
    ('head', ('meta_head_1', 'meta_head_2', 'meta_norm', 'meta_head')),
    ('neck', ('lateral_convs', 'fpn_convs')),
    ('rpn_head', ('rpn_conv', 'rpn_cls', 'rpn_reg')),
    ('', ('rpn_head', 'roi_head')),
    ('roi_head.bbox_head', ('shared_fcs', 'fc_cls', 'fc_reg')),
    ('roi_head.mask_head', ('convs', 'upsample', 'conv_logits')),
    ('neck', ('convs', 'extra_convs')),
    (
        '',
        (
            *('bbox_head.cls_branches', 'bbox_head.reg_branches'),
            *('encoder.layers', 'decoder.layers', 'decoder.norm'),
            *('decoder.ref_point_head', 'dn_query_generator.label_embedding'),
            *('level_embed', 'memory_trans_fc', 'memory_trans_norm', 'query_embedding'),
        ),
    ),
    (
        'decode_head',
        (
            *('cls_embed', 'mask_embed', 'level_embed', 'query_embed', 'query_feat'),
            *('pixel_decoder.encoder', 'pixel_decoder.input_convs'),
            *('pixel_decoder.lateral_convs', 'pixel_decoder.output_convs'),
            *('pixel_decoder.level_encoding', 'pixel_decoder.mask_feature'),
            *('transformer_decoder.layers', 'transformer_decoder.post_norm'),
        ),
    ),
    (
        'decode_head',
        (
            *('conv_seg', 'psp_modules', 'bottleneck'),
            *('lateral_convs', 'fpn_convs', 'fpn_bottleneck'),
        ),
    ),
    ('decode_head', ('convs', 'fusion_conv', 'conv_seg')),
    ('auxiliary_head', ('convs', 'conv_seg')),
)


def find_gaps(names: Collection[str]) -> list[str]:
    """Find parts of a model that must have been there, from the names of its weights.

    Parts of one kind have numbers: the blocks of a level, the layers of a decoder. A
    number is not left out, and what most of them have, all have. What comes last is not
    missed here, nor what comes once, but in published heads.

    Returns:
        Missing parts and weights, like ``backbone.levels.2`` or ``neck.convs.1.bias``.
    """
    missing = [
        name.removesuffix('bias') + 'weight'
        for name in names
        if name.endswith('.bias') and name.removesuffix('bias') + 'weight' not in names
    ]
    for parent, parts in _numbered_parts(names).items():
        missing += [f'{parent}.{number}' for number in _absent_numbers(parts)]
        missing += [f'{parent}.{name}' for name in _absent_members(parts)]
        last = max(parts)
        if any(name.startswith(_BETWEEN) for name in parts[last]):
            missing.append(f'{parent}.{last + 1}')
    return _outermost([*missing, *_absent_companions(names)])


def _absent_companions(names: Iterable[str]) -> list[str]:
    words = [name.split('.') for name in names]
    present = {'.'.join(w[:end]) for w in words for end in range(1, len(w) + 1)}
    absent: list[str] = []
    for parent, parts in _TOGETHER:
        together = {f'{parent}.{part}'.lstrip('.') for part in parts}
        here = together & present
        # DINO's neck has the names of half of one; a head of segmentation may too.
        if 2 * len(here) >= len(together):
            absent += together - here
    return absent


def _numbered_parts(names: Iterable[str]) -> dict[str, dict[int, set[str]]]:
    """Group names: what has numbers, the numbers, and what each of them has.

    Numbers further in are no matter here: ``blocks.#.mlp.weight``.
    """
    parents: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        words = name.split('.')
        for place, word in enumerate(words):
            if word.isdecimal():
                rest = ('#' if w.isdecimal() else w for w in words[place + 1 :])
                parents['.'.join(words[:place])][int(word)].add('.'.join(rest))
    return parents


def _absent_numbers(parts: dict[int, set[str]]) -> list[int]:
    numbers = sorted(parts)
    absent = [number for number in range(max(parts)) if number not in parts]
    if any('.' in name for members in parts.values() for name in members):
        in_common = set.intersection(*parts.values())
        is_series = len(parts) > 1 and any('.' in name for name in in_common)
        return absent if is_series else []
    # Layers in a row: an activation between them takes a number, and has no weights.
    steps = {b - a for a, b in pairwise(numbers)}
    is_alike = len({frozenset(members) for members in parts.values()}) == 1
    return absent if is_alike and len(steps) > 1 and 1 in steps else []


def _absent_members(parts: dict[int, set[str]]) -> list[str]:
    """Name what at most a third of the parts lack."""
    holders: dict[str, set[int]] = defaultdict(set)
    for number, members in parts.items():
        for name in members:
            holders[name].add(number)
    is_series = any('.' in name for name in set.intersection(*parts.values()))
    absent = []
    for name, having in holders.items():
        lacking = parts.keys() - having
        if name.startswith(_BETWEEN):
            lacking -= {max(parts)}
        if is_series and 0 < len(lacking) <= len(parts) // 3:
            absent += [f'{number}.{name}' for number in sorted(lacking)]
    return absent


def _outermost(missing: Iterable[str]) -> list[str]:
    """Leave out what is in a part that is missing as a whole, and repetitions."""
    found: list[str] = []
    for name in sorted(set(missing), key=len):
        if not any(name.startswith(f'{part}.') for part in found):
            found.append(name)
    return sorted(found)
