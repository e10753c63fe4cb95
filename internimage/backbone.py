# SPDX-License-Identifier: Apache-2.0
"""InternImage: a convolutional backbone with DCNv3 as its core operator."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit, trunc_normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from ops_dcnv3 import DCNv3
from ops_dcnv3.arguments import flag, integer

from .architecture import (
    Architecture,
    as_init_cfgs,
    drop_path_rates,
    level_indices,
    refuse_pretrained,
)
from .blocks import Block, Level
from .checkpoint import load_pretrained
from .layers import Stem


@MODELS.register_module()
class InternImage(BaseModule):
    """InternImage, the backbone: multi-scale features from an image.

    As in every OpenMMLab model, ``init_weights()`` gives the parameters their initial
    values; the runner calls it.

    Args:
        arch: 'tiny', 'small', 'base', 'large', 'xlarge', 'huge' or 'giant' (also 't',
            's', 'b', 'l', 'xl', 'h', 'g'), or a dict with the names of
            :class:`Architecture`, whose defaults fill what it leaves out.
        out_indices: Levels to return, counted from 0, in rising order. What comes
            after the last of them is there, so that files of whole backbones load and
            save as they are, but it is neither run nor trained.
        frozen_stages: -1 trains everything; 0 freezes the stem, k > 0 also the first
            k levels: no gradients, evaluation mode. This is mmdet's convention. The
            published code never freezes the stem.
        drop_path_rate: Probability to drop a residual branch of a sample while
            training, in [0, 1).
        drop_path_type: 'linear' raises the probability from 0 at the first block to
            ``drop_path_rate`` at the last; 'uniform' uses it for all.
        with_cp: Recompute blocks in the backward pass: least memory, more time.
        recompute: Recompute in the backward pass what is cheap and large, which is the
            depthwise branches and the activations of the MLPs: a third less memory for
            about 5 % more time. Without effect beside ``with_cp``.
        init_cfg: Of mmengine's initializers; None for the published initial values.
            ``dict(type='Pretrained', checkpoint=...)`` takes a path or URL of any
            published file and raises if that does not fill the backbone:
            see :func:`internimage.checkpoint.load_pretrained`.
        in_channels: Channels of the image: 3 for colours, 1 for gray, any number for
            other sensors. Published weights are for 3; ``adapt_in_channels=True`` in
            ``init_cfg`` makes them fit.
        pretrained: Always None; ``init_cfg`` says where weights are. mmseg's segmentors
            set it if their config has ``model.pretrained``, as mmseg's base ones do.
        **overrides: Settings of :class:`Architecture` that replace those of ``arch``.
            The published detection and segmentation models are
            ``layer_scale=1.0`` ones, from 'tiny' to 'xlarge'.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: An argument is unknown or out of range; the message names it.

    Source: InternImage, arXiv:2211.05778. Parameter names and order of operations:
        OpenGVLab/InternImage@31c962d,
        detection/mmdet_custom/models/backbones/intern_image.py.
    """

    _is_init: bool  # BaseModule's, which has no types

    #: The short names of the variants, which configs and files have.
    arch_aliases: ClassVar[dict[str, str]] = {
        't': 'tiny',
        's': 'small',
        'b': 'base',
        'l': 'large',
        'xl': 'xlarge',
        'h': 'huge',
        'g': 'giant',
    }

    #: The variants of the paper (table 1) as their classification models have them.
    arch_settings: ClassVar[dict[str, dict[str, Any]]] = {
        'tiny': {
            'channels': 64,
            'depths': (4, 4, 18, 4),
            'groups': (4, 8, 16, 32),
        },
        'small': {
            'channels': 80,
            'depths': (4, 4, 21, 4),
            'groups': (5, 10, 20, 40),
            'layer_scale': 1e-5,
            'post_norm': True,
        },
        'base': {
            'channels': 112,
            'depths': (4, 4, 21, 4),
            'groups': (7, 14, 28, 56),
            'layer_scale': 1e-5,
            'post_norm': True,
        },
        'large': {
            'channels': 160,
            'depths': (5, 5, 22, 5),
            'groups': (10, 20, 40, 80),
            'layer_scale': 1e-5,
            'offset_scale': 2.0,
            'post_norm': True,
        },
        'xlarge': {
            'channels': 192,
            'depths': (5, 5, 24, 5),
            'groups': (12, 24, 48, 96),
            'layer_scale': 1e-5,
            'offset_scale': 2.0,
            'post_norm': True,
        },
        'huge': {
            'channels': 320,
            'depths': (6, 6, 32, 6),
            'groups': (10, 20, 40, 80),
            'dw_kernel_size': 5,
            'res_post_norm': True,
            'level2_post_norm': True,
            'level2_post_norm_block_ids': (5, 11, 17, 23, 29),
            'center_feature_scale': True,
        },
        'giant': {
            'channels': 512,
            'depths': (2, 2, 48, 4),
            'groups': (16, 32, 64, 128),
            'post_norm': True,
            'dw_kernel_size': 5,
            'level2_post_norm': True,
            'level2_post_norm_block_ids': (5, 11, 17, 23, 29, 35, 41, 47),
            'center_feature_scale': True,
        },
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'tiny',
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        drop_path_type: str = 'linear',
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        recompute: bool = True,
        in_channels: int = 3,
        pretrained: None = None,
        **overrides: Any,
    ) -> None:
        as_init_cfgs(init_cfg)
        refuse_pretrained(pretrained)
        super().__init__(init_cfg)
        self.arch = self._resolve_arch(arch, overrides)
        num_levels = len(self.arch.depths)
        self.in_channels = integer('in_channels', in_channels)
        self.out_indices = level_indices('out_indices', out_indices, num_levels)
        self.frozen_stages = integer(
            'frozen_stages',
            frozen_stages,
            f'-1 (nothing), 0 (the stem) or up to {num_levels} (also that many levels)',
            lambda stages: -1 <= stages <= num_levels,
        )
        rates = iter(
            drop_path_rates(drop_path_rate, drop_path_type, sum(self.arch.depths))
        )
        self.patch_embed: nn.Module = Stem(
            self.arch.channels,
            self.arch.act_layer,
            self.arch.norm_layer,
            self.in_channels,
        )
        self.levels = nn.ModuleList(
            Level(
                self.arch,
                index,
                [next(rates) for _ in range(depth)],
                flag('with_cp', with_cp),
                flag('recompute', recompute),
            )
            for index, depth in enumerate(self.arch.depths)
        )
        self._freeze()

    @classmethod
    def _resolve_arch(
        cls, arch: str | Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> Architecture:
        if not isinstance(arch, Mapping):
            name = cls.arch_aliases.get(arch, arch) if isinstance(arch, str) else None
            if name not in cls.arch_settings:
                error = ValueError if isinstance(arch, str) else TypeError
                raise error(
                    f'arch: expected a dict or one of {list(cls.arch_settings)} '
                    f'(short: {list(cls.arch_aliases)}), got {arch!r}'
                )
            arch = cls.arch_settings[name]
        settings = {**arch, **overrides}
        known = [field.name for field in fields(Architecture)]
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise ValueError(
                f'InternImage: unknown arguments {unknown}; an architecture has '
                f'{known}. dict(_delete_=True, ...) drops those of a base config'
            )
        return Architecture(**settings)

    @property
    def num_running_levels(self) -> int:
        """Levels up to the last that is returned."""
        return max(self.out_indices) + 1

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of the levels in ``out_indices``.

        Args:
            image: ``(N, in_channels, H, W)``, normalised.

        Returns:
            For level i a ``(N, channels * 2**i, H / 2**(i+2), W / 2**(i+2))`` map,
            sizes rounded up, contiguous.
        """
        return self.forward_levels(self.patch_embed(image))

    def forward_levels(
        self, x: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the same from what the stem returns.

        Args:
            x: ``(N, ceil(H/4), ceil(W/4), C)``.
            residuals: For each level that runs, what to add to its input;
                channels-last.

        Returns:
            As :meth:`forward`.
        """
        outputs = []
        last = self.num_running_levels - 1
        for index, level in enumerate(self.levels):
            if index > last:
                break
            if residuals is not None:
                x = x + residuals[index]
            x, features = level(x, is_last=index == last)
            if index in self.out_indices:
                # A copy, not a view of channels-last memory: convolutions hand that
                # layout on, and mmcv's RoIAlign reads its input as if it were NCHW.
                outputs.append(features.permute(0, 3, 1, 2).contiguous())
        return tuple(outputs)

    def train(self, mode: bool = True) -> 'InternImage':
        """Switch to training or evaluation mode; what is frozen stays in evaluation."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        for module in self._unused():
            # Or distributed training waits for gradients that do not come.
            module.requires_grad_(False)
        if self.frozen_stages < 0:
            return
        for module in (self.patch_embed, *self.levels[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def _unused(self) -> Iterator[nn.Module]:
        """Yield the parts that no output depends on."""
        last: Any = self.levels[self.num_running_levels - 1]
        yield from self.levels[self.num_running_levels :]
        if last is not self.levels[-1]:
            yield last.downsample
        if self.arch.post_norm or self.arch.layer_scale is not None:
            for name, module in self.named_modules():
                if name.endswith(('.res_post_norm1', '.res_post_norm2')):
                    yield module

    def init_weights(self) -> None:
        """Load the checkpoint that ``init_cfg`` names, or draw initial values.

        The drawn ones are the published classification models': a truncated normal for
        the linear layers, with DCNv3's own rule on top, whose predicted offsets and
        masks start at zero. (The published detection and segmentation code loses
        those zeros here.) Initializers in ``init_cfg`` come after that.
        """
        if not self._is_init:
            pretrained = self._pretrained_cfg()
            if pretrained is not None:
                load_pretrained(self, **pretrained)
                self._is_init = True
                return
            self.reset_parameters()
        super().init_weights()

    @property
    def has_pretrained_cfg(self) -> bool:
        """Whether ``init_cfg`` names a checkpoint."""
        return self._pretrained_cfg() is not None

    def _pretrained_cfg(self) -> dict[str, Any] | None:
        """Return the arguments of a Pretrained ``init_cfg``, None for another one."""
        cfgs = as_init_cfgs(self.init_cfg)
        for cfg in cfgs:
            if cfg['type'] in ('Pretrained', PretrainedInit):
                if len(cfgs) > 1:
                    raise ValueError(
                        'init_cfg: expected Pretrained alone, as it sets every '
                        f'parameter, got {self.init_cfg}'
                    )
                return {key: value for key, value in cfg.items() if key != 'type'}
        return None

    def reset_parameters(self) -> None:
        """Draw every parameter anew."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_init(module, std=0.02)
            elif isinstance(module, (nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)):
                module.reset_parameters()
            elif isinstance(module, Block):
                module.reset_layer_scale()
        # Last, as it replaces what the loop above gave its linear layers.
        for module in self.modules():
            if isinstance(module, DCNv3):
                module.reset_parameters()

    def get_layer_depth(
        self, param_name: str, prefix: str = 'backbone.'
    ) -> tuple[int, int]:
        """Return how deep a parameter sits, for layer-wise learning rates.

        Depth 0 is the stem; each block is one deeper; what follows the backbone is
        deepest. Two published peculiarities are part of the rule: a level's own norm
        counts with its downsampling to the next level's first block (the last level's
        to its own first), and ``post_norms.k`` counts as block k.

        Args:
            param_name: Name within the whole model.
            prefix: What the names of the backbone's parameters start with.

        Returns:
            The depth, and the number of depths: blocks + 2.
        """
        depths = self.arch.depths
        num_layers = sum(depths) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        if parts[0] == 'patch_embed':
            return 0, num_layers
        if parts[0] != 'levels':
            return num_layers - 1, num_layers
        level, part = int(parts[1]), parts[2]
        if part in ('downsample', 'norm'):
            next_level = min(level + 1, len(depths) - 1)
            return 1 + sum(depths[:next_level]), num_layers
        return 1 + sum(depths[:level]) + int(parts[3]), num_layers
