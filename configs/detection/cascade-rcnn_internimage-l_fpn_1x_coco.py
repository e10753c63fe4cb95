# SPDX-License-Identifier: Apache-2.0
"""Expected: boxes alone, for data without masks; no result is published.
mim train internimage cascade-rcnn_internimage-l_fpn_1x_coco.py -G 8 -l pytorch
"""

_base_ = [
    '../_base_/internimage_l.py',
    './_base_/cascade-mask-rcnn_r50_fpn_4conv1fc.py',
    './_base_/coco-detection_1x.py',
]
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.4),
    neck=dict(in_channels=_base_.channels),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.94))
