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
    checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if checkpoint and checkpoint['type'] in ('CheckpointHook', CheckpointHook):
        checkpoint['type'] = 'WholeCheckpointHook'
    for name, hook in _OURS.items():
        # The runner knows None for its own hooks only.
        if hooks.setdefault(name, dict(type=hook)) is None:
            del hooks[name]
    # For who reads the config that the runner writes into its folder.
    imports = config.setdefault('custom_imports', ConfigDict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else names
    if not any(name.split('.')[0] == 'internimage' for name in names):
        imports['imports'] = [*names, 'internimage']
