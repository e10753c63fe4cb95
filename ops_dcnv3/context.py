# SPDX-License-Identifier: Apache-2.0
"""Who looks at the operators that run, beside the code that calls them.

Transforms, compilers, tracers, counters and hooks stand on operators and modules that
they know. While one of them looks, layers run their plain lines, one operator and one
module after the other; otherwise they may run what is faster or keeps less.

All of it is PyTorch's state of the moment.
"""

import torch
from torch import nn
from torch.autograd import forward_ad


def is_observed() -> bool:
    """Tell whether anybody looks at which operators and modules run.

    Autograd is nobody: ask ``torch.is_grad_enabled()``.
    """
    return (
        torch.compiler.is_compiling()  # first, as a compiler does not know the others
        or is_traced()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or have_all_modules_hooks()
    )


def is_traced() -> bool:
    """Tell whether torch.jit.trace records what runs; a compiler does not ask it."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def is_transformed() -> bool:
    """Tell whether a transform of ``torch.func`` or a forward-mode gradient is active.

    A compiler traces through these by itself.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or is_forward_mode()
    )


def is_forward_mode() -> bool:
    """Tell whether tensors may carry a tangent, a gradient in forward mode."""
    return forward_ad._current_level >= 0


def have_all_modules_hooks() -> bool:
    """Tell whether somebody waits for the calls of every module."""
    hooks = nn.modules.module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )
