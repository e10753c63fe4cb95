# SPDX-License-Identifier: Apache-2.0
"""Weights that no model can have: refused by name when they are read."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from .key_maps import innermost, shorten
from .rebuilding import RefusedError

# Averages that a training program keeps beside the weights.
_AVERAGES = ('ema_state_dict', 'state_dict_ema', 'model_ema')

# What a model computes with. Beside it, it may count and index: in integers.
_REAL_NAME = re.compile(
    r'(.*[._])?(weight|bias|gamma|gamma1|gamma2|beta|scale|running_mean|running_var'
    r'|level_embeds?|query_embed|pos_embed|absolute_pos_embed|cls_token|mask_token)'
)
_ALLOW = 'INTERNIMAGE_ALLOW_NONFINITE'


def check_weights(content: Any, allow_nonfinite: bool | None = None) -> None:
    """Check what a file holds as weights.

    Args:
        content: What was read: bare weights, or with wrappers around them.
        allow_nonfinite: As for :func:`.load_checkpoint_file`.

    Raises:
        RefusedError: It is no dict with texts as keys, or an empty one; or some weights
            are complex numbers, integers where a model has real numbers, infinite, or
            not a number.
    """
    if not isinstance(content, dict):
        raise RefusedError(
            'expected a dict of named tensors, bare or wrapped, got an object of type '
            f'{type(content).__name__!r}'
        )
    if not content:
        raise RefusedError('expected a dict of named tensors, got an empty one')
    _check_names(content)
    if allow_nonfinite is None:
        allow_nonfinite = os.environ.get(_ALLOW, '0') not in ('', '0')
    groups = {id(group): group for group in _groups(content)}.values()
    for weights in groups:
        _check_names(weights)
        tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
        _refuse(tensors, 'of complex numbers', lambda _, value: value.is_complex())
        _refuse(
            tensors,
            'of integers, where a model has real numbers',
            lambda key, value: bool(
                not value.is_floating_point() and _REAL_NAME.fullmatch(key)
            ),
        )
        try:
            _refuse(tensors, 'infinite or not a number', _is_nonfinite)
        except RefusedError as error:
            if not allow_nonfinite:
                raise RefusedError(
                    f'{error} (the training that wrote it had diverged, or it is '
                    f'damaged; {_ALLOW}=1 takes it nevertheless)'
                ) from None
            print_log(f'checkpoint: {error}', 'current', logging.WARNING)


def _groups(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    averages = [content.get(key) for key in _AVERAGES]
    return [
        innermost(content),
        *(innermost(average) for average in averages if isinstance(average, dict)),
    ]


def _check_names(weights: Mapping[Any, Any]) -> None:
    others = [repr(key)[:40] for key in weights if not isinstance(key, str)]
    if others:
        raise RefusedError(f'expected texts as names, got {shorten(others)}')


def _refuse(
    tensors: Mapping[str, Tensor], what: str, is_bad: Callable[[str, Tensor], bool]
) -> None:
    bad = [key for key, tensor in tensors.items() if is_bad(key, tensor)]
    if bad:
        raise RefusedError(
            f'{len(bad)} of {len(tensors)} weights are {what}: {shorten(bad)}'
        )


def _is_nonfinite(key: str, tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return False
    if tensor.dtype.itemsize == 1:  # float8: PyTorch does not compute with it
        tensor = tensor.float()
    if key.endswith('mask'):  # of attention: minus infinity where nothing may be seen
        return bool(_extremes(tensor).isnan().any())
    return not is_finite(tensor)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether no element is infinite or not a number; of real or complex ones."""
    if not tensor.numel():
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return bool(_extremes(tensor).isfinite().all())


def _extremes(tensor: Tensor) -> Tensor:
    """Return the least and the largest element, both NaN where any is.

    0.1 s per GB, where torch.isfinite takes 7 to 9: one pass, nothing written.
    """
    return torch.stack(torch.aminmax(tensor.detach()))
