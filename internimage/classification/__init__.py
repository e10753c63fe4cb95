# SPDX-License-Identifier: Apache-2.0
"""What an InternImage classifier needs beside mmpretrain's own parts.

A classifier is mmpretrain's ``ImageClassifier`` with ``InternImage``, one of these
necks, and mmpretrain's ``LinearClsHead``. Configs name this module in
``custom_imports``. Importing it needs mmpretrain.
"""

from ..codebases import require

try:
    from .attention_pool_neck import AttentionPoolNeck
    from .conv_pool_neck import ConvPoolNeck
    from .imagenet1k_head import ImageNet1kHead
except ModuleNotFoundError:
    require('internimage.classification', 'mmcv', 'mmpretrain', 'torchvision')
    raise

__all__ = ['AttentionPoolNeck', 'ConvPoolNeck', 'ImageNet1kHead']
