# SPDX-License-Identifier: Apache-2.0
"""Say which weights of a model a checkpoint did not fill.

mmengine says it through ``print``, and over many lines, unless it is given a logger,
which its runner and most doors do not do. A module does not know the model that it is
in; PyTorch tells when one becomes part of another.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .key_maps import shorten

_MAX_NAMES = 20
_MISSHAPEN = re.compile(
    r'size mismatch for (\S+?):.*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)',
)


def report_loads(*classes: type[nn.Module]) -> None:
    """Report on every model that has a module of these classes, when it is loaded.

    One line at WARNING, with the names of the weights that keep their initial values.

    Args:
        classes: Of the backbones. The models are what they become part of.
    """

    def on_registration(module: nn.Module, name: str, child: Any) -> None:
        is_concerned = isinstance(module, classes) or (
            isinstance(child, nn.Module)
            and (isinstance(child, classes) or _is_reported(child))
        )
        if is_concerned and not _is_reported(module):
            _Report().attach(module)

    register_module_module_registration_hook(on_registration)


def _is_reported(module: nn.Module) -> bool:
    hooks = module._load_state_dict_post_hooks.values()
    return any(isinstance(getattr(hook, '__self__', None), _Report) for hook in hooks)


class _Report:
    """Watches one module while weights are loaded into it and all that it has.

    Loaders hand one list of errors, and one of missing names, through all modules. The
    outermost module is asked first, and told last.
    """

    def __init__(self) -> None:
        self._is_outermost = False
        self._errors: list[str] = []

    def attach(self, module: nn.Module) -> None:
        module.register_load_state_dict_pre_hook(self.begin)
        module.register_load_state_dict_post_hook(self.finish)

    def begin(
        self,
        module: nn.Module,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._is_outermost = not prefix
        self._errors = error_msgs
        if self._is_outermost:
            _check_kinds(module, state_dict)

    def finish(self, module: nn.Module, incompatible_keys: Any) -> None:
        errors, self._errors = self._errors, []
        if not self._is_outermost:
            return
        missing = [
            # What a batch norm counts is of no effect.
            key
            for key in incompatible_keys.missing_keys
            if not key.endswith('num_batches_tracked')
        ]
        misshapen = [
            f'{key} (file ({file}), model ({model}))'
            for key, file, model in _MISSHAPEN.findall('\n'.join(errors))
        ]
        if missing or misshapen:
            print_log(_sentence(module, missing, misshapen), 'current', logging.WARNING)


def _sentence(module: nn.Module, missing: list[str], misshapen: list[str]) -> str:
    parts = [
        f'{len(names)} {what}: {shorten(names, _MAX_NAMES)}'
        for what, names in (
            ('not in the checkpoint', missing),
            ('of another shape', misshapen),
        )
        if names
    ]
    return (
        f'{type(module).__name__}: {len(missing) + len(misshapen)} weights keep their '
        f'initial values; {"; ".join(parts)}'
    )


def _check_kinds(module: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Refuse integers and complex numbers for real weights, which PyTorch casts."""
    own = module.state_dict()
    wrong = [
        f'{key} ({value.dtype})'
        for key, value in state_dict.items()
        if isinstance(value, Tensor)
        and isinstance(own.get(key), Tensor)
        and own[key].is_floating_point()
        and not value.is_floating_point()
    ]
    if wrong:
        raise ValueError(
            f'{type(module).__name__}: expected real numbers for {len(wrong)} weights, '
            f'got {shorten(wrong)}'
        )
