# SPDX-License-Identifier: Apache-2.0
"""The DCNv3 layer: projections, predicted offsets and masks, centre scale."""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import flag, integer
from .autocast import dtype_under_autocast
from .builders import build_act_layer, build_norm_layer
from .checks import check_channels_last, check_matches
from .functional import apply
from .fused import (
    Fusible,
    dcnv3_branch,
    depthwise_branch,
    has_fast_linear_layers,
)
from .geometry import Geometry, IntOrPair, make_geometry, to_pair
from .linear import linear, linear_to_float32
from .recompute import recomputed
from .torch_internals import is_traced

#: Depthwise kernels for which CUDA has more than a plain loop, in whole vectors of
#: channels; and how many channels fit into the shared memory of a block in float64.
_FUSED_KERNELS = ((3, 3), (5, 5))
_FUSED_VECTOR = 8
_MAX_FUSED_CHANNELS = 6144


class DCNv3(Fusible):
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
            pass instead of keeping what it computes. Only of a branch with 'LN', while
            the layer is as it was built, without hooks.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range; the message names it.

    Source: InternImage, arXiv:2211.05778, sec. 3.1. Parameter names and the order of
    operations: OpenGVLab/InternImage@31c962d, detection/ops_dcnv3/modules/dcnv3.py.
    """

    fused_devices: ClassVar[tuple[str, ...]] = ('cpu', 'cuda')

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
        # Statistics of BatchNorm would be updated twice.
        self._recomputes = flag('recompute', recompute) and norm_layer == 'LN'

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
        self.remember_build()

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
        # A trace holds sizes as tensors, of which Python can not decide.
        if not is_traced():
            check_channels_last('x', x, self.channels)
        check_matches('x', x, 'input_proj', self.input_proj)
        is_fused = self.runs_fused(x)
        if is_fused and x.device.type == 'cpu' and has_fast_linear_layers():
            return dcnv3_branch(x, self)
        if is_fused:
            # Here, as autocast does not see the fused branch.
            x = x.to(dtype_under_autocast(x))
        projected = linear(self.input_proj, x)
        predict = partial(self._predict, is_fused=is_fused)
        # Last come the offsets, which are the largest and are not computed again.
        logits, scale, offset = (
            recomputed(self, predict, x) if self._recomputes else predict(x)
        )
        logits = logits.to(offset.dtype)
        out = apply(projected, offset, logits, self.geometry, softmax=True)
        if scale is not None:
            out = self._mix_in_center(out, projected, scale)
        return linear(self.output_proj, out)

    def _predict(
        self, x: Tensor, is_fused: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Predict the logits of masks, the weights of centres, and offsets.

        Offsets are float32 where the layer runs in bfloat16, which has steps of 1/64
        pixel at a distance of 2 pixels and of 1/4 pixel at 32: samples would move
        visibly.
        """
        if is_fused:
            branch = depthwise_branch(x, self.dw_conv)
        else:
            branch = self.dw_conv(x.permute(0, 3, 1, 2))
        logits = linear(self.mask, branch)
        scale = None
        if self.center_feature_scale:
            scale = F.linear(
                branch,
                self.center_feature_scale_proj_weight,
                self.center_feature_scale_proj_bias,
            ).sigmoid()
        return logits, scale, linear_to_float32(self.offset, branch, is_fused)

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

    def objection_to(self, x: Tensor) -> str:
        """Tell what settings, or the input, have against fused inference.

        On a CPU with fast linear layers the whole layer is one operator; elsewhere the
        depthwise branch is.
        """
        layers: Any = self.dw_conv
        conv, norm, act = layers
        is_gelu = type(act) is nn.GELU and act.approximate == 'none'
        if not isinstance(norm[-1], nn.LayerNorm) or not is_gelu:
            return "the depthwise branch is not of norm_layer 'LN' and act_layer 'GELU'"
        if self.geometry.stride != (1, 1) or not self.geometry.is_centered:
            return 'the output has another size than the input, or another place'
        if x.dim() != 4 or x.shape[3] != self.channels:
            return f'the input is {tuple(x.shape)}, not (N, H, W, {self.channels})'
        dtype, own = dtype_under_autocast(x), conv.weight.dtype
        is_half = dtype in (torch.float16, torch.bfloat16)
        if own != dtype and not (is_half and own == torch.float32):
            return f'the weights are {own}, and the layer runs in {dtype}'
        if x.device.type == 'cpu':
            if dtype == torch.float32:
                return ''
            return f'operators for the CPU are for float32, and the layer is in {dtype}'
        if conv.kernel_size not in _FUSED_KERNELS or (
            self.channels % _FUSED_VECTOR or self.channels > _MAX_FUSED_CHANNELS
        ):
            return (
                f'the operator for CUDA is for kernels of {_FUSED_KERNELS} and a '
                f'multiple of {_FUSED_VECTOR} channels up to {_MAX_FUSED_CHANNELS}, '
                f'not {conv.kernel_size} and {self.channels}'
            )
        return ''


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
