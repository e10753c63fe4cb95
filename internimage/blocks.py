# SPDX-License-Identifier: Apache-2.0
"""The blocks of InternImage and its levels. Activations are channels-last.

Attribute names are those of the released weights.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ops_dcnv3 import (
    DCNv3,
    Fusible,
    build_norm_layer,
    checkpointed,
    dcnv3_branch,
    has_fast_linear_layers,
    mlp_branch,
    with_kept_products,
)

from .architecture import Architecture
from .layers import Downsample, DropPath, Mlp


class Block(Fusible):
    """DCNv3 and an MLP, each in a residual branch.

    Args:
        arch: Settings of the whole backbone.
        level: Index of the level that the block is in.
        drop_path_rate: Probability to drop a branch while training, in [0, 1).
        recompute: As for :class:`InternImage`.
    """

    fused_devices: ClassVar[tuple[str, ...]] = ('cpu',)

    def __init__(
        self,
        arch: Architecture,
        level: int,
        drop_path_rate: float,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels = arch.level_channels[level]
        self._recomputes = recompute
        self.post_norm = arch.post_norm
        self.layer_scale = arch.layer_scale
        self.norm1 = build_norm_layer(channels)
        self.dcn = DCNv3(
            channels,
            kernel_size=3,
            dw_kernel_size=arch.dw_kernel_size,
            groups=arch.groups[level],
            offset_scale=arch.offset_scale,
            act_layer=arch.act_layer,
            norm_layer=arch.norm_layer,
            center_feature_scale=arch.center_feature_scale,
            remove_center=arch.remove_center,
            recompute=recompute,
        )
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = build_norm_layer(channels)
        hidden_channels = int(channels * arch.mlp_ratio)
        self.mlp = Mlp(channels, hidden_channels, arch.act_layer, recompute)
        self.gamma1 = self.gamma2 = None
        if arch.layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.empty(channels))
            self.gamma2 = nn.Parameter(torch.empty(channels))
        self.res_post_norm1 = self.res_post_norm2 = None
        if arch.res_post_norm:
            self.res_post_norm1 = build_norm_layer(channels)
            self.res_post_norm2 = build_norm_layer(channels)
        self.reset_layer_scale()
        self.remember_build()

    def reset_layer_scale(self) -> None:
        """Set the factors on the branches to their initial value."""
        for gamma in (self.gamma1, self.gamma2):
            if gamma is not None and self.layer_scale is not None:
                nn.init.constant_(gamma, self.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` to the same shape."""
        if self._recomputes:
            return with_kept_products(self._add_branches, x)
        return self._add_branches(x)

    def _add_branches(self, x: Tensor) -> Tensor:
        is_fused = self.runs_fused(x)
        branches: Any = (
            (self.dcn, dcnv3_branch, self.norm1, self.res_post_norm1, self.gamma1),
            (self.mlp, mlp_branch, self.norm2, self.res_post_norm2, self.gamma2),
        )
        for branch, fused_branch, norm, res_post_norm, gamma in branches:
            before, after = self._order(norm, res_post_norm)
            if is_fused:
                x = fused_branch(x, branch, before, after, gamma, add_input=True)
                continue
            out = branch(x if before is None else before(x))
            if after is not None:
                out = after(out)
            out = self.drop_path(out)
            x = x + out if gamma is None else torch.addcmul(x, gamma, out)
        return x

    def _order(
        self, norm: nn.Module, res_post_norm: nn.Module | None
    ) -> tuple[nn.Module | None, nn.Module | None]:
        """Return the norms before and after a branch, as published.

        With layer scale there is no ``res_post_norm``, though files have one.
        """
        if self.post_norm:
            return None, norm
        return norm, (res_post_norm if self.layer_scale is None else None)

    def objection_to(self, x: Tensor) -> str:
        """Tell what settings, or the input, have against fused inference."""
        if not has_fast_linear_layers():
            return 'PyTorch has faster linear layers for this CPU'
        if self.drop_path.is_active:
            return 'drop_path drops branches in training mode'
        # The MLP has the activation that the layer has.
        return self.dcn.objection_to(x)


class Level(nn.Module):
    """The blocks at one resolution, and the step to the next.

    Args:
        arch: Settings of the whole backbone.
        index: Which level this is.
        drop_path_rates: For each block, the probability to drop a branch.
        with_cp: Recompute the blocks in the backward pass to save memory.
        recompute: As for :class:`InternImage`.
    """

    def __init__(
        self,
        arch: Architecture,
        index: int,
        drop_path_rates: Sequence[float],
        with_cp: bool,
        recompute: bool,
    ) -> None:
        super().__init__()
        channels = arch.level_channels[index]
        self.with_cp = with_cp
        self.blocks = nn.ModuleList(
            Block(arch, index, rate, recompute and not with_cp)
            for rate in drop_path_rates
        )
        self.post_norm_ids = arch.post_norm_ids(index)
        if self.post_norm_ids:
            self.post_norms = nn.ModuleList(
                build_norm_layer(channels) for _ in self.post_norm_ids
            )
        self.norm = None
        if not arch.post_norm or arch.center_feature_scale:
            self.norm = build_norm_layer(channels)
        self.downsample = None
        if index < len(arch.depths) - 1:
            self.downsample = Downsample(channels, arch.norm_layer)

    def forward(self, x: Tensor, is_last: bool = False) -> tuple[Tensor, Tensor]:
        """Return the next level's input and this level's features.

        Args:
            x: ``(N, H, W, C)``.
            is_last: No next level runs.

        Returns:
            ``(N, ceil(H/2), ceil(W/2), 2C)`` and ``(N, H, W, C)``; twice the latter
            from the last level.
        """
        for index, block in enumerate(self.blocks):
            x = checkpointed(block, x) if self.with_cp else block(x)
            if index in self.post_norm_ids:
                x = self.post_norms[self.post_norm_ids.index(index)](x)
        if self.norm is not None:
            x = self.norm(x)
        if is_last or self.downsample is None:
            return x, x
        return self.downsample(x), x
