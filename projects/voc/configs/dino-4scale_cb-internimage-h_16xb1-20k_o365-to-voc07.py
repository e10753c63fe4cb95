# SPDX-License-Identifier: Apache-2.0
"""Expected: 94.0 AP50 on PASCAL VOC 2007 test (published).
mim train internimage <path of this file> -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""

_base_ = './_base_/dino-4scale_cb-internimage-h_o365-to-voc.py'

val_dataloader = dict(
    dataset=dict(
        _base_.dataset,
        ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='VOCMetric', eval_mode='11points')
test_evaluator = val_evaluator
load_from = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_20classes.pth'
