# SPDX-License-Identifier: Apache-2.0
"""Expected: 52.6 mIoU on COCO-Stuff-164K val2017, 52.8 with augmentation (published).
mim train internimage mask2former_internimage-h_16xb1-80k_coco-stuff164k-896x896.py -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = [
    '../_base_/internimage_h.py',
    './_base_/mask2former_80k_coco-stuff164k-896x896.py',
]
custom_imports = dict(imports=['internimage.segmentation'])
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.5),
    decode_head=dict(in_channels=_base_.channels),
)
