# SPDX-License-Identifier: Apache-2.0
"""The DCNv3 layer: projections, predicted offsets and masks, centre scale."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import library
from .arguments import flag, integer
from .context import is_traced
from .functional import apply
from .geometry import Geometry, IntOrPair, check_channels_last, make_geometry, to_pair
from .layers import (
    ToChannelsLast,
    build_act_layer,
    build_norm_layer,
    check_matches,
    has_linear_kernel,
    is_exact_gelu,
    is_plain_inference,
    is_plain_linear,
    is_unobserved,
    is_untouched,
    keeps_for_backward,
    linear,
    parameters_of_norm,
    plain_parameters,
)
from .registration import autocast_dtype, run_below_autograd

#: Depthwise kernels for which CUDA has more than a plain loop, in whole vectors of
#: channels; and how many channels fit into the shared memory of a block in float64.
_FUSED_KERNELS = ((3, 3), (5, 5))
_FUSED_VECTOR = 8
_MAX_FUSED_CHANNELS = 6144


class DCNv3(nn.Module):
    """Deformable convolution v3 with shared projections, on channels-last maps.

    A depthwise branch looks at the raw input and predicts, for each group and each
    sampling point, an offset and (after a softmax over the points) a weight; the
    operator samples the projected input there. With ``center_feature_scale`` the
    branch also predicts, for each group, how much of the projected input itself to
    mix in.

    Zero padding happens after ``input_proj``: a point outside the image is zero,
    not the projection's bias. Offsets and masks start at zero, so that a new layer
    averages over the regular grid.

    Args:
        channels: Input and output channels ``C``.
        kernel_size: Taps of the regular grid, an int or an ``(h, w)`` pair.
        dw_kernel_size: Kernel of the depthwise branch, an int or an ``(h, w)`` pair;
            ``kernel_size`` if None.
        stride: Step of the output, an int or an ``(h, w)`` pair.
        padding: Zero border, an int or an ``(h, w)`` pair.
        dilation: Distance between taps, an int or an ``(h, w)`` pair.
        groups: Number of groups, a divisor of ``channels``.
        offset_scale: Factor on offsets and on the grid of taps.
        act_layer: Activation of the depthwise branch: 'GELU', 'ReLU' or 'SiLU'.
        norm_layer: Norm of the depthwise branch: 'LN' or 'BN'.
        center_feature_scale: Mix in the projected input (InternImage-H and G).
        remove_center: Leave out the central tap.
        recompute: For less memory, run the depthwise branch again in the backward
            pass instead of keeping what it computes. Only of a branch with 'LN' and
            'GELU' whose layers have no hooks.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range; the message names it.

    Source: InternImage, arXiv:2211.05778, sec. 3.1. Parameter names and the order of
    operations: OpenGVLab/InternImage@31c962d, detection/ops_dcnv3/modules/dcnv3.py.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: IntOrPair = 3,
        dw_kernel_size: IntOrPair | None = None,
        stride: IntOrPair = 1,
        padding: IntOrPair = 1,
        dilation: IntOrPair = 1,
        groups: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = 'GELU',
        norm_layer: str = 'LN',
        center_feature_scale: bool = False,
        remove_center: bool = False,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        geometry = make_geometry(
            kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
        )
        groups = geometry.groups
        channels = integer(
            'channels',
            channels,
            f'a positive multiple of groups ({groups})',
            lambda number: number >= 1 and number % groups == 0,
        )
        if geometry.offset_scale <= 0:
            raise ValueError(
                f'offset_scale: expected more than 0, got {geometry.offset_scale}'
            )
        dw_kernel = to_pair(
            'dw_kernel_size',
            geometry.kernel_size if dw_kernel_size is None else dw_kernel_size,
            1,
        )
        if (
            flag('center_feature_scale', center_feature_scale)
            and not geometry.is_centered
        ):
            raise ValueError(
                'center_feature_scale: expected padding = dilation * (kernel_size - 1) '
                f'/ 2, so that outputs sit on input pixels, got {geometry}'
            )
        self.channels = channels
        self.geometry = geometry
        self.center_feature_scale = center_feature_scale
        self.recompute = flag('recompute', recompute)

        self.dw_conv = nn.Sequential(
            nn.Conv2d(
                channels,
                channels,
                dw_kernel,
                stride=geometry.stride,
                padding=_branch_padding(geometry, dw_kernel),
                groups=channels,
            ),
            build_norm_layer(channels, norm_layer, 'channels_first', 'channels_last'),
            build_act_layer(act_layer),
        )
        self._is_branch_fused = (
            geometry.stride == (1, 1)
            and self.dw_conv[0].padding == (dw_kernel[0] // 2, dw_kernel[1] // 2)
            and dw_kernel[0] % 2 == dw_kernel[1] % 2 == 1
            and norm_layer == 'LN'
            and act_layer == 'GELU'
        )
        self._branch_settings = _settings_of(self.dw_conv[0])
        self._is_layer_fused = self._is_branch_fused and not center_feature_scale
        self._is_branch_fused_by_cuda = (
            dw_kernel in _FUSED_KERNELS
            and channels % _FUSED_VECTOR == 0
            and channels <= _MAX_FUSED_CHANNELS
        )
        num_points = geometry.num_points
        self.offset = nn.Linear(channels, groups * num_points * 2)
        self.mask = nn.Linear(channels, groups * num_points)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(
                torch.empty(groups, channels)
            )
            self.center_feature_scale_proj_bias = nn.Parameter(torch.empty(groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero what predicts the sampling; Xavier-uniform projections, zero biases."""
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.center_feature_scale:
            nn.init.zeros_(self.center_feature_scale_proj_weight)
            nn.init.zeros_(self.center_feature_scale_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` to ``(N, Ho, Wo, C)``."""
        self._check(x)
        if self._is_layer_fused and has_linear_kernel(x):
            of_layers = self._plain_layers()
            if of_layers:
                return self._run_at_once(x, of_layers, ([], 0.0), add_input=False)
        check_matches('x', x, 'input_proj', self.input_proj)
        autocast = autocast_dtype(x.device.type)
        if autocast and x.dtype == torch.float32 and is_unobserved(x):
            # Otherwise it is cast twice, for the projection and for the branch.
            x = x.to(autocast)
        projected = linear(self.input_proj, x)
        if self.recompute and keeps_for_backward() and self._is_recomputable():
            logits, scale, offset = checkpoint(
                self._predict, x, use_reentrant=False, preserve_rng_state=False
            )
        else:
            logits, scale, offset = self._predict(x)
        logits = logits.to(offset.dtype)
        out = apply(projected, offset, logits, self.geometry, softmax=True)
        if scale is not None:
            out = self._mix_in_center(out, projected, scale)
        return linear(self.output_proj, out)

    def add_branch(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Return ``x + self(norm(x))``, in one call where there is a kernel for it.

        Args:
            x: ``(N, H, W, C)``.
            norm: A LayerNorm over channels, of :func:`.layers.build_norm_layer`.
        """
        self._check(x)
        if self._is_layer_fused and has_linear_kernel(x):
            of_layers, of_norm = self._plain_layers(), parameters_of_norm(norm)
            if of_layers and of_norm:
                return self._run_at_once(x, of_layers, of_norm, add_input=True)
        return x + self(norm(x))

    def _check(self, x: Tensor) -> None:
        # A trace holds sizes as tensors, of which Python can not decide.
        if not is_traced():
            check_channels_last('x', x, self.channels)

    def _run_at_once(
        self,
        x: Tensor,
        of_layers: tuple[list[Tensor], float],
        of_norm: tuple[list[Tensor], float],
        add_input: bool,
    ) -> Tensor:
        operator = torch.ops.ops_dcnv3.layer_forward.default
        args = (*of_layers, *of_norm, add_input, *self.geometry)
        return run_below_autograd(operator, x, *args)

    def _predict(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Predict the logits of masks, the weights of centres and, last, the offsets.

        These are the largest product, and the last one is not computed again.
        """
        branch = self._look_at(x)
        logits = linear(self.mask, branch)
        scale = None
        if self.center_feature_scale:
            scale = F.linear(
                branch,
                self.center_feature_scale_proj_weight,
                self.center_feature_scale_proj_bias,
            ).sigmoid()
        return logits, scale, self._predict_offset(branch)

    def _look_at(self, x: Tensor) -> Tensor:
        """Return what the depthwise branch makes of ``x``, ``(N, Ho, Wo, C)``."""
        if self._is_branch_fused and is_unobserved(x):
            branch = self._plain_branch()
            if branch and self._has_kernel_for_branch(x, branch[0][0].dtype):
                parameters, eps = branch
                operator = torch.ops.ops_dcnv3.branch_forward.default
                return run_below_autograd(operator, x, *parameters, eps)
        return self.dw_conv(x.permute(0, 3, 1, 2))

    def _has_kernel_for_branch(self, x: Tensor, weight_dtype: torch.dtype) -> bool:
        if not library.has_kernels_for(x.device.type):
            return False
        if not x.is_cuda:
            return is_plain_inference(x)
        is_half = x.dtype in (torch.float16, torch.bfloat16)
        return self._is_branch_fused_by_cuda and (
            weight_dtype == x.dtype or (is_half and weight_dtype == torch.float32)
        )

    def _is_recomputable(self) -> bool:
        """Tell whether :meth:`_predict` has no state, no dropout and no spectators.

        Nor tensors of ``torch.func.functional_call`` for parameters: they are gone
        when it runs again.
        """
        return (
            self._plain_branch() is not None
            and is_plain_linear(self.mask)
            and is_plain_linear(self.offset)
        )

    def _plain_layers(self) -> tuple[list[Tensor], float] | None:
        """Return parameters in the kernel's order, and the epsilon of the branch.

        None if somebody sees or changed a layer.
        """
        branch = self._plain_branch()
        if branch is None:
            return None
        found, eps = branch
        modules: Any = self._modules
        for name in ('offset', 'mask', 'input_proj', 'output_proj'):
            parameters = plain_parameters(modules[name], nn.Linear)
            if parameters is None:
                return None
            found += parameters
        return found, eps

    def _plain_branch(self) -> tuple[list[Tensor], float] | None:
        """Return the same of the branch: convolution, and norm."""
        branch: Any = self._modules['dw_conv']
        layers = list(branch._modules.values())
        if not is_untouched(branch, nn.Sequential) or len(layers) != 3:
            return None
        conv, norm, act = layers
        of_conv = plain_parameters(conv, nn.Conv2d)
        of_norm = parameters_of_norm(norm, ToChannelsLast)
        if (
            of_conv is None
            or of_norm is None
            or not is_exact_gelu(act)
            or _settings_of(conv) != self._branch_settings
        ):
            return None
        parameters, eps = of_norm
        return of_conv + parameters, eps

    def _predict_offset(self, branch: Tensor) -> Tensor:
        """Predict offsets, in float32 where the layer runs in bfloat16.

        bfloat16 has steps of 1/64 pixel at a distance of 2 pixels and of 1/4 pixel at
        32: samples would move visibly.
        """
        device_type = branch.device.type
        autocast = autocast_dtype(device_type)
        if (autocast or branch.dtype) != torch.bfloat16:
            return linear(self.offset, branch)
        with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
            parameters = plain_parameters(self.offset, nn.Linear)
            if parameters is None:
                return _run_in_float32(self.offset, branch)
            weight, bias = parameters
            if (
                branch.is_cuda
                and branch.dtype == weight.dtype == torch.bfloat16
                and is_unobserved(branch)
            ):
                # The same by matrix units, whose sums are in float32: products of
                # bfloat16 are exact there.
                rows = branch.flatten(0, -2)
                offset = torch.mm(rows, weight.t(), out_dtype=torch.float32)
                return offset.add_(bias).unflatten(0, branch.shape[:-1])
            return F.linear(branch.float(), weight.float(), bias.float())

    def _mix_in_center(self, out: Tensor, projected: Tensor, scale: Tensor) -> Tensor:
        """Blend each group with the projected input by a predicted weight in (0, 1)."""
        stride_h, stride_w = self.geometry.stride
        center = projected[:, ::stride_h, ::stride_w]
        group_shape = (self.geometry.groups, self.channels // self.geometry.groups)
        return torch.lerp(
            out.unflatten(-1, group_shape),
            center.unflatten(-1, group_shape),
            scale.unsqueeze(-1),
        ).flatten(-2)


def _run_in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer of any kind, with its hooks, on float32 copies of its parameters.

    Only of plain ones: adapters and quantised layers decide for themselves.
    """
    widened = {
        name: parameter.float()
        for name, parameter in layer.named_parameters()
        if type(parameter) is nn.Parameter and parameter.is_floating_point()
    }
    return functional_call(layer, widened, (x.float(),))


def _settings_of(conv: Any) -> tuple[Any, ...]:
    """Return what decides on a convolution's output beside its parameters.

    Users change it: ``padding_mode`` to 'circular' for seamless tiles, say.
    """
    return (
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
    )


def _branch_padding(geometry: Geometry, dw_kernel: tuple[int, int]) -> tuple[int, int]:
    """Return the padding that puts the depthwise kernel where the sampling grid is.

    Both then have the same output size and, at each output, the same centre.

    Raises:
        ValueError: No padding does, as the kernels' extents differ by an odd number
            or the sampling grid leaves the image less room than the branch.
    """
    padding = []
    for axis in (0, 1):
        extent = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1)
        twice = 2 * geometry.padding[axis] + dw_kernel[axis] - 1 - extent
        if twice < 0 or twice % 2:
            raise ValueError(
                'dw_kernel_size: expected sizes for which padding + (dw_kernel_size - '
                '1 - dilation * (kernel_size - 1)) / 2 is a whole number >= 0, got '
                f'{dw_kernel} with {geometry}'
            )
        padding.append(twice // 2)
    return padding[0], padding[1]
