# SPDX-License-Identifier: Apache-2.0
"""Fused inference: where it takes place, why it does not, and its operators.

A fused module computes what its plain lines say, to float32's precision, in one
compiled operator each for a DCNv3 layer and an MLP (on a CPU with AVX2) or for DCNv3's
depthwise branch (on CUDA and other CPUs). Here is the chain of reasons that decides; a
module adds those of its own settings.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from . import library
from .as_built import AsBuilt
from .torch_internals import find_observer, parameters_of, run_below_autograd

if TYPE_CHECKING:
    from .module import DCNv3

#: The environment variable that turns fused inference off if it is 0.
SWITCH = 'OPS_DCNV3_FUSED'

_is_enabled = ContextVar('is_enabled', default=os.environ.get(SWITCH, '1') != '0')


@contextmanager
def use_fused(enabled: bool) -> Iterator[None]:
    """Turn fused inference on or off for a block of code, in this thread or task.

    The environment variable ``OPS_DCNV3_FUSED=0`` turns it off from the start.
    """
    token = _is_enabled.set(enabled)
    try:
        yield
    finally:
        _is_enabled.reset(token)


class Fusible(AsBuilt):
    """A module whose inference may be fused.

    A subclass of a fused module is not fused, as it may compute something else; it
    is again if it sets ``fused_devices`` itself.
    """

    #: Channels of the input, ``(N, H, W, C)``.
    channels: int

    #: Types of the devices that the module itself has operators for.
    fused_devices: ClassVar[tuple[str, ...]] = ()

    def why_not_fused(self, x: Tensor) -> str:
        """Tell in words why the module will not be fused for ``x``; empty if it will.

        Args:
            x: The module's input.
        """
        if observer := find_observer():
            return observer
        if not _is_enabled.get():
            return f'it is turned off, by use_fused(False) or {SWITCH}=0'
        if torch.is_grad_enabled():
            return (
                'gradients are enabled: torch.no_grad() or inference_mode() ends that'
            )
        if type(x) is not Tensor:
            return f'the input is a {type(x).__name__}, not a plain Tensor'
        if x.device.type not in self.fused_devices:
            return f'there are no operators for {x.device.type}'
        if not library.has_kernels_for(x.device.type):
            return f'the kernels for {x.device.type} are not built: see build_info()'
        if 'fused_devices' not in vars(type(self)):
            return f'{type(self).__name__} is a subclass'
        return self.find_change() or self.objection_to(x)

    def runs_fused(self, x: Tensor) -> bool:
        """Tell whether the module is fused for an input."""
        return not self.why_not_fused(x)

    def objection_to(self, x: Tensor) -> str:
        """Tell what the module's own settings, or the input, have against it."""
        raise NotImplementedError


def why_not_fused(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Tell which modules of a model are not fused for inputs like ``x``, and why.

    Call it as inference runs: under ``torch.no_grad()``, in the autocast region.

    Args:
        model: Any module, such as a detector.
        x: A tensor of the device and dtype of the features. Its shape does not matter.

    Returns:
        Reasons by the name of the module; empty if all are fused that can be.
    """
    reasons: dict[str, str] = {}
    answered: list[str] = []  # starts of the names of what these modules contain
    for name, module in model.named_modules():
        if (
            isinstance(module, Fusible)
            and x.device.type in module.fused_devices
            and not any(map(name.startswith, answered))
        ):
            answered.append(f'{name}.' if name else '')
            if reason := module.why_not_fused(x.new_empty(1, 1, 1, module.channels)):
                reasons[name] = reason
    return reasons


@functools.cache
def has_fast_linear_layers() -> bool:
    """Tell whether our linear layers beat those of PyTorch's libraries on this CPU.

    With AVX2 and with AVX-512 they do, by a tenth for many rows and by more than a
    third for few; what the compiler makes of them elsewhere is slower.
    """
    return library.build_info()['cpu_capability'] in ('avx2', 'avx512')


# -- The operators. A caller has asked why_not_fused ----------------------------------


def depthwise_branch(x: Tensor, dw_conv: nn.Sequential) -> Tensor:
    """Run the depthwise branch of a DCNv3 layer on ``(N, H, W, C)``."""
    conv, norm, _ = dw_conv
    of_norm, eps = _of_norm(norm)
    operator = torch.ops.ops_dcnv3.branch_forward.default
    return run_below_autograd(operator, x, *parameters_of(conv), *of_norm, eps)


def dcnv3_branch(
    x: Tensor,
    dcn: 'DCNv3',
    pre_norm: nn.Module | None = None,
    post_norm: nn.Module | None = None,
    scale: Tensor | None = None,
    add_input: bool = False,
) -> Tensor:
    """Return ``post_norm(dcn(pre_norm(x))) * scale + x`` in one call.

    Args:
        x: ``(N, H, W, C)``.
        dcn: The layer.
        pre_norm: A LayerNorm of :func:`build_norm_layer`, or None for none.
        post_norm: Alike.
        scale: ``(C,)``, or None for 1.
        add_input: Add ``x`` at the end.
    """
    conv, dw_norm, _ = dcn.dw_conv
    of_center: list[Any] = []
    if dcn.center_feature_scale:
        of_center = [
            dcn.center_feature_scale_proj_weight,
            dcn.center_feature_scale_proj_bias,
        ]
    return run_below_autograd(
        torch.ops.ops_dcnv3.layer_forward.default,
        x,
        *_of_norm(pre_norm),
        parameters_of(conv),
        *_of_norm(dw_norm),
        parameters_of(dcn.offset),
        parameters_of(dcn.mask),
        of_center,
        parameters_of(dcn.input_proj),
        parameters_of(dcn.output_proj),
        *_of_norm(post_norm),
        scale,
        add_input,
        *dcn.geometry,
    )


def mlp_branch(
    x: Tensor,
    mlp: Any,
    pre_norm: nn.Module | None = None,
    post_norm: nn.Module | None = None,
    scale: Tensor | None = None,
    add_input: bool = False,
) -> Tensor:
    """Return ``post_norm(fc2(GELU(fc1(pre_norm(x))))) * scale + x`` in one call.

    Args:
        x: ``(..., C)``.
        mlp: A module with linear layers ``fc1`` and ``fc2``.
        pre_norm: As for :func:`dcnv3_branch`.
        post_norm: As for :func:`dcnv3_branch`.
        scale: As for :func:`dcnv3_branch`.
        add_input: As for :func:`dcnv3_branch`.
    """
    return run_below_autograd(
        torch.ops.ops_dcnv3.mlp_forward.default,
        x,
        *_of_norm(pre_norm),
        parameters_of(mlp.fc1),
        parameters_of(mlp.fc2),
        *_of_norm(post_norm),
        scale,
        add_input,
    )


def _of_norm(norm: Any) -> tuple[list[Tensor], float]:
    """Return weight and bias and epsilon of a norm of ``build_norm_layer``."""
    if norm is None:
        return [], 0.0
    *_, layer = norm
    return parameters_of(layer), layer.eps
