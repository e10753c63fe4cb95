# SPDX-License-Identifier: Apache-2.0
"""What PyTorch must know of the compiled operators beside their kernels.

Shapes without data (fake kernels), gradients, autocast. The schemas are in
``csrc/bindings.cpp``.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from .geometry import Geometry, check_tensors, make_geometry

_FORWARD = 'ops_dcnv3::dcnv3_forward'
_BACKWARD = 'ops_dcnv3::dcnv3_backward'
_HALF_DTYPES = (torch.bfloat16, torch.float16)


def register() -> None:
    """Register everything; call once, after the CPU library is loaded."""
    torch.library.register_fake(_FORWARD, _fake_forward)
    torch.library.register_fake(_BACKWARD, _fake_backward)
    torch.library.register_autograd(
        _FORWARD, _autograd_backward, setup_context=_setup_context
    )
    torch.library.register_autograd(_BACKWARD, _double_backward)
    for key in ('AutocastCPU', 'AutocastCUDA'):
        _LIBRARY.impl('dcnv3_forward', _autocast_forward, key)


# -- Fake kernels: shapes and dtypes only --------------------------------------------


def _to_geometry(args: tuple[Any, ...]) -> Geometry:
    kernel_size, stride, padding, dilation, groups, offset_scale, remove_center = args
    return make_geometry(
        tuple(kernel_size),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups,
        offset_scale,
        remove_center,
    )


def _fake_forward(input: Tensor, offset: Tensor, mask: Tensor, *args: Any) -> Tensor:
    out_h, out_w = check_tensors(input, offset, mask, _to_geometry(args))
    return input.new_empty(input.shape[0], out_h, out_w, input.shape[3])


def _fake_backward(
    grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    check_tensors(input, offset, mask, _to_geometry(args))
    grad_input, grad_offset, grad_mask = (
        x.new_empty(x.shape) for x in (input, offset, mask)
    )
    return grad_input, grad_offset, grad_mask


# -- Autograd ------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, mask, *ctx.settings = inputs
    ctx.save_for_backward(input, offset, mask)


def _autograd_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    if grad_output.is_cuda:
        _alert_not_deterministic()
    grads = torch.ops.ops_dcnv3.dcnv3_backward(
        grad_output, *ctx.saved_tensors, *ctx.settings
    )
    return (*grads, *(None for _ in ctx.settings))


def _alert_not_deterministic() -> None:
    """Do as PyTorch's own atomic kernels when determinism is asked for."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        'dcnv3_backward on CUDA sums with atomics and has no deterministic '
        'implementation, but torch.use_deterministic_algorithms(True) is set. Use '
        'warn_only=True, or ops_dcnv3.dcnv3_reference'
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        'dcnv3 is differentiable once: its compiled backward has no gradient. Use '
        'ops_dcnv3.dcnv3_reference where second derivatives are needed'
    )


# -- Autocast ------------------------------------------------------------------------


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of the autocast region that is active, None outside of one."""
    if device_type not in ('cpu', 'cuda') or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def cast_for_autocast(
    input: Tensor, offset: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors in the dtypes that autocast asks for, if it is on.

    ``input`` takes the autocast dtype. Positions lose up to 1/4 pixel in bfloat16,
    so ``offset`` and ``mask`` stay in float32 where one of them has it.
    float64 is left alone, as by PyTorch's own autocast rules.
    """
    dtype = autocast_dtype(input.device.type)
    if dtype is None or any(
        x.dtype == torch.float64 or not x.is_floating_point()
        for x in (input, offset, mask)
    ):
        return input, offset, mask
    same = offset.dtype == mask.dtype == dtype
    points_dtype = dtype if same else torch.float32
    return input.to(dtype), offset.to(points_dtype), mask.to(points_dtype)


def _autocast_forward(
    input: Tensor, offset: Tensor, mask: Tensor, *args: Any
) -> Tensor:
    input, offset, mask = cast_for_autocast(input, offset, mask)
    with torch.autocast(input.device.type, enabled=False):
        return torch.ops.ops_dcnv3.dcnv3_forward(input, offset, mask, *args)


_LIBRARY = torch.library.Library('ops_dcnv3', 'FRAGMENT')
