# SPDX-License-Identifier: Apache-2.0
"""What an InternImage segmentor needs beside mmseg's own parts.

UperNet and SegFormer's head are mmseg's, with ``InternImage`` for a backbone. The
configs of Mask2Former name this module in ``custom_imports``. Importing it needs mmseg;
building Mask2Former needs mmdet too, which has its layers and losses.
"""

from ..codebases import require

try:
    from .mask2former import InternImageMask2FormerHead
except ModuleNotFoundError:
    require('internimage.segmentation', 'mmcv', 'mmseg')
    raise

__all__ = ['InternImageMask2FormerHead']
