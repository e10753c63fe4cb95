# SPDX-License-Identifier: Apache-2.0
"""Normalisation and activation by name, with the published parameter names.

The published networks keep activations channels-last and wrap a norm in a
``Sequential`` together with the layout changes that it needs. Released weights
are named after the position in that ``Sequential``, so the position is part of
the contract: ``norm.0`` where no change comes first, ``norm.1`` where one does.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import library
from .arguments import choice
from .context import is_observed
from .registration import autocast_dtype, run_below_autograd

# Not in place, as published: then the layer before could have no backward hook.
ACT_LAYERS: dict[str, Callable[[], nn.Module]] = {
    'GELU': nn.GELU,
    'ReLU': nn.ReLU,
    'SiLU': nn.SiLU,
}
NORM_LAYERS = ('LN', 'BN')
_FORMATS = ('channels_first', 'channels_last')


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a linear layer, by our kernel where that is faster.

    A layer that is no plain ``nn.Linear``, or has hooks, is called as ever.

    Args:
        layer: Maps ``(..., in_features)`` to ``(..., out_features)``.
        x: ``(..., in_features)``.
    """
    if _suits_linear_kernel(x) and is_plain_linear(layer):
        weight: Any = layer.weight
        bias: Any = layer.bias
        if not torch.is_grad_enabled():
            return _run_kernel(x, weight, bias)
        if x.dim() > 1:
            return _Linear.apply(x, weight, bias, False)
    if _is_kept_by_inductor(x) and (found := plain_parameters(layer, nn.Linear)):
        weight, bias = found
        return F.linear(x, weight) + bias
    return layer(x)


def _is_kept_by_inductor(x: Tensor) -> bool:
    """Tell whether a compiler for the CPU may keep the output for the backward pass.

    Inductor then compares the strides of the output if it is a view, as the whole
    layer's would be, and ends where they are of dynamic sizes (PyTorch 2.11: 'cannot
    determine truth value of Relational').
    """
    return (
        torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and x.device.type == 'cpu'
    )


def linear_of_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """Run a plain linear layer of the GELU of ``x``, and keep ``x`` for the gradient.

    PyTorch's own pair also keeps what the GELU computes, as large. (Its activation
    checkpoint does this as well, in several times the time of the GELU on small maps.)

    Args:
        layer: Of which :func:`is_plain_linear` is true.
        x: ``(N, ..., in_features)``.
    """
    return _Linear.apply(x, layer.weight, layer.bias, True)


