# SPDX-License-Identifier: Apache-2.0
"""Expected: 65.1 box AP on COCO val2017, 65.3 with test-time augmentation (published).
mim train internimage dino-4scale_cb-internimage-g_16xb1-20k_o365-to-coco.py -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = ['../_base_/internimage_g.py', './_base_/dino-4scale_o365-to-coco.py']
custom_imports = dict(imports=['internimage.detection'])
model = dict(
    type='CBDINO',
    backbone=dict(
        _base_.backbone,
        type='CBInternImage',
        init_cfg=None,
        drop_path_rate=0.5,
        with_cp=True,
    ),
    neck=dict(type='CBChannelMapper', in_channels=_base_.channels[1:]),
    bbox_head=dict(type='CBDINOHead'),
)
load_from = 'work_dirs/dino-4scale_cb-internimage-g_128xb2-26e_objects365/epoch_26.pth'
