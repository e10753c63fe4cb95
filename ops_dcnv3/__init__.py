# SPDX-License-Identifier: Apache-2.0
"""DCNv3, the deformable convolution of InternImage, for CPU and CUDA.

Knows PyTorch only. ``dcnv3`` is the operator, ``dcnv3_softmax`` the same on
logits, ``DCNv3`` the layer around it, ``dcnv3_reference`` the definition in plain
PyTorch, ``build_info`` tells which compiled kernels are loaded.
"""

from . import library, registration

if library.load():
    registration.register()

from .functional import dcnv3, dcnv3_softmax
from .library import build_info
from .module import DCNv3
from .reference import dcnv3_reference

__all__ = ['DCNv3', 'build_info', 'dcnv3', 'dcnv3_reference', 'dcnv3_softmax']
