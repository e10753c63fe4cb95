# SPDX-License-Identifier: Apache-2.0
"""Learning rates that shrink with the distance from the output."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ops_dcnv3.arguments import flag, number

_DEFAULTS = {
    'layer_decay_rate': 1.0,
    'backbone_small_lr': False,
    'dino_head': False,
    'offset_lr_scale': 1.0,
    'dcn_offset_lr_scale': 1.0,
}

# Learned queries and their classifiers: the published rule trains them as slowly as
# the stem. Of Mask2Former's these are parts as listed. DINO's is `level_embeds` in the
# published model, found anywhere in a name, and `level_embed` in mmdet 3's; no other
# parameter of the models has that in its name.
_SLOWEST_HEADS = tuple(
    f'.decode_head.{name}'
    for name in ('mask_embed', 'cls_embed', 'level_embed', 'query_embed', 'query_feat')
)
_SLOWEST_ANYWHERE = 'level_embed'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Build an optimizer with layer-wise learning rates, by the published rule.

    A parameter at depth d of D has ``lr * layer_decay_rate ** (D - 1 - d)``. Backbones
    tell depths (``get_layer_depth(name, prefix)``, which those of mmpretrain have too):
    a config states none. They are found wherever they are in the model, as in the
    detectors inside of a ``SoftTeacher``; of several with different depths, the output
    ends are in line. Biases, norms, everything one-dimensional and
    ``sampling_offsets`` have no weight decay.

    ``paramwise_cfg`` may set

    * ``layer_decay_rate`` (1.0): factor from one depth to the one before it.
    * ``backbone_small_lr`` (False): a further 0.1 for whatever that factor reduces.
    * ``dino_head`` (False): 0.1 for ``sampling_offsets`` and ``reference_points``
      after the backbone, in place of ``offset_lr_scale``.
    * ``offset_lr_scale`` (1.0): factor for names with ``sampling_offsets`` or
      ``reference_points``, in a ``decode_head`` excepted. Those are deformable
      attention's. DCNv3 names its layer ``offset``, so this has never reached the
      backbone, although the published recipes set it: the released models were
      trained without it there.
    * ``dcn_offset_lr_scale`` (1.0): factor for the layer that predicts DCNv3's offsets
      (``dcn.offset``), which the former may have been meant for. Not published.

    Each group also carries ``lr_scale``, ``param_names`` and ``group_name``.

    Args:
        optim_wrapper_cfg: As for mmengine's constructor; its ``optimizer`` states
            ``lr`` and ``weight_decay``.
        paramwise_cfg: See above.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, an unknown key, or no ``lr`` or
            ``weight_decay``.

    Source: OpenGVLab/InternImage@31c962d,
        {detection,segmentation}/mmcv_custom/custom_layer_decay_optimizer_constructor.py
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        paramwise_cfg = {} if paramwise_cfg is None else paramwise_cfg
        _check_paramwise_cfg(paramwise_cfg)
        super().__init__(optim_wrapper_cfg, {**_DEFAULTS, **paramwise_cfg})
        for name, value in (('lr', self.base_lr), ('weight_decay', self.base_wd)):
            if value is None:
                raise ValueError(
                    'optimizer: expected lr and weight_decay, got '
                    f'lr={self.base_lr}, weight_decay={self.base_wd}'
                )
            number(
                f'optimizer.{name}', value, 'a number of 0 or more', lambda x: x >= 0
            )

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any
    ) -> None:
        """Append the groups of a model's trainable parameters to ``params``.

        Args:
            params: Where to append.
            module: The whole model.
            **kwargs: mmengine's recursion; not used.

        Raises:
            TypeError: The rate is not 1, and no part of the model tells depths.
        """
        model: Any = module.module if is_model_wrapper(module) else module
        backbones = _find_backbones(model)
        if not backbones and self.paramwise_cfg['layer_decay_rate'] != 1:
            raise TypeError(
                'layer decay: expected a model with a backbone that has '
                f'get_layer_depth(name, prefix), got {type(model).__name__} without; '
                'layer_decay_rate=1 needs none'
            )
        parameters = dict(model.named_parameters())
        depths, num_depths = _tell_depths(parameters, backbones)
        groups: dict[str, dict[str, Any]] = {}
        for name, param in parameters.items():
            if not param.requires_grad:
                continue
            depth = depths.get(name, num_depths - 1)
            is_slowest_head = any(head in f'.{name}' for head in _SLOWEST_HEADS)
            if is_slowest_head or _SLOWEST_ANYWHERE in name:
                depth = 0
            kind, scale = self._kind_and_scale(name, depth, num_depths)
            decays = _has_weight_decay(name, param)
            group_name = f'layer_{depth}_{"decay" if decays else "no_decay"}{kind}'
            group = groups.setdefault(
                group_name,
                {
                    'params': [],
                    'param_names': [],
                    'lr': scale * self.base_lr,
                    'lr_scale': scale,
                    'weight_decay': self.base_wd if decays else 0.0,
                    'group_name': group_name,
                },
            )
            group['params'].append(param)
            group['param_names'].append(name)
        params.extend(groups.values())
        _log(groups, self.paramwise_cfg)

    def _kind_and_scale(
        self, name: str, depth: int, num_depths: int
    ) -> tuple[str, float]:
        """Return the suffix of the parameter's group, and the factor on its rate."""
        cfg = self.paramwise_cfg
        scale = cfg['layer_decay_rate'] ** (num_depths - 1 - depth)
        if scale < 1 and cfg['backbone_small_lr']:
            scale *= 0.1
        if 'sampling_offsets' in name or 'reference_points' in name:
            if cfg['dino_head'] and depth == num_depths - 1:
                return '_0.1x', scale * 0.1
            # The published segmentation rule leaves heads out, the detection one not.
            if '.decode_head.' not in f'.{name}':
                return '_offset_lr_scale', scale * cfg['offset_lr_scale']
        elif '.dcn.offset.' in name and cfg['dcn_offset_lr_scale'] != 1:
            return '_dcn_offset_lr_scale', scale * cfg['dcn_offset_lr_scale']
        return '', scale


