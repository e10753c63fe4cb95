# SPDX-License-Identifier: Apache-2.0
"""The composite backbone: two InternImages, the first one helping the second."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .architecture import level_indices
from .backbone import InternImage


class _LeadInternImage(InternImage):
    """The second branch: it starts from the first one's stem and has none itself.

    ``gamma0`` to ``gamma3`` weight what the first branch adds to its levels' inputs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patch_embed = nn.Identity()
        for level, channels in enumerate(self.arch.level_channels):
            is_used = level < self.num_running_levels
            self.register_parameter(
                f'gamma{level}', nn.Parameter(torch.zeros(channels), is_used)
            )

    def scale(self, level: int, assistance: Tensor) -> Tensor:
        """Weight what is added to a level's input, ``(N, H, W, C)``."""
        # The published code rounds to half precision here whatever the type of the
        # rest, so this is the factor that the released weights were trained with.
        gamma = getattr(self, f'gamma{level}').half()
        return gamma.to(assistance.dtype) * assistance


@MODELS.register_module()
class CBInternImage(BaseModule):
    """Two InternImages side by side, the composite backbone of the largest detectors.

    The input of the second branch's level i gets the sum of the first branch's outputs
    from level i on, each brought to its width by a 1x1 convolution and to its size by
    nearest neighbour. A factor that starts at zero weights that sum, so training starts
    from two independent branches.

    Args:
        arch: As for :class:`InternImage`, for both branches.
        out_indices: Levels to return, of each branch. The first branch always computes
            all of them; of the second, what comes after the last is neither run nor
            trained. If the first returns one level more than the second, it leaves out
            its first, as published.
        init_cfg: As for :class:`InternImage`. A pretrained file fills both branches.
        in_channels: As for :class:`InternImage`.
        **kwargs: The other arguments of :class:`InternImage`, for both branches.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: An argument is unknown or out of range; the message names it.

    Source: CBNetV2, arXiv:2107.00420. Parameter names and order of operations:
        OpenGVLab/InternImage@31c962d, detection/mmdet_custom/models/backbones/cbnet.py.
    """

    _is_init: bool  # BaseModule's, which has no types

    def __init__(
        self,
        arch: str | dict[str, Any] = 'tiny',
        out_indices: Sequence[Sequence[int]] = ((0, 1, 2, 3), (1, 2, 3)),
        init_cfg: dict | list[dict] | None = None,
        in_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        error = ValueError if isinstance(out_indices, list | tuple) else TypeError
        if error is TypeError or len(out_indices) != 2:
            raise error(
                'out_indices: expected the levels of each of two branches, '
                f'got {out_indices!r}'
            )
        kwargs.update(init_cfg=init_cfg, in_channels=in_channels)
        second = _LeadInternImage(arch, out_indices=out_indices[1], **kwargs)
        self.arch, num_levels = second.arch, len(second.arch.depths)
        first_levels = level_indices('out_indices', out_indices[0], num_levels)
        self.out_indices = (first_levels, second.out_indices)
        # All of the first branch's help.
        first = InternImage(arch, out_indices=range(num_levels), **kwargs)
        self.cb_modules = nn.ModuleList([first, second])
        widths = self.arch.level_channels
        self.cb_linears = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(wider, width, 1) if wider != width else nn.Identity()
                for wider in widths[level:]
            )
            for level, width in enumerate(widths)
        )
        self.cb_linears[second.num_running_levels :].requires_grad_(False)

    def _branches(self) -> tuple[InternImage, _LeadInternImage]:
        first, second = self.cb_modules
        return cast('InternImage', first), cast('_LeadInternImage', second)

    def forward(self, image: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Compute the features of both branches.

        Args:
            image: ``(N, in_channels, H, W)``, normalised.

        Returns:
            For the first and the second branch, what :class:`InternImage` returns.
        """
        first, second = self._branches()
        x = first.patch_embed(image)
        features = first.forward_levels(x)
        assistance = [
            second.scale(level, self._assist(level, features))
            for level in range(second.num_running_levels)
        ]
        outputs = second.forward_levels(x, assistance)
        levels = self.out_indices[0]
        if len(levels) == len(self.out_indices[1]) + 1:
            levels = levels[1:]
        return tuple(features[level] for level in levels), outputs

    def _assist(self, level: int, features: Sequence[Tensor]) -> Tensor:
        """Sum up what the first branch has for a level: ``(N, H, W, C)``."""
        size = features[level].shape[2:]
        linears = cast('nn.ModuleList', self.cb_linears[level])
        mapped = [
            F.interpolate(linear(x), size=size, mode='nearest')
            for linear, x in zip(linears, features[level:], strict=True)
        ]
        return reduce(torch.add, mapped).permute(0, 2, 3, 1)

    def init_weights(self) -> None:
        """Initialise both branches; a pretrained file is read once and fills both."""
        first, second = self._branches()
        first.init_weights()
        if first.has_pretrained_cfg:
            second.levels.load_state_dict(first.levels.state_dict())
            second._is_init = True
        else:
            second.init_weights()
        self._is_init = True

    def get_layer_depth(
        self, param_name: str, prefix: str = 'backbone.'
    ) -> tuple[int, int]:
        """Return how deep a parameter sits, for layer-wise learning rates.

        Everything sits deepest: the published rule looks for ``backbone.levels``, not
        for ``backbone.cb_modules``, so composite models were trained without decay.
        The arguments and the result are those of :meth:`InternImage.get_layer_depth`.
        """
        num_layers = sum(self.arch.depths) + 2
        return num_layers - 1, num_layers
