# SPDX-License-Identifier: Apache-2.0
"""Expected: 62.6 mIoU on ADE20K val (62.5 in the paper), 62.9 with augmentation (published).
mim train internimage mask2former_internimage-h_16xb1-80k_ade20k-896x896.py -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = ['../_base_/internimage_h.py', './_base_/mask2former_80k_ade20k-896x896.py']
custom_imports = dict(imports=['internimage.segmentation'])
model = dict(
    backbone=dict(_base_.backbone, init_cfg=None, drop_path_rate=0.5),
    decode_head=dict(in_channels=_base_.channels),
)
# Trained on COCO-Stuff-164K; the class layer starts anew.
load_from = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask2former_internimage_h_896_80k_cocostuff164k.pth'
