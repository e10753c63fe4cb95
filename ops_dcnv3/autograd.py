# SPDX-License-Identifier: Apache-2.0
"""The gradient of the compiled operator, and the shortest way to call it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .torch_internals import (
    MISSING,
    is_traced,
    is_transformed,
    run_below_autograd,
)


class Forward(torch.autograd.Function):
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
            grads = Backward.apply(operator, *args)
        else:
            grads = run_below_autograd(operator, *args)
        return (*grads, *(None for _ in ctx.settings))


class Backward(torch.autograd.Function):
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


def run(input: Tensor, offset: Tensor, mask: Tensor, *settings: Any) -> Tensor:
    """Call the operator, by the shortest way that there is."""
    tensors = (input, offset, mask)
    is_recorded = torch.compiler.is_compiling() or is_traced()
    are_plain = all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
    if is_recorded or not are_plain:
        return torch.ops.ops_dcnv3.dcnv3_forward(*tensors, *settings)
    # A tensor that vmap holds does not tell whether a gradient is asked for around it.
    if MISSING or is_transformed() or needs_gradient(tensors):
        return Forward.apply(*tensors, *settings)
    return Forward.forward(*tensors, *settings)


def needs_gradient(args: Iterable[Any]) -> bool:
    """Tell whether autograd has to see a call with these arguments."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in _tensors_in(args))


def _tensors_in(args: Iterable[Any]) -> Iterable[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors_in(arg)
