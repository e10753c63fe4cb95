# SPDX-License-Identifier: Apache-2.0
"""Expected: 65.8 box AP on LVIS v1 minival (published).
mim train internimage <path of this file> -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""

_base_ = './_base_/dino-4scale_cb-internimage-h_o365-to-lvis.py'
# The programs that mim runs are elsewhere: this is how they find the data set's class.
__import__('sys').path.append('{{ fileDirname }}/..')
custom_imports = dict(imports=['internimage.detection', 'lvis_v1'])

ann_file = 'annotations/lvis_v1_minival.json'
val_dataloader = dict(dataset=dict(_base_.dataset, ann_file=ann_file))
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type='LVISBoxMetric', ann_file=_base_.data_root + ann_file
)
test_evaluator = val_evaluator
load_from = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_80classes.pth'
