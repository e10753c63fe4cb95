# SPDX-License-Identifier: Apache-2.0
"""DCNv3, the deformable convolution of InternImage, for CPU and CUDA.

Knows PyTorch only. ``dcnv3`` is the operator, ``dcnv3_softmax`` the same on
logits, ``DCNv3`` the layer around it, ``dcnv3_reference`` the definition in plain
PyTorch, ``build_info`` tells which compiled kernels are loaded, ``why_not_fused`` which
parts of a model do not use those for inference.

The other names are what a network around the layer is built from.
"""

from . import library, registration

if library.load():
    registration.register()

from .as_built import AsBuilt
from .builders import ACT_LAYERS, NORM_LAYERS, build_act_layer, build_norm_layer
from .checks import check_channels_last, check_floating, check_matches
from .functional import dcnv3, dcnv3_softmax
from .fused import (
    Fusible,
    dcnv3_branch,
    has_fast_linear_layers,
    mlp_branch,
    use_fused,
    why_not_fused,
)
from .library import build_info
from .linear import linear
from .module import DCNv3
from .recompute import checkpointed, recomputed, with_kept_products
from .reference import dcnv3_reference
from .torch_internals import is_traced, is_transformed

__all__ = [
    'ACT_LAYERS',
    'NORM_LAYERS',
    'AsBuilt',
    'DCNv3',
    'Fusible',
    'build_act_layer',
    'build_info',
    'build_norm_layer',
    'check_channels_last',
    'check_floating',
    'check_matches',
    'checkpointed',
    'dcnv3',
    'dcnv3_branch',
    'dcnv3_reference',
    'dcnv3_softmax',
    'has_fast_linear_layers',
    'is_traced',
    'is_transformed',
    'linear',
    'mlp_branch',
    'recomputed',
    'use_fused',
    'why_not_fused',
    'with_kept_products',
]
