# SPDX-License-Identifier: Apache-2.0
"""The neck of the classifiers from InternImage-T to XL."""

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ops_dcnv3 import build_act_layer, build_norm_layer
from ops_dcnv3.arguments import integer


@MODELS.register_module()
class ConvPoolNeck(BaseModule):
    """Widen the last map by a 1x1 convolution, and average it over all positions.

    A tool that needs a map to explain a prediction by finds it in the output of
    ``neck.conv_head``, ``(N, out_channels, H, W)``. The norms of the backbone have
    their channels last, which CAM tools mistake.

    Args:
        in_channels: Channels of the backbone's last map.
        out_channels: Channels of the result; the published models have
            ``1.5 * in_channels``.
        act_layer: 'GELU', 'ReLU' or 'SiLU'; comes after the convolution's BatchNorm.
        init_cfg: Of mmengine's initializers; None for the published initial values,
            which are PyTorch's.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: An argument is out of range; the message names it.

    Source: OpenGVLab/InternImage@31c962d, classification/models/intern_image.py,
        ``conv_head``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        act_layer: str = 'GELU',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        in_channels = integer('in_channels', in_channels)
        out_channels = integer('out_channels', out_channels)
        self.conv_head = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            build_norm_layer(out_channels, 'BN', 'channels_first', 'channels_first'),
            build_act_layer(act_layer),
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Turn the last of the backbone's maps into one vector.

        Args:
            maps: The last is ``(N, in_channels, H, W)``; others are not looked at.

        Returns:
            ``(N, out_channels)``, in a tuple of one, as mmpretrain's heads want it.
        """
        return (self.conv_head(maps[-1]).mean(dim=(2, 3)),)
