# SPDX-License-Identifier: Apache-2.0
"""Calls of linear layers where PyTorch's own way has a trap."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .autocast import autocast_dtype
from .torch_internals import find_observer, is_called_plainly, parameters_of


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a linear layer.

    If the output of a layer is kept for the backward pass, Inductor compares the
    strides of a view, as it is, and ends where they are of dynamic sizes (PyTorch 2.11
    on the CPU: 'cannot determine truth value of Relational'). A sum is no view.

    Args:
        layer: Maps ``(..., in_features)`` to ``(..., out_features)``.
        x: ``(..., in_features)``.
    """
    is_kept_by_inductor = (
        torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and x.device.type == 'cpu'
    )
    if is_kept_by_inductor and _is_plain(layer):
        weight, bias = parameters_of(layer)
        return F.linear(x, weight) + bias
    return layer(x)


def linear_to_float32(layer: nn.Module, x: Tensor, is_inference: bool) -> Tensor:
    """Call a linear layer, in float32 where it would run in bfloat16.

    Args:
        layer: As for :func:`linear`. Of adapters and quantised layers only plain
            parameters are widened: they decide for themselves about others.
        x: ``(..., in_features)``.
        is_inference: No gradient is needed, and nobody looks at the operators.

    Returns:
        ``(..., out_features)``, float32 if ``x`` or the autocast region is bfloat16.
    """
    device_type = x.device.type
    autocast = autocast_dtype(device_type)
    if (autocast or x.dtype) != torch.bfloat16:
        return linear(layer, x)
    with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
        if _is_plain(layer) and (torch.compiler.is_compiling() or not find_observer()):
            weight, bias = parameters_of(layer)
            if is_inference and x.is_cuda and x.dtype == weight.dtype:
                # The same by matrix units, whose sums are in float32: products of
                # bfloat16 are exact there.
                rows = torch.mm(x.flatten(0, -2), weight.t(), out_dtype=torch.float32)
                return rows.add_(bias).unflatten(0, x.shape[:-1])
            return F.linear(x.float(), weight.float(), bias.float())
        widened = {
            name: parameter.float()
            for name, parameter in layer.named_parameters()
            if type(parameter) is nn.Parameter and parameter.is_floating_point()
        }
        return functional_call(layer, widened, (x.float(),))


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a call computes ``x weight^T + bias`` and nothing else."""
    return (
        type(layer) is nn.Linear and layer.bias is not None and is_called_plainly(layer)
    )
