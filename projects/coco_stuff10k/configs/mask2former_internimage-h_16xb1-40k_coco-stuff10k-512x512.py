# SPDX-License-Identifier: Apache-2.0
"""Expected: 59.2 mIoU on COCO-Stuff-10K test, 59.6 with augmentation (published).
mim train internimage <path of this file> -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""

_base_ = [
    '../../../configs/_base_/internimage_h.py',
    './_base_/mask2former_40k_coco-stuff10k-512x512.py',
]
custom_imports = dict(imports=['internimage.segmentation'])
model = dict(
    backbone=dict(_base_.backbone, init_cfg=None, drop_path_rate=0.5),
    decode_head=dict(in_channels=_base_.channels),
)
load_from = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask2former_internimage_h_896_80k_cocostuff164k.pth'
