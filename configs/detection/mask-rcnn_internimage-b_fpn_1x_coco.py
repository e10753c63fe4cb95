# SPDX-License-Identifier: Apache-2.0
"""Expected: 48.8 box AP, 44.0 mask AP on COCO val2017 (arXiv:2211.05778, Table 3).
mim train internimage mask-rcnn_internimage-b_fpn_1x_coco.py -G 8 -l pytorch
"""

_base_ = [
    '../_base_/internimage_b.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    './_base_/coco-instance_1x.py',
]
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.4),
    neck=dict(in_channels=_base_.channels),
)
