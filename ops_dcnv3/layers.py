# SPDX-License-Identifier: Apache-2.0
"""Normalisation and activation by name, with the published parameter names.

The published networks keep activations channels-last and wrap a norm in a
``Sequential`` together with the layout changes that it needs. Released weights
are named after the position in that ``Sequential``, so the position is part of
the contract: ``norm.0`` where no change comes first, ``norm.1`` where one does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .registration import is_traced

_ACT_LAYERS: dict[str, Callable[[], nn.Module]] = {
    'GELU': nn.GELU,
    'ReLU': lambda: nn.ReLU(inplace=True),
    'SiLU': lambda: nn.SiLU(inplace=True),
}
_FORMATS = ('channels_first', 'channels_last')


def linear(
    layer: nn.Module,
    x: Tensor,
    act: nn.Module | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Run a linear layer and what follows, on a CPU by oneDNN where that is faster.

    oneDNN adds the bias and applies a GELU, or adds the residual, as it writes the
    product; PyTorch's own path copies the bias first and reads the product again.
    A layer that is no plain ``nn.Linear``, or has hooks, is called as ever.

    Args:
        layer: Maps ``(..., in_features)`` to ``(..., out_features)``.
        x: ``(..., in_features)``.
        act: Applied to the result.
        residual: ``(..., out_features)``, added after that.
    """
    if (
        is_plain_inference(x)
        and is_untouched(layer, nn.Linear)
        and _is_faster_by_onednn(x)
    ):
        weight, bias = layer.weight, layer.bias
        if act is None and residual is not None:
            return _onednn_linear.binary(x, residual, weight, bias, 'add')
        if act is not None and is_exact_gelu(act):
            x = _onednn_linear(x, weight, bias, 'gelu', [], 'none')
            act = None
        else:
            x = _onednn_linear(x, weight, bias, 'none', [], '')
    else:
        x = layer(x)
    if act is not None:
        x = act(x)
    return x if residual is None else residual + x


def is_untouched(module: nn.Module, expected: type) -> bool:
    """Tell whether a module is of exactly this type, and nobody waits for its calls.

    Nobody by hooks, nor by a ``forward`` of the instance's own, as offloading sets it.
    """
    return (
        type(module) is expected
        and 'forward' not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def is_exact_gelu(act: nn.Module) -> bool:
    """Tell whether it is an untouched GELU, and not the approximation by tanh."""
    return is_untouched(act, nn.GELU) and act.approximate == 'none'


_onednn_linear: Any = getattr(torch.ops.mkldnn, '_linear_pointwise', None)
if not torch.backends.mkldnn.is_available():
    _onednn_linear = None
# With fewer rows, the time to lay short weights out anew is not won back.
_MIN_ROWS = 96
_MIN_FEATURES = 1536


def _is_faster_by_onednn(x: Tensor) -> bool:
    features = x.shape[-1]
    return _onednn_linear is not None and (
        features >= _MIN_FEATURES or x.numel() >= _MIN_ROWS * features
    )


def is_plain_inference(x: Tensor) -> bool:
    """Tell whether it is float32 on a CPU, and no one looks at the operators."""
    return (
        x.dtype == torch.float32
        and x.device.type == 'cpu'
        and not torch.is_autocast_enabled('cpu')
        and is_unobserved(x)
    )


def is_unobserved(x: Tensor) -> bool:
    """Tell whether no one looks at which operators run.

    Gradients, compilers, tracers and counters need those that they know.
    """
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not is_traced()
        and not torch._C._len_torch_dispatch_stack()
    )


def keeps_for_backward() -> bool:
    """Tell whether layers keep tensors for gradients, in code that nobody traces."""
    return torch.is_grad_enabled() and not is_traced()


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
        ValueError: An unknown ``norm_layer`` or format.
    """
    for name, value in (('in_format', in_format), ('out_format', out_format)):
        if value not in _FORMATS:
            raise ValueError(f'{name}: expected one of {_FORMATS}, got {value!r}')
    if norm_layer == 'LN':
        norm: nn.Module = nn.LayerNorm(num_channels, eps=eps)
        native = 'channels_last'
    elif norm_layer == 'BN':
        norm = nn.BatchNorm2d(num_channels)
        native = 'channels_first'
    else:
        raise ValueError(f"norm_layer: expected 'LN' or 'BN', got {norm_layer!r}")
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
        ValueError: An unknown name.
    """
    if act_layer not in _ACT_LAYERS:
        raise ValueError(
            f'act_layer: expected one of {tuple(_ACT_LAYERS)}, got {act_layer!r}'
        )
    return _ACT_LAYERS[act_layer]()
