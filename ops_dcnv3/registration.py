# SPDX-License-Identifier: Apache-2.0
"""What PyTorch must know of the compiled operators beside their kernels.

Shapes without data (fake kernels), gradients, autocast. The schemas are in
``csrc/bindings.cpp``.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .context import is_forward_mode, is_traced, is_transformed
from .geometry import Geometry, check_tensors, make_geometry


def register() -> None:
    """Register everything; call once, after the libraries are loaded."""
    _register('dcnv3_forward', _fake_forward, _Forward.apply)
    torch.library.register_vmap('ops_dcnv3::dcnv3_forward', _vmap_forward)
    for key in ('AutocastCPU', 'AutocastCUDA'):
        _LIBRARY.impl('dcnv3_forward', _autocast_forward, key)
    # The second is of CUDA alone, so not there without its kernels.
    for name in ('dcnv3_backward', 'dcnv3_backward_deterministic'):
        if hasattr(torch.ops.ops_dcnv3, name):
            operator = getattr(torch.ops.ops_dcnv3, name).default
            _register(name, _fake_backward, partial(_Backward.apply, operator))
            vmap = partial(_vmap_backward, operator)
            torch.library.register_vmap(f'ops_dcnv3::{name}', vmap)
    for name, fake in _FAKES_FOR_INFERENCE.items():
        _register(name, fake, None)


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

    def autograd(keyset: Any, *args: Any) -> Any:
        if is_forward_mode():
            raise RuntimeError(
                f'ops_dcnv3::{name} has no gradient in forward mode (jvp, jacfwd): '
                'call ops_dcnv3.dcnv3 or a layer'
            )
        if torch.is_grad_enabled() and any(x.requires_grad for x in _tensors_in(args)):
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
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    _LIBRARY.impl(name, autograd, 'Autograd', with_keyset=True)


def _tensors_in(args: Iterable[Any]) -> Iterable[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors_in(arg)


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


def _fake_branch(input: Tensor, *args: Any) -> Tensor:
    return input.new_empty(input.shape)


def _fake_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


def _fake_layers(input: Tensor, parameters: list[Tensor], *args: Any) -> Tensor:
    """Do so for an MLP or a whole layer, whose last weight comes before its bias."""
    return _fake_linear(input, *parameters[-2:])


#: The operators for inference.
_FAKES_FOR_INFERENCE: dict[str, Callable[..., Tensor]] = {
    'branch_forward': _fake_branch,
    'linear_forward': _fake_linear,
    'mlp_forward': _fake_layers,
    'layer_forward': _fake_layers,
}


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


# -- Autograd ------------------------------------------------------------------------


class _Forward(torch.autograd.Function):
    """The operator and its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return run_below_autograd(torch.ops.ops_dcnv3.dcnv3_forward.default, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, offset, mask, *ctx.settings = inputs
        ctx.save_for_backward(input, offset, mask)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        ops = torch.ops.ops_dcnv3
        operator = ops.dcnv3_backward.default
        # Atomic sums come in any order; the CPU's are always in the same.
        if grad_output.is_cuda and torch.are_deterministic_algorithms_enabled():
            operator = ops.dcnv3_backward_deterministic.default
        args = (grad_output, *ctx.saved_tensors, *ctx.settings)
        if torch.compiler.is_compiling():
            grads = operator(*args)
        elif torch.is_grad_enabled() or is_transformed():
            grads = _Backward.apply(operator, *args)
        else:
            grads = run_below_autograd(operator, *args)
        return (*grads, *(None for _ in ctx.settings))


class _Backward(torch.autograd.Function):
    """The gradient, which has none itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return run_below_autograd(operator, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            'dcnv3 is differentiable once: its compiled backward has no gradient. Use '
            'ops_dcnv3.dcnv3_reference where second derivatives are needed'
        )


def run_below_autograd(operator: Any, *args: Any) -> Any:
    """Call an operator of ours whose gradient is somebody else's matter.

    The way through the dispatcher's Python code, which looks for gradients, takes as
    long as the operator does on a small map.
    """
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def run(input: Tensor, offset: Tensor, mask: Tensor, *settings: Any) -> Tensor:
    """Call the operator, by the shortest way that there is."""
    args = (input, offset, mask, *settings)
    is_recorded = torch.compiler.is_compiling() or is_traced()
    if is_recorded or not (_is_plain(input) and _is_plain(offset) and _is_plain(mask)):
        return torch.ops.ops_dcnv3.dcnv3_forward(*args)
    # A tensor that vmap holds does not tell whether a gradient is asked for around it.
    if is_transformed() or (
        torch.is_grad_enabled()
        and (input.requires_grad or offset.requires_grad or mask.requires_grad)
    ):
        return _Forward.apply(*args)
    return _Forward.forward(*args)


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
