# SPDX-License-Identifier: Apache-2.0
"""The settings of an InternImage, checked."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """What decides the parameters and the function of a backbone.

    Names and defaults are those of the published code; the defaults describe none of
    the released models.

    Attributes:
        channels: Channels of the first level; each further level doubles them.
        depths: Blocks of each level.
        groups: DCNv3 groups of each level, divisors of its channels.
        mlp_ratio: Hidden channels of the MLPs, per channel.
        norm_layer: Norm of stem, downsampling and DCNv3: 'LN' or 'BN'. All other
            norms are LayerNorms.
        act_layer: 'GELU', 'ReLU' or 'SiLU'.
        layer_scale: Initial value of a learned factor per channel on each residual
            branch; None for no factor.
        offset_scale: Factor on DCNv3's offsets and on its grid of taps.
        post_norm: Normalise what a residual branch returns, not what it gets.
        dw_kernel_size: Kernel of DCNv3's depthwise branch; None for DCNv3's own, 3.
        res_post_norm: Also normalise what a branch returns. As published, this has
            parameters but no effect beside ``post_norm`` or ``layer_scale``.
        level2_post_norm: Normalise after some blocks of the third level.
        level2_post_norm_block_ids: Which blocks.
        center_feature_scale: Mix each position's own projection into DCNv3's output.
        remove_center: Leave out DCNv3's central tap.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    channels: int = 64
    depths: Sequence[int] = (3, 4, 18, 5)
    groups: Sequence[int] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    norm_layer: str = 'LN'
    act_layer: str = 'GELU'
    layer_scale: float | None = None
    offset_scale: float = 1.0
    post_norm: bool = False
    dw_kernel_size: int | None = None
    res_post_norm: bool = False
    level2_post_norm: bool = False
    level2_post_norm_block_ids: Sequence[int] | None = None
    center_feature_scale: bool = False
    remove_center: bool = False

    def __post_init__(self) -> None:
        if self.channels < 2:
            raise ValueError(f'channels: expected 2 or more, got {self.channels}')
        if not self.depths or min(self.depths) < 1:
            raise ValueError(
                f'depths: expected one or more blocks for each level, got {self.depths}'
            )
        if len(self.groups) != len(self.depths) or any(
            group < 1 or channels % group
            for group, channels in zip(self.groups, self.level_channels, strict=False)
        ):
            raise ValueError(
                'groups: expected a divisor of the channels for each level, which are '
                f'{self.level_channels}, got {self.groups}'
            )
        if self.mlp_ratio <= 0:
            raise ValueError(f'mlp_ratio: expected more than 0, got {self.mlp_ratio}')
        if self.level2_post_norm:
            self._check_post_norm_ids()

    def _check_post_norm_ids(self) -> None:
        ids = self.level2_post_norm_block_ids
        depth = self.depths[2] if len(self.depths) > 2 else 0
        if not ids or len(set(ids)) < len(ids) or not set(ids) <= set(range(depth)):
            raise ValueError(
                'level2_post_norm_block_ids: expected, with level2_post_norm, distinct '
                f'indices of the {depth} blocks of the third level, got {ids}'
            )

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * 2**level for level in range(len(self.depths)))

    def post_norm_ids(self, level: int) -> tuple[int, ...]:
        """Return the blocks of a level that a norm of their own comes after."""
        if level != 2 or not self.level2_post_norm:
            return ()
        return tuple(self.level2_post_norm_block_ids or ())
