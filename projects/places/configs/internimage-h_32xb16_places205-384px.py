# SPDX-License-Identifier: Apache-2.0
"""Expected: 71.7 top-1 on Places205 val (arXiv:2211.05778, Table 10); no weights are published.
mim train internimage <path of this file> -G 32 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = './_base_/internimage-h_places-384px.py'
custom_imports = dict(imports=['internimage.classification'])

model = dict(head=dict(num_classes=205))
data_preprocessor = dict(num_classes=205)
dataset = dict(
    _delete_=True,
    type='Places205',
    data_root='data/places205',
)
train_dataloader = dict(
    dataset=dict(
        dataset,
        ann_file='train_places205.csv',
        data_prefix='images',
        pipeline=_base_.train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        dataset,
        ann_file='val_places205.csv',
        data_prefix='images',
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
