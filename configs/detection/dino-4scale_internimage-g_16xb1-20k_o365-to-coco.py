# SPDX-License-Identifier: Apache-2.0
"""Expected: 64.2 box AP on COCO val2017 (published with the weights).
mim train internimage dino-4scale_internimage-g_16xb1-20k_o365-to-coco.py -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = ['../_base_/internimage_g.py', './_base_/dino-4scale_o365-to-coco.py']
custom_imports = dict(imports=['internimage.detection'])
model = dict(
    backbone=dict(
        _base_.backbone,
        init_cfg=None,
        out_indices=(1, 2, 3),
        drop_path_rate=0.5,
        with_cp=True,
    ),
    neck=dict(in_channels=_base_.channels[1:]),
)
load_from = 'work_dirs/dino-4scale_internimage-g_128xb2-26e_objects365/epoch_26.pth'
