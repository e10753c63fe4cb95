# SPDX-License-Identifier: Apache-2.0
"""Map published checkpoints to this package's parameter names, and load backbones.

Published weights come in several layouts: a classification model's parameters bare, a
detector's or segmentor's with ``backbone.`` before them, the Hugging Face port's with
``model.``; wrapped by the program that saved them or not. :func:`convert_published`
maps them all. ``import internimage`` puts :func:`convert_loaded` behind every loader of
mmengine, so that a published file can be given wherever a checkpoint can.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from .key_maps import (
    ANCHOR,
    convert_published,
    find_wrapper,
    innermost,
    shorten,
)
from .safe_loader import load_checkpoint_file

__all__ = [
    'backbone_state_dict',
    'convert_loaded',
    'convert_published',
    'load_checkpoint_file',
    'load_pretrained',
]

_BACKBONE_KEY = re.compile(r'(patch_embed|levels)\.')

# A parameter of DCNv3 in InternImage, unlikely in anybody else's model.
_SIGNATURE = 'levels.0.blocks.0.dcn.offset.weight'


def convert_loaded(content: Any) -> Any:
    """Convert what was read from a file, where it is a published InternImage.

    Args:
        content: Anything that a checkpoint file can hold.

    Returns:
        ``content`` itself, if it is something else, or from mmengine's runner, or if
        mmengine finds the right names in it; as ``state_dict``, if these are a whole
        model's and nothing is around them. Otherwise a dict of the converted weights
        as ``state_dict``, and of what the file holds beside them.

    Raises:
        ValueError: Two weights would get the same name.
    """
    if not isinstance(content, dict) or _is_from_mmengine(content):
        return content
    weights = innermost(content)
    if not _is_internimage(weights):
        return content
    converted = convert_published(weights)
    # mmengine knows one wrapper: elsewhere it looks for weights at the top.
    wrapper = find_wrapper(content)
    is_found = weights is content.get('state_dict', content)
    if is_found and list(converted) == list(weights):
        # mmengine's EMAHook looks for a model's weights in ``state_dict`` only.
        is_bare_model = weights is content and _SIGNATURE not in weights
        return {'state_dict': weights} if is_bare_model else content
    renamed = sum(key not in weights for key in converted)
    print_log(
        'checkpoint: a published InternImage, converted: '
        f'{renamed} of {len(converted)} tensors renamed',
        logger='current',
    )
    beside = {key: content[key] for key in content if wrapper and key != wrapper}
    return {**beside, 'state_dict': converted}


def _is_from_mmengine(content: Mapping[str, Any]) -> bool:
    """Tell whether mmengine's runner wrote it, for a model with the right names."""
    meta = content.get('meta')
    return isinstance(meta, dict) and 'mmengine_version' in meta


def _is_internimage(weights: Mapping[str, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in weights.values()) and any(
        str(key).endswith(_SIGNATURE) for key in weights
    )


def backbone_state_dict(
    state_dict: Mapping[str, Any], prefix: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Take the backbone out of a published checkpoint.

    Args:
        state_dict: As for :func:`convert_published`.
        prefix: What stands before the names of the backbone's weights, once converted;
            None to find out.

    Returns:
        The backbone's weights, by the names that ``InternImage`` has for them; and
        the names of all others.

    Raises:
        ValueError: There is no InternImage backbone, or more than one and no
            ``prefix`` to choose by.
    """
    tensors = convert_published(state_dict)
    prefixes = [key.removesuffix(ANCHOR) for key in tensors if key.endswith(ANCHOR)]
    if prefix is not None:
        wanted = prefix.rstrip('.') + '.' if prefix else ''
        prefixes = [found for found in prefixes if found == wanted]
    if not prefixes:
        place = 'anywhere' if prefix is None else f'at prefix {prefix!r}'
        raise ValueError(
            f'checkpoint: expected an InternImage backbone, got none {place}; it has '
            f'{_group(tensors)}'
        )
    if len(prefixes) > 1:
        raise ValueError(
            f'checkpoint: expected one InternImage backbone, got {len(prefixes)}; '
            f'choose a prefix of {prefixes}'
        )
    backbone, left_out = {}, []
    for key, tensor in tensors.items():
        name = key.removeprefix(prefixes[0])
        if key.startswith(prefixes[0]) and _BACKBONE_KEY.match(name):
            backbone[name] = tensor
        else:
            left_out.append(key)
    return backbone, left_out


def load_pretrained(
    model: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: Any = 'cpu',
) -> None:
    """Fill an InternImage with the backbone of a published checkpoint.

    The backbone has to fit: a parameter that silently keeps its initial value costs
    accuracy that nobody finds. One absence is harmless, and logged: the ``gamma`` of a
    layer scale that starts at 1 changes nothing (InternImage-T was pre-trained without
    layer scale, its detectors and segmentors have one). Weights of the file that are
    not the backbone's are logged and left out.

    Args:
        model: The ``InternImage``.
        checkpoint: Path or URL, in any layout that :func:`backbone_state_dict` takes.
        prefix: As for :func:`backbone_state_dict`.
        map_location: As for ``torch.load``.

    Raises:
        ValueError: The file has no backbone, or one of another architecture; the
            message lists the differences.
        UnpicklingError: The file holds more than tensors and plain data.
    """
    content = CheckpointLoader.load_checkpoint(
        checkpoint, map_location, logger='current'
    )
    tensors, left_out = backbone_state_dict(content, prefix)
    expected = model.state_dict()
    absent = [key for key in expected if key not in tensors]
    neutral = [key for key in absent if _is_neutral_scale(key, expected[key])]
    differences = {
        'not in the file': [key for key in absent if key not in neutral],
        'not in the model': [key for key in tensors if key not in expected],
        'of different shape': [
            f'{key}: file {tuple(tensors[key].shape)}, model {tuple(value.shape)}'
            for key, value in expected.items()
            if key in tensors and tensors[key].shape != value.shape
        ],
    }
    if any(differences.values()):
        raise ValueError(
            f'{checkpoint}: expected the backbone of this model; check its arch and '
            'layer_scale. '
            + '; '.join(
                f'{len(keys)} {what}: {shorten(keys)}'
                for what, keys in differences.items()
                if keys
            )
        )
    model.load_state_dict(tensors, strict=False)
    message = f'{checkpoint}: loaded the {len(tensors)} tensors of the backbone'
    if left_out:
        message += f'; left out {_group(left_out)}'
    if neutral:
        message += f'; not in the file, kept at 1: {len(neutral)} layer scales (gamma)'
    print_log(message, logger='current')


def _is_neutral_scale(key: str, value: Tensor) -> bool:
    return key.endswith(('.gamma1', '.gamma2')) and bool(torch.all(value == 1))


def _group(keys: Iterable[str]) -> str:
    """Summarise names by their first component: ``head.* (2), conv_head.* (6)``."""
    counts = Counter(key.split('.')[0] for key in keys)
    return ', '.join(f'{first}.* ({count})' for first, count in counts.items())
