# SPDX-License-Identifier: Apache-2.0
"""Convert what was read from a file, where it is a published InternImage."""

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor

from .key_maps import convert_published, find_wrapper, innermost

# A parameter of DCNv3 in InternImage, unlikely in anybody else's model.
_SIGNATURE = 'levels.0.blocks.0.dcn.offset.weight'


def convert_loaded(content: Any) -> Any:
    """Convert what was read from a file, where it is a published InternImage.

    Args:
        content: Anything that a checkpoint file can hold.

    Returns:
        ``content`` itself, if it is something else, or from mmengine's runner, or a
        backbone alone with the right names. Otherwise a dict of the converted weights
        as ``state_dict``, of what the file holds beside them, and of ``meta``: mmseg's
        ``init_model`` wants to have one, if only an empty one.

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
        is_backbone = weights is content and _SIGNATURE in weights
        if is_backbone or 'meta' in content:
            return content
        # mmengine's EMAHook looks for a model's weights in ``state_dict`` only.
        beside = {} if weights is content else content
        return {**beside, 'state_dict': weights, 'meta': {}}
    renamed = sum(key not in weights for key in converted)
    print_log(
        'checkpoint: a published InternImage, converted: '
        f'{renamed} of {len(converted)} tensors renamed',
        logger='current',
    )
    beside = {key: content[key] for key in content if wrapper and key != wrapper}
    return {'meta': {}} | beside | {'state_dict': converted}


def _is_from_mmengine(content: Mapping[str, Any]) -> bool:
    """Tell whether mmengine's runner wrote it, for a model with the right names."""
    meta = content.get('meta')
    return isinstance(meta, dict) and 'mmengine_version' in meta


def _is_internimage(weights: Mapping[str, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in weights.values()) and any(
        str(key).endswith(_SIGNATURE) for key in weights
    )
