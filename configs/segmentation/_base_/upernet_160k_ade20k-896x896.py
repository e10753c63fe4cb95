# SPDX-License-Identifier: Apache-2.0
"""UperNet on ADE20K, 896 px, for H and G: 16 GPUs with 1 image each."""

_base_ = './upernet_160k_ade20k-640x640.py'

model = dict(data_preprocessor=dict(size=(896, 896)))

load, labels, resize, crop, *rest = _base_.train_pipeline
train_pipeline = [
    load,
    labels,
    dict(resize, scale=(3584, 896)),
    dict(crop, crop_size=(896, 896)),
    *rest,
]
load, resize, *rest = _base_.test_pipeline
test_pipeline = [load, dict(resize, scale=(3584, 896)), *rest]
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

views = _base_.tta_pipeline[1]
sizes = [
    dict(resize, scale=(4 * short, short))
    for short in (448, 672, 896, 1120, 1344, 1568)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *views.transforms[1:]])]

optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))
