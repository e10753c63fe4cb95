# SPDX-License-Identifier: Apache-2.0
"""Our hooks for configs that do not name them."""

from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook

# Names in `default_hooks`, where a config that inherits another can change them one by
# one; a list in `custom_hooks` would take their place.
_OURS = {'random_streams': 'RandomStreamHook', 'finite_loss': 'FiniteLossHook'}


def complete_hooks(config: Config) -> None:
    """Let a training be saved whole, resumed exactly, and stopped at a NaN loss.

    mmengine's ``CheckpointHook`` becomes ``WholeCheckpointHook``, with the same
    settings; ``random_streams`` and ``finite_loss`` are added. Hooks of other classes
    stay. A name set to None switches its hook off.

    Args:
        config: Of a training; changed in place.
    """
    hooks = config.setdefault('default_hooks', ConfigDict())
    # What the command line changes of a hook may be all that the config says of it.
    checkpoint = hooks.setdefault('checkpoint', ConfigDict())
    if checkpoint is not None:
        if 'type' not in checkpoint:
            checkpoint.setdefault('interval', 1)  # the runner's default
        if checkpoint.get('type') in (None, 'CheckpointHook', CheckpointHook):
            checkpoint['type'] = 'WholeCheckpointHook'
    for name, kind in _OURS.items():
        hook = hooks.setdefault(name, ConfigDict())
        if hook is None:  # the runner knows that for its own hooks only
            del hooks[name]
        else:
            hook.setdefault('type', kind)
    # For who reads the config that the runner writes into its folder.
    imports = config.setdefault('custom_imports', ConfigDict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else names
    if not any(name.split('.')[0] == 'internimage' for name in names):
        imports['imports'] = [*names, 'internimage']
