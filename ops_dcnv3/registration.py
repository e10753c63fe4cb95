# SPDX-License-Identifier: Apache-2.0
"""What PyTorch must know of the compiled operators beside their kernels.

Shapes without data (fake kernels), gradients, autocast. The schemas are in
``csrc/bindings.cpp``.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .geometry import Geometry, check_tensors, make_geometry

_FORWARD = 'ops_dcnv3::dcnv3_forward'
_BACKWARD = 'ops_dcnv3::dcnv3_backward'
#: Of CUDA alone, so not there without its kernels.
_DETERMINISTIC = 'ops_dcnv3::dcnv3_backward_deterministic'
_HALF_DTYPES = (torch.bfloat16, torch.float16)


def register() -> None:
    """Register everything; call once, after the libraries are loaded."""
    torch.library.register_fake(_FORWARD, _fake_forward)
    torch.library.register_fake(_BACKWARD, _fake_backward)
    if hasattr(torch.ops.ops_dcnv3, 'dcnv3_backward_deterministic'):
        torch.library.register_fake(_DETERMINISTIC, _fake_backward)
        torch.library.register_autograd(_DETERMINISTIC, _double_backward)
    torch.library.register_autograd(
        _FORWARD, _autograd_backward, setup_context=_setup_context
    )
    torch.library.register_autograd(_BACKWARD, _double_backward)
    for key in ('AutocastCPU', 'AutocastCUDA'):
        _LIBRARY.impl('dcnv3_forward', _autocast_forward, key)


# -- Fake kernels: shapes and dtypes only --------------------------------------------


def _to_geometry(args: tuple[Any, ...]) -> Geometry:
    kernel_size, stride, padding, dilation, groups, offset_scale, remove_center = args[
        :7
    ]
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
    ops = torch.ops.ops_dcnv3
    backward = ops.dcnv3_backward
    # Atomic sums come in any order; the CPU's are always in the same.
    if grad_output.is_cuda and torch.are_deterministic_algorithms_enabled():
        backward = ops.dcnv3_backward_deterministic
    # Without a second derivative to come, past PyTorch's general wrapper.
    skip = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    with torch._C._AutoDispatchBelowAutograd() if skip else nullcontext():
        grads = backward(grad_output, *ctx.saved_tensors, *ctx.settings)
    return (*grads, *(None for _ in ctx.settings))


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        'dcnv3 is differentiable once: its compiled backward has no gradient. Use '
        'ops_dcnv3.dcnv3_reference where second derivatives are needed'
    )


class _Function(torch.autograd.Function):
    """The same gradient for eager code, without PyTorch's general wrapper of it.

    That costs as much time as a small map takes on a CPU.
    """

    generate_vmap_rule = True
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_autograd_backward)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _run_below_autograd(*args)


def _run_below_autograd(*args: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.ops_dcnv3.dcnv3_forward.default(*args)


def run(input: Tensor, offset: Tensor, mask: Tensor, *settings: Any) -> Tensor:
    """Call the operator, by the shortest way that there is."""
    args = (input, offset, mask, *settings)
    is_recorded = torch.compiler.is_compiling() or is_traced()
    if is_recorded or not (_is_plain(input) and _is_plain(offset) and _is_plain(mask)):
        return torch.ops.ops_dcnv3.dcnv3_forward(*args)
    if torch.is_grad_enabled() and (
        input.requires_grad or offset.requires_grad or mask.requires_grad
    ):
        return _Function.apply(*args)
    return _run_below_autograd(*args)


def is_traced() -> bool:
    """Tell whether torch.jit.trace records what runs; a compiler does not ask it."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor or type(tensor) is torch.nn.Parameter


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
