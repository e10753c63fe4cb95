# SPDX-License-Identifier: Apache-2.0
"""What training needs beside mmengine's own, registered in its root registries."""

from .checkpoint_hook import WholeCheckpointHook
from .default_hooks import complete_hooks
from .finite_loss import FiniteLossHook, NonFiniteError
from .layer_decay import LayerDecayOptimWrapperConstructor
from .random_streams import RandomStreamHook
from .resuming import ResumeError, choose_resumable, find_resumable
from .whole_files import (
    SaveError,
    WholeFileBackend,
    find_leftovers,
    register_whole_file_backend,
    write_whole,
)

__all__ = [
    'FiniteLossHook',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteError',
    'RandomStreamHook',
    'ResumeError',
    'SaveError',
    'WholeCheckpointHook',
    'WholeFileBackend',
    'choose_resumable',
    'complete_hooks',
    'find_leftovers',
    'find_resumable',
    'register_whole_file_backend',
    'write_whole',
]
