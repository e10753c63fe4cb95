# SPDX-License-Identifier: Apache-2.0
"""Expected: 92.6 top-1 on iNaturalist 2018 val (published with the weights).
mim train internimage <path of this file> -G 32 -g 8 -l slurm -p PART --srun-args=-u
"""

_base_ = [
    '../../../configs/_base_/internimage_h.py',
    '../../../configs/classification/_base_/in1k-384px_20e.py',
]
# The programs that mim runs are elsewhere: this is how they find the package.
__import__('sys').path.append('{{ fileDirname }}/..')
custom_imports = dict(imports=['internimage.classification', 'inaturalist2018'])

model = dict(
    backbone=dict(
        _base_.backbone,
        init_cfg=None,
        out_indices=(2, 3),
        drop_path_rate=0.6,
        with_cp=True,
    ),
    neck=dict(_delete_=True, type='AttentionPoolNeck', in_channels=_base_.channels[2:]),
    head=dict(
        type='MetaLinearClsHead',
        in_channels=768,
        num_classes=8142,
        # What the image says starts at almost nothing; date and place at the usual.
        init_cfg=dict(override=dict(type='TruncNormal', name='fc', std=2e-5)),
    ),
    init_cfg=_base_.backbone.init_cfg,
)
data_preprocessor = dict(num_classes=8142)

pack = [
    dict(type='EncodeDateAndPlace'),
    dict(type='PackInputs', algorithm_keys=('metadata',)),
]
train_pipeline = _base_.train_pipeline[:-1] + pack
test_pipeline = _base_.test_pipeline[:-1] + pack
dataset = dict(_delete_=True, type='INaturalist2018', data_root='data/inat2018')
train_dataloader = dict(dataset=dict(dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(dataset, split='val', pipeline=test_pipeline))
test_dataloader = val_dataloader

# No warm-up, and no averaged weights.
param_scheduler = [_base_.param_scheduler[1]]
train_cfg = dict(max_epochs=100)
custom_hooks = []
