# SPDX-License-Identifier: Apache-2.0
"""Calls that run again in the backward pass instead of keeping what they compute."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from .as_built import AsBuilt
from .torch_internals import find_observer, is_transformed


def recomputed(module: AsBuilt, call: Callable[..., Any], *args: Any) -> Any:
    """Return ``call(*args)``, which the backward pass computes again if it may.

    It may not where somebody looks or a layer was changed: calls of hooks would come
    twice. Nor in compiled code: compilers decide for themselves what to keep.

    Args:
        module: Whose parameters the call uses. It has neither state nor dropout.
        call: A method of it.
        *args: What that gets.
    """
    if not torch.is_grad_enabled() or find_observer() or module.find_change():
        return call(*args)
    run = _WithParameters(module, call)
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``module(x)``, which the backward pass computes again.

    The transforms of ``torch.func`` know no checkpoints: then it keeps everything.
    """
    if not torch.is_grad_enabled() or is_transformed():
        return module(x)
    run = module if torch.compiler.is_compiling() else _WithParameters(module, module)
    return checkpoint(run, x, use_reentrant=False)


def with_kept_products(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``call(x)``, of which a compiler keeps products for the backward pass.

    It computes everything else again if it prefers to, and keeps no views: Inductor
    compares their strides, and ends where they are of dynamic sizes (PyTorch 2.11:
    'cannot determine truth value of Relational'). ``torch.export`` is no matter of it,
    but for its old strict mode, which asks for the same.
    """
    if not torch.compiler.is_dynamo_compiling() or not torch.is_grad_enabled():
        return call(x)
    return checkpoint(call, x, use_reentrant=False, context_fn=_keep_products)


def _keep_products() -> tuple[Any, Any]:
    aten = torch.ops.aten
    products = [aten.mm.default, aten.addmm.default, aten.convolution.default]
    products.append(torch.ops.ops_dcnv3.dcnv3_forward.default)

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
        is_product = operator in products
        policies = CheckpointPolicy
        return policies.MUST_SAVE if is_product else policies.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


class _WithParameters:
    """A call that has the same parameters when it comes again.

    ``torch.func.functional_call`` gives a module others for one forward pass. They are
    gone when the backward pass begins.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self.module = module
        self.call = call
        self.parameters = dict(module.named_parameters())

    def __call__(self, *args: Any) -> Any:
        now = dict(self.module.named_parameters())
        if all(now[name] is value for name, value in self.parameters.items()):
            return self.call(*args)
        parameters: dict[str, Tensor] = {
            f'module.{name}': value for name, value in self.parameters.items()
        }
        return functional_call(_Caller(self.module, self.call), parameters, args)


class _Caller(nn.Module):
    """A module whose forward pass is a call of another one."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.calls = (call,)  # a tuple, as a module would become a child twice

    def forward(self, *args: Any) -> Any:
        return self.calls[0](*args)
