# SPDX-License-Identifier: Apache-2.0
"""Expected: boxes alone, for data without masks; no result is published.
mim train internimage faster-rcnn_internimage-t_fpn_1x_coco.py -G 8 -l pytorch
"""

_base_ = [
    '../_base_/internimage_t.py',
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    './_base_/coco-detection_1x.py',
]
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels),
)