class _Linear(torch.autograd.Function):
    """A linear layer, by our kernel where that is faster; or one of a GELU."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.gelu = gelu
        seen = F.gelu(x) if gelu else x
        run = _run_kernel if has_linear_kernel(seen) else F.linear
        return run(seen, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # Autocast had a copy of the weight in the dtype of the product.
            grad_x = grad @ weight.to(grad.dtype)
            if ctx.gelu:
                grad_x = torch.ops.aten.gelu_backward(grad_x, x)
        rows = grad.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            seen = (F.gelu(x) if ctx.gelu else x).flatten(0, -2).to(grad.dtype)
            grad_weight = (rows.t() @ seen).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0).to(bias.dtype)
        return grad_x, grad_weight, grad_bias, None


def _run_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    operator = torch.ops.ops_dcnv3.linear_forward.default
    return run_below_autograd(operator, x, weight, bias)


def has_linear_kernel(x: Tensor) -> bool:
    """Tell whether our kernel should run a linear layer of ``x``, without gradients."""
    return not torch.is_grad_enabled() and _suits_linear_kernel(x)


def _suits_linear_kernel(x: Tensor) -> bool:
    return _is_plain(x) and not is_observed() and _has_fast_linear_kernel()


@functools.cache
def _has_fast_linear_kernel() -> bool:
    """Tell whether our kernel beats PyTorch's libraries on this machine.

    With AVX2 and with AVX-512 it does, by a tenth for many rows and by more than a
    third for few; what the compiler makes of it elsewhere is slower.
    """
    return library.build_info()['cpu_capability'] in ('avx2', 'avx512')


def is_untouched(module: nn.Module, expected: type) -> bool:
    """Tell whether a module is of exactly this type, and nobody waits for its calls.

    Nobody by hooks, nor by a ``forward`` of the instance's own, as offloading sets it.
    """
    return (
        type(module) is expected
        and 'forward' not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
    )


def is_plain_linear(layer: nn.Module) -> bool:
    """Tell whether it is an untouched linear layer, whose weights are plain tensors.

    Quantised ones are not: they come with an ``F.linear`` of their own.
    """
    weight, bias = layer._parameters.get('weight'), layer._parameters.get('bias')
    return (
        is_untouched(layer, nn.Linear)
        and type(weight) is nn.Parameter
        and (bias is None or type(bias) is nn.Parameter)
    )


def check_matches(name: str, x: Tensor, layer_name: str, layer: nn.Module) -> None:
    """Check that ``x`` has dtype and device of the first layer that it goes through.

    Only of a plain layer: others may cast or move what they get. Autocast casts.

    Raises:
        TypeError: Of another dtype.
        ValueError: On another device.
    """
    weight: Any = layer._parameters.get('weight')
    if type(weight) is not nn.Parameter or not is_untouched(layer, type(layer)):
        return
    if x.device != weight.device:
        raise ValueError(
            f'{name}: expected device {weight.device} as {layer_name}.weight, '
            f'got {x.device}'
        )
    if x.dtype != weight.dtype and autocast_dtype(x.device.type) is None:
        raise TypeError(
            f'{name}: expected {weight.dtype} as {layer_name}.weight, got {x.dtype}'
        )


def plain_parameters(layer: nn.Module, expected: type) -> list[Tensor] | None:
    """Return weight and bias of an untouched layer, if both are there and plain.

    By dictionaries: a module's attributes take as long as a layer of a small map.
    """
    if not is_untouched(layer, expected):
        return None
    weight, bias = layer._parameters.get('weight'), layer._parameters.get('bias')
    if type(weight) is nn.Parameter and type(bias) is nn.Parameter:
        return [weight, bias]
    return None


def parameters_of_norm(
    norm: nn.Module, *changes: type
) -> tuple[list[Tensor], float] | None:
    """Return weight and bias and epsilon of an untouched LayerNorm, None of another.

    Args:
        norm: Of :func:`build_norm_layer`, to channels last.
        changes: Types of the changes of layout that come first.
    """
    layers: list[Any] = list(norm._modules.values())
    if not is_untouched(norm, nn.Sequential) or len(layers) != len(changes) + 1:
        return None
    *before, inner = layers
    parameters = plain_parameters(inner, nn.LayerNorm)
    is_as_built = all(map(is_untouched, before, changes))
    if not parameters or not is_as_built or len(inner.normalized_shape) != 1:
        return None
    return parameters, inner.eps


def is_exact_gelu(act: nn.Module) -> bool:
    """Tell whether it is an untouched GELU, and not the approximation by tanh."""
    return is_untouched(act, nn.GELU) and act.approximate == 'none'


def is_plain_inference(x: Tensor) -> bool:
    """Tell whether it is float32 on a CPU, and no one looks at the operators."""
    return _is_plain(x) and is_unobserved(x)


def is_unobserved(x: Tensor) -> bool:
    """Tell whether no one looks at which operators run, not even autograd."""
    return not torch.is_grad_enabled() and type(x) is Tensor and not is_observed()


def _is_plain(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and x.dtype == torch.float32
        and x.device.type == 'cpu'
        and not torch.is_autocast_enabled('cpu')
    )


def keeps_for_backward() -> bool:
    """Tell whether layers keep tensors for gradients, and may run again instead.

    While somebody looks they do not: calls would be left out, or come twice. Nor in
    compiled code: compilers decide for themselves what to compute again.
    """
    return torch.is_grad_enabled() and not is_observed()


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
