# SPDX-License-Identifier: Apache-2.0
"""Expected: 49.7 box AP, 44.5 mask AP on COCO val2017 (arXiv:2211.05778, Table 3).
mim train internimage mask-rcnn_internimage-s_fpn_ms-crop-3x_coco.py -G 8 -l pytorch
"""

_base_ = [
    '../_base_/internimage_s.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    './_base_/coco-instance_ms-crop-3x.py',
]
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.channels),
)
