# SPDX-License-Identifier: Apache-2.0
"""What PyTorch must know of the compiled operators beside their kernels.

Shapes without data (fake kernels), gradients, autocast. The schemas are in
``csrc/bindings.cpp``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .autocast import cast_for_autocast
from .autograd import Backward, Forward, needs_gradient
from .geometry import check_tensors, make_geometry
from .torch_internals import (
    can_redispatch,
    is_forward_mode,
    is_transformed,
    redispatch,
)


def register() -> None:
    """Register everything; call once, after the libraries are loaded."""
    _register('dcnv3_forward', _fake_forward, Forward.apply)
    torch.library.register_vmap('ops_dcnv3::dcnv3_forward', _vmap_forward)
    for key in ('AutocastCPU', 'AutocastCUDA'):
        _LIBRARY.impl('dcnv3_forward', _autocast_forward, key)
    # The second is of CUDA alone, so not there without its kernels.
    for name in ('dcnv3_backward', 'dcnv3_backward_deterministic'):
        if hasattr(torch.ops.ops_dcnv3, name):
            operator = getattr(torch.ops.ops_dcnv3, name).default
            _register(name, _fake_backward, partial(Backward.apply, operator))
            vmap = partial(_vmap_backward, operator)
            torch.library.register_vmap(f'ops_dcnv3::{name}', vmap)
    for name in ('branch_forward', 'mlp_forward', 'layer_forward'):
        _register(name, _fake_of_input, None)
    if not can_redispatch():
        torch.library.register_autograd(
            'ops_dcnv3::dcnv3_forward',
            Forward.backward,
            setup_context=Forward.setup_context,
        )


def _register(
    name: str,
    fake: Callable[..., Any],
    differentiable: Callable[..., Any] | None,
) -> None:
    """Register an operator's fake kernel, and what computes it with a gradient.

    With None, a call that needs a gradient is refused. PyTorch's ``register_autograd``
    knows neither ``torch.func`` nor forward mode, whose tangents it drops in silence.
    """
    operator = getattr(torch.ops.ops_dcnv3, name).default
    torch.library.register_fake(f'ops_dcnv3::{name}', fake)
    if not can_redispatch():
        return

    def autograd(keyset: Any, *args: Any) -> Any:
        if is_forward_mode():
            raise RuntimeError(
                f'ops_dcnv3::{name} has no gradient in forward mode (jvp, jacfwd): '
                'call ops_dcnv3.dcnv3 or a layer'
            )
        if not needs_gradient(args):
            return redispatch(operator, keyset, *args)
        if differentiable is None:
            raise RuntimeError(
                f'ops_dcnv3::{name} has no gradient, as it is for inference: call '
                'it under torch.no_grad(), or use the layer that it is a part of'
            )
        if is_transformed():
            raise RuntimeError(
                f'ops_dcnv3::{name} has no gradient for transforms of torch.func '
                '(grad, vjp, jacrev): call ops_dcnv3.dcnv3 or a layer'
            )
        return differentiable(*args)

    _LIBRARY.impl(name, autograd, 'Autograd', with_keyset=True)


# -- Fake kernels: shapes and dtypes only --------------------------------------------


def _fake_forward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
    softmax: bool = False,
) -> Tensor:
    geometry = make_geometry(
        (kernel_size[0], kernel_size[1]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        (dilation[0], dilation[1]),
        groups,
        offset_scale,
        remove_center,
    )
    out_h, out_w = check_tensors(input, offset, mask, geometry)
    return input.new_empty(input.shape[0], out_h, out_w, input.shape[3])


def _fake_backward(
    grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _fake_forward(input, offset, mask, *settings)
    grad_input, grad_offset, grad_mask = (
        x.new_empty(x.shape) for x in (input, offset, mask)
    )
    return grad_input, grad_offset, grad_mask


def _fake_of_input(input: Tensor, *args: Any) -> Tensor:
    return input.new_empty(input.shape)


# -- Batches of calls ----------------------------------------------------------------


def _fold(
    size: int, dims: tuple[Any, ...], tensors: tuple[Tensor, ...]
) -> list[Tensor]:
    """Return the tensors of ``size`` calls as those of one call with more images."""
    folded = []
    for tensor, dim in zip(tensors, dims, strict=True):
        if dim is None:
            tensor = tensor.expand(size, *tensor.shape)
        else:
            tensor = tensor.movedim(dim, 0)
        folded.append(tensor.flatten(0, 1))
    return folded


def _vmap_forward(
    info: Any, in_dims: tuple[Any, ...], *args: Any
) -> tuple[Tensor, int]:
    folded = _fold(info.batch_size, in_dims[:3], args[:3])
    output = torch.ops.ops_dcnv3.dcnv3_forward(*folded, *args[3:])
    return output.unflatten(0, (info.batch_size, -1)), 0


def _vmap_backward(
    operator: Any, info: Any, in_dims: tuple[Any, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    grads = operator(*_fold(info.batch_size, in_dims[:4], args[:4]), *args[4:])
    return tuple(x.unflatten(0, (info.batch_size, -1)) for x in grads), (0, 0, 0)


# -- Autocast ------------------------------------------------------------------------


def _autocast_forward(
    input: Tensor, offset: Tensor, mask: Tensor, *args: Any
) -> Tensor:
    input, offset, mask = cast_for_autocast(input, offset, mask)
    with torch.autocast(input.device.type, enabled=False):
        return torch.ops.ops_dcnv3.dcnv3_forward(input, offset, mask, *args)


_LIBRARY = torch.library.Library('ops_dcnv3', 'FRAGMENT')
