# SPDX-License-Identifier: Apache-2.0
"""UperNet on ADE20K, 640 px, for L and XL: the learning rate falls with the depth."""

_base_ = './upernet_160k_ade20k-512x512.py'

model = dict(data_preprocessor=dict(size=(640, 640)))

load, labels, resize, crop, *rest = _base_.train_pipeline
train_pipeline = [
    load,
    labels,
    dict(resize, scale=(2560, 640)),
    dict(crop, crop_size=(640, 640)),
    *rest,
]
load, resize, *rest = _base_.test_pipeline
test_pipeline = [load, dict(resize, scale=(2560, 640)), *rest]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

views = _base_.tta_pipeline[1]
sizes = [
    dict(resize, scale=(4 * short, short)) for short in (320, 480, 640, 800, 960, 1120)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *views.transforms[1:]])]

optim_wrapper = dict(
    optimizer=dict(lr=2e-5),
    paramwise_cfg=dict(layer_decay_rate=0.94),
    clip_grad=dict(_delete_=True, max_norm=0.1, norm_type=2),
)
