# SPDX-License-Identifier: Apache-2.0
"""Expected: 69.7 mIoU on Pascal Context val (59 classes), 70.3 with augmentation (published).
mim train internimage <path of this file> -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = [
    '../../../configs/_base_/internimage_h.py',
    './_base_/mask2former_40k_pascal-context-59-480x480.py',
]
custom_imports = dict(imports=['internimage.segmentation'])
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.5),
    decode_head=dict(in_channels=_base_.channels),
)
