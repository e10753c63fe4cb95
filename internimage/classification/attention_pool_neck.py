# SPDX-License-Identifier: Apache-2.0
"""The neck of the classifiers InternImage-H and G.

Attribute names are those of the released weights. ``N`` batch, ``L`` positions of a
map, ``C`` channels.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ops_dcnv3 import build_norm_layer
from ops_dcnv3.arguments import integer, integers


class CrossAttention(nn.Module):
    """Multi-head attention of queries to other positions.

    Args:
        channels: Input channels, a multiple of ``num_heads``.
        num_heads: Attention heads.
        out_channels: Output channels.
    """

    def __init__(self, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        # Beside the layers, not in them: the released weights name them so.
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.k_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map ``(N, Lq, C)``, ``(N, L, C)``, ``(N, L, C)`` to ``(N, Lq, Co)``."""
        x = F.scaled_dot_product_attention(
            self._heads(F.linear(query, self.q.weight, self.q_bias)),
            self._heads(F.linear(key, self.k.weight, self.k_bias)),
            self._heads(F.linear(value, self.v.weight, self.v_bias)),
        )
        return self.proj(x.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """View ``(N, L, C)`` as ``(N, num_heads, L, C / num_heads)``."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class AttentionPool(nn.Module):
    """Average all positions with weights that attention gives them.

    Their mean is the query.

    Args:
        channels: Input channels, a multiple of ``num_heads``.
        num_heads: Attention heads.
        out_channels: Output channels.
    """

    def __init__(self, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.norm1_q = build_norm_layer(channels)
        self.norm1_k = build_norm_layer(channels)
        self.norm1_v = build_norm_layer(channels)
        self.cross_dcn = CrossAttention(channels, num_heads, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, L, C)`` to ``(N, out_channels)``."""
        query = self.norm1_q(x.mean(dim=1, keepdim=True))
        return self.cross_dcn(query, self.norm1_k(x), self.norm1_v(x)).squeeze(1)


@MODELS.register_module()
class AttentionPoolNeck(BaseModule):
    """Add the last two maps at the size of the larger, and pool them by attention.

    A tool that needs a map to explain a prediction by finds one in the outputs of
    ``neck.dcnv3_head_x4`` and ``neck.dcnv3_head_x3``, ``(N, embed_dims, H, W)``. The
    norms of the backbone have their channels last, which CAM tools mistake.

    Args:
        in_channels: Channels of the backbone's last but one and last map.
        embed_dims: Channels of their sum, a multiple of ``num_heads``.
        num_heads: Heads of the attention.
        out_channels: Channels of the result.
        init_cfg: Of mmengine's initializers; None for the published initial values.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: An argument is out of range: ``in_channels`` are not two, or
            ``embed_dims`` do not divide.

    Source: OpenGVLab/InternImage@31c962d, classification/models/intern_image.py,
        ``forward_clip_projector``.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        embed_dims: int = 1024,
        num_heads: int = 16,
        out_channels: int = 768,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02))
        next_to_last, last = integers(
            'in_channels',
            in_channels,
            'those of the last two maps',
            lambda channels: len(channels) == 2 and min(channels) >= 1,
        )
        num_heads = integer('num_heads', num_heads)
        embed_dims = integer(
            'embed_dims',
            embed_dims,
            f'a multiple of num_heads ({num_heads})',
            lambda dims: dims >= 1 and dims % num_heads == 0,
        )
        out_channels = integer('out_channels', out_channels)
        # Four times as many channels become twice the height and width.
        self.dcnv3_head_x4 = nn.Sequential(
            nn.Conv2d(last, 4 * embed_dims, 1), nn.PixelShuffle(2)
        )
        self.dcnv3_head_x3 = nn.Conv2d(next_to_last, embed_dims, 1)
        self.clip_projector = AttentionPool(embed_dims, num_heads, out_channels)
        self.fc_norm = build_norm_layer(out_channels)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Turn the last two of the backbone's maps into one vector.

        Args:
            maps: The last two are ``(N, C3, 2H, 2W)`` and ``(N, C4, H, W)``; others
                are not looked at.

        Returns:
            ``(N, out_channels)``, in a tuple of one, as mmpretrain's heads want it.

        Raises:
            ValueError: There are fewer maps, or of other sizes.
        """
        sizes = [tuple(x.shape[2:]) for x in maps[-2:]]
        if len(sizes) < 2 or sizes[0] != tuple(2 * size for size in sizes[1]):
            raise ValueError(
                'maps: expected two, the first twice as high and wide as the second, '
                f'got sizes {sizes}; use out_indices=(2, 3) and images whose height '
                'and width are multiples of 32'
            )
        x = self.dcnv3_head_x4(maps[-1]) + self.dcnv3_head_x3(maps[-2])
        x = self.clip_projector(x.flatten(2).transpose(1, 2))
        return (self.fc_norm(x),)
