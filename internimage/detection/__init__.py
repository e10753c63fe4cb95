# SPDX-License-Identifier: Apache-2.0
"""What InternImage's detectors need beside mmdet's own parts.

Mask R-CNN and Cascade Mask R-CNN are mmdet's, with ``InternImage`` for a backbone.
DINO comes from here, on ``InternImage`` and on the composite ``CBInternImage``; its
configs name this module in ``custom_imports``. Importing it needs mmdet.
"""

from ..codebases import require

try:
    from .cb_dino import CBDINO, CBChannelMapper, CBDINOHead
    from .dino import InternImageDINO
except ModuleNotFoundError:
    require('internimage.detection', 'mmcv', 'mmdet')
    raise

__all__ = ['CBDINO', 'CBChannelMapper', 'CBDINOHead', 'InternImageDINO']
