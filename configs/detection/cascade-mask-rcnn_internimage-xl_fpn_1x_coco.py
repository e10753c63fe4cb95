# SPDX-License-Identifier: Apache-2.0
"""Expected: 55.3 box AP, 48.1 mask AP on COCO val2017 (arXiv:2211.05778, Table 3).
mim train internimage cascade-mask-rcnn_internimage-xl_fpn_1x_coco.py -G 8 -l pytorch
"""

_base_ = [
    '../_base_/internimage_xl.py',
    './_base_/cascade-mask-rcnn_r50_fpn_4conv1fc.py',
    './_base_/coco-instance_1x.py',
]
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.4),
    neck=dict(in_channels=_base_.channels),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.94))
