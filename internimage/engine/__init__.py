# SPDX-License-Identifier: Apache-2.0
"""What training needs beside mmengine's own, registered in its root registries."""

from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['LayerDecayOptimWrapperConstructor']
