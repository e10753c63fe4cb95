# SPDX-License-Identifier: Apache-2.0
"""Checks of what layers get, before they start to compute."""

from typing import Any

from torch import Tensor, nn

from .autocast import autocast_dtype
from .torch_internals import is_called_plainly


def check_channels_last(name: str, x: Tensor, channels: int | None = None) -> None:
    """Check that ``x`` is ``(N, H, W, C)``.

    Raises:
        TypeError: Not a tensor, or of integers.
        ValueError: Of another shape.
    """
    check_floating(name, x)
    if x.dim() == 4 and (channels is None or x.shape[3] == channels):
        return
    wanted = '' if channels is None else f', with C = {channels}'
    advice = ''
    if x.dim() == 4 and x.shape[1] == channels:
        advice = ': permute(0, 2, 3, 1) turns (N, C, H, W) into it'
    raise ValueError(
        f'{name}: expected (N, H, W, C), channels last{wanted}, '
        f'got {tuple(x.shape)}{advice}'
    )


def check_floating(name: str, x: Tensor) -> None:
    """Check that ``x`` is a tensor of floating-point numbers.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f'{name}: expected a Tensor, got {type(x).__name__}')
    if not x.is_floating_point():
        raise TypeError(f'{name}: expected floating-point numbers, got {x.dtype}')


def check_matches(name: str, x: Tensor, layer_name: str, layer: nn.Module) -> None:
    """Check that ``x`` has dtype and device of the first layer that it goes through.

    Only of a plain layer: others may cast or move what they get. Autocast casts.

    Raises:
        TypeError: Of another dtype.
        ValueError: On another device.
    """
    if not is_called_plainly(layer):
        return
    weight: Any = layer.weight
    if x.device != weight.device:
        raise ValueError(
            f'{name}: expected device {weight.device} as {layer_name}.weight, '
            f'got {x.device}'
        )
    if x.dtype != weight.dtype and autocast_dtype(x.device.type) is None:
        raise TypeError(
            f'{name}: expected {weight.dtype} as {layer_name}.weight, got {x.dtype}'
        )
