# SPDX-License-Identifier: Apache-2.0
"""InternImage for OpenMMLab: importing it makes its parts known to every codebase.

The import needs PyTorch, mmengine and ``ops_dcnv3``. It

* registers ``InternImage``, ``CBInternImage``, ``LayerDecayOptimWrapperConstructor``
  and hooks (:mod:`internimage.engine`) in mmengine's root registries, where mmpretrain,
  mmdet and mmseg look them up,
* replaces mmengine's checkpoint loaders, for the whole process, with ones that read
  safely (:mod:`internimage.checkpoint.loaders`) and give the weights of a published
  InternImage the names that our models use (:mod:`internimage.checkpoint`),
* replaces mmengine's backend for local files with one whose files are whole or not
  there (:mod:`internimage.engine.whole_files`), and
* lets every model with one of our backbones say which of its weights a checkpoint did
  not fill (:mod:`internimage.checkpoint.reporting`).

What needs one of the codebases is imported by name: ``internimage.classification``,
``internimage.detection``, ``internimage.segmentation``.
"""

from .backbone import InternImage
from .checkpoint import convert_loaded, register_safe_loaders, report_loads
from .composite import CBInternImage
from .engine import (
    FiniteLossHook,
    LayerDecayOptimWrapperConstructor,
    RandomStreamHook,
    WholeCheckpointHook,
    register_whole_file_backend,
)
from .version import __version__

register_safe_loaders(finish=convert_loaded)
register_whole_file_backend()
report_loads(InternImage, CBInternImage)

__all__ = [
    'CBInternImage',
    'FiniteLossHook',
    'InternImage',
    'LayerDecayOptimWrapperConstructor',
    'RandomStreamHook',
    'WholeCheckpointHook',
    '__version__',
]
