# SPDX-License-Identifier: Apache-2.0
"""No result is published; of InternImage-H, without config, 97.2 AP on CrowdHuman val.
mim train internimage <path of this file> -G 8 -l pytorch
"""

_base_ = [
    '../../../configs/_base_/internimage_xl.py',
    './_base_/cascade-rcnn_ms-crop-3x_crowdhuman.py',
]
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.4),
    neck=dict(in_channels=_base_.channels),
)
