# SPDX-License-Identifier: Apache-2.0
"""The settings of an InternImage, checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ops_dcnv3 import ACT_LAYERS, NORM_LAYERS
from ops_dcnv3.arguments import choice, flag, integer, integers, number


@dataclass(frozen=True)
class Architecture:
    """What decides the parameters and the function of a backbone.

    Names and defaults are those of the published code; the defaults describe none of
    the released models.

    Attributes:
        core_op: 'DCNv3', which every published config says.
        channels: Channels of the first level, an even number; each further level
            doubles them.
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
            parameters but no effect beside ``post_norm`` or ``layer_scale``: there
            they are not trained.
        level2_post_norm: Normalise after some blocks of the third level.
        level2_post_norm_block_ids: Which blocks; None without ``level2_post_norm``.
        center_feature_scale: Mix each position's own projection into DCNv3's output.
        remove_center: Leave out DCNv3's central tap.

    Raises:
        TypeError: A setting has the wrong type; the message names it.
        ValueError: A setting is out of range; the message names it.
    """

    core_op: str = 'DCNv3'
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
        for name, check in _CHECKS.items():
            # Kept as plain Python has them: a config may give lists, NumPy its ints.
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if len(self.groups) != len(self.depths) or any(
            channels % group
            for group, channels in zip(self.groups, self.level_channels, strict=True)
        ):
            raise ValueError(
                'groups: expected a divisor of the channels for each level, which are '
                f'{self.level_channels}, got {self.groups}'
            )
        if self.channels * self.mlp_ratio < 1:
            raise ValueError(
                f'mlp_ratio: expected one hidden channel or more of {self.channels} '
                f'channels, got {self.mlp_ratio}'
            )
        self._check_post_norm_ids()

    def _check_post_norm_ids(self) -> None:
        ids = self.level2_post_norm_block_ids
        if not self.level2_post_norm:
            if ids is not None:
                raise ValueError(
                    'level2_post_norm_block_ids: expected None without '
                    f'level2_post_norm, got {ids}'
                )
            return
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


def _or_none(check: Callable[..., Any], **kwargs: Any) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value, **kwargs)


def _are_positive(numbers: Sequence[int]) -> bool:
    return len(numbers) > 0 and min(numbers) > 0


def _is_positive(value: float) -> bool:
    return value > 0


#: What each setting has to be, whatever the others are.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    'core_op': partial(choice, choices=['DCNv3']),
    'channels': partial(
        integer,
        expected='2 or more and even',
        fits=lambda channels: channels >= 2 and channels % 2 == 0,
    ),
    'depths': partial(
        integers, expected='one or more blocks for each level', fits=_are_positive
    ),
    'groups': partial(
        integers, expected='one or more groups for each level', fits=_are_positive
    ),
    'mlp_ratio': partial(number, expected='a number above 0', fits=_is_positive),
    'norm_layer': partial(choice, choices=NORM_LAYERS),
    'act_layer': partial(choice, choices=ACT_LAYERS),
    'layer_scale': _or_none(number, expected='None or a number of 0 or more'),
    'offset_scale': partial(number, expected='a number above 0', fits=_is_positive),
    'post_norm': flag,
    'dw_kernel_size': _or_none(
        integer,
        expected='None or odd and above 0',
        fits=lambda size: size > 0 and size % 2 == 1,
    ),
    'res_post_norm': flag,
    'level2_post_norm': flag,
    'level2_post_norm_block_ids': _or_none(
        integers, expected='None or indices of blocks', fits=lambda ids: True
    ),
    'center_feature_scale': flag,
    'remove_center': flag,
}


def level_indices(name: str, value: Any, num_levels: int) -> tuple[int, ...]:
    """Return which levels an argument names."""
    return integers(
        name,
        value,
        f'one or more of the {num_levels} levels, counted from 0, in rising order',
        lambda levels: (
            len(levels) > 0
            and list(levels) == sorted(set(levels))
            and set(levels) <= set(range(num_levels))
        ),
    )


def drop_path_rates(rate: float, kind: str, num_blocks: int) -> list[float]:
    """Return the probability to drop a branch, for each block of a backbone."""
    rate = number('drop_path_rate', rate, '0 <= rate < 1', lambda rate: 0 <= rate < 1)
    if choice('drop_path_type', kind, ['linear', 'uniform']) == 'uniform':
        return [rate] * num_blocks
    return [rate * index / max(num_blocks - 1, 1) for index in range(num_blocks)]


def as_init_cfgs(init_cfg: Any) -> list[dict[str, Any]]:
    """Return the initializers of an ``init_cfg`` in a list."""
    if init_cfg is None:
        return []
    cfgs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
    if not isinstance(cfgs, list | tuple) or not all(
        isinstance(cfg, dict) and 'type' in cfg for cfg in cfgs
    ):
        raise TypeError(
            "init_cfg: expected None, a dict such as dict(type='Pretrained', "
            f'checkpoint=...), or a list of such dicts, got {init_cfg!r}'
        )
    return list(cfgs)


def refuse_pretrained(pretrained: Any) -> None:
    """Say what to set where ``pretrained`` comes from."""
    if pretrained is not None:
        raise ValueError(
            f'pretrained: expected None, got {pretrained!r}. mmseg hands on '
            "model.pretrained, which mmseg's base configs set: set "
            'model.pretrained=None. Weights of InternImage come by '
            "init_cfg=dict(type='Pretrained', checkpoint=...) of the backbone"
        )