def _check_paramwise_cfg(cfg: Any) -> None:
    if not isinstance(cfg, Mapping):
        raise TypeError(f'paramwise_cfg: expected a dict, got {cfg!r}')
    unknown = [key for key in cfg if key not in _DEFAULTS]
    if unknown:
        raise ValueError(
            f'paramwise_cfg: unknown keys {unknown}, known are {list(_DEFAULTS)} '
            '(depths come from the backbone)'
        )
    for key, value in cfg.items():
        if isinstance(_DEFAULTS[key], bool):
            flag(key, value)
        elif key == 'layer_decay_rate':
            number(key, value, '0 < rate <= 1', lambda rate: 0 < rate <= 1)
        else:
            number(key, value)


def _find_backbones(model: nn.Module) -> dict[str, Any]:
    """Return what tells the depths of parameters, by the prefix of their names.

    Of modules inside of each other it is the outermost: a composite backbone answers
    for both of its branches. A classifier of mmpretrain only hands the question on.
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        prefix = f'{name}.' if name else ''
        method = getattr(module, 'get_layer_depth', None)
        if (
            method is not None
            and 'prefix' in inspect.signature(method).parameters
            and not prefix.startswith(tuple(found))
        ):
            found[prefix] = module
    return found


def _tell_depths(
    names: Iterable[str], backbones: Mapping[str, Any]
) -> tuple[dict[str, int], int]:
    """Return the depths of the parameters that are in backbones, and their number.

    Depths of a backbone with fewer than others start later: all end alike.
    """
    told = {
        name: backbone.get_layer_depth(name, prefix)
        for name in names
        for prefix, backbone in backbones.items()
        if name.startswith(prefix)
    }
    num_depths = max((own for _, own in told.values()), default=1)
    depths = {name: depth + num_depths - own for name, (depth, own) in told.items()}
    return depths, num_depths


def _has_weight_decay(name: str, param: nn.Parameter) -> bool:
    return param.ndim != 1 and not (
        name.endswith('.bias')
        or any(
            word in name for word in ('norm', 'relative_position', 'sampling_offsets')
        )
    )


def _log(groups: dict[str, dict[str, Any]], paramwise_cfg: dict[str, Any]) -> None:
    if not groups:
        return  # PyTorch says that there is nothing to train
    scales = [group['lr_scale'] for group in groups.values()]
    count = sum(len(group['params']) for group in groups.values())
    print_log(
        f'layer decay: {count} parameters in {len(groups)} groups, lr_scale '
        f'{min(scales):.3g} to {max(scales):.3g}, by {paramwise_cfg}',
        logger='current',
    )
