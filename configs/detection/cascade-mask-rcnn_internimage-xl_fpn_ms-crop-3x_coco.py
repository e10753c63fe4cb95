# SPDX-License-Identifier: Apache-2.0
"""Expected: 56.2 box AP, 48.8 mask AP on COCO val2017 (arXiv:2211.05778, Table 3).
mim train internimage cascade-mask-rcnn_internimage-xl_fpn_ms-crop-3x_coco.py -G 32 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = [
    '../_base_/internimage_xl.py',
    './_base_/cascade-mask-rcnn_r50_fpn_4conv1fc.py',
    './_base_/coco-instance_ms-crop-3x-ema.py',
]
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.6),
    neck=dict(in_channels=_base_.channels),
)
