# SPDX-License-Identifier: Apache-2.0
"""Normalisation and activation by name, with the published parameter names.

The published networks keep activations channels-last and wrap a norm in a
``Sequential`` together with the layout changes that it needs. Released weights
are named after the position in that ``Sequential``, so the position is part of
the contract: ``norm.0`` where no change comes first, ``norm.1`` where one does.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .arguments import choice

# Not in place, as published: then the layer before could have no backward hook.
ACT_LAYERS: dict[str, Callable[[], nn.Module]] = {
    'GELU': nn.GELU,
    'ReLU': nn.ReLU,
    'SiLU': nn.SiLU,
}
NORM_LAYERS = ('LN', 'BN')
_FORMATS = ('channels_first', 'channels_last')


class ToChannelsFirst(nn.Module):
    """View ``(N, H, W, C)`` as ``(N, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class ToChannelsLast(nn.Module):
    """View ``(N, C, H, W)`` as ``(N, H, W, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def build_norm_layer(
    num_channels: int,
    norm_layer: str = 'LN',
    in_format: str = 'channels_last',
    out_format: str = 'channels_last',
    eps: float = 1e-6,
) -> nn.Sequential:
    """Build a norm over channels between two memory formats.

    Args:
        num_channels: Size of the channel dimension.
        norm_layer: ``'LN'`` (LayerNorm over channels, works on channels-last) or
            ``'BN'`` (BatchNorm2d, works on channels-first).
        in_format: ``'channels_last'`` (NHWC) or ``'channels_first'`` (NCHW).
        out_format: As ``in_format``.
        eps: Epsilon of LayerNorm. BatchNorm keeps PyTorch's own, as published.

    Returns:
        A ``Sequential`` of the norm and the layout changes around it.

    Raises:
        TypeError: ``norm_layer`` or a format is no text.
        ValueError: An unknown ``norm_layer`` or format.
    """
    for name, value in (('in_format', in_format), ('out_format', out_format)):
        choice(name, value, _FORMATS)
    if choice('norm_layer', norm_layer, NORM_LAYERS) == 'LN':
        norm: nn.Module = nn.LayerNorm(num_channels, eps=eps)
        native = 'channels_last'
    else:
        norm = nn.BatchNorm2d(num_channels)
        native = 'channels_first'
    change = {'channels_first': ToChannelsFirst, 'channels_last': ToChannelsLast}
    layers = [norm]
    if in_format != native:
        layers.insert(0, change[native]())
    if out_format != native:
        layers.append(change[out_format]())
    return nn.Sequential(*layers)


def build_act_layer(act_layer: str) -> nn.Module:
    """Build an activation by its published name.

    Args:
        act_layer: ``'GELU'``, ``'ReLU'`` or ``'SiLU'``.

    Raises:
        TypeError: No name.
        ValueError: An unknown one.
    """
    return ACT_LAYERS[choice('act_layer', act_layer, ACT_LAYERS)]()
