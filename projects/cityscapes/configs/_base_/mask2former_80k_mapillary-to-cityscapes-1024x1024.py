# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on Cityscapes, after Mapillary Vistas: crops of 1024 px.

Tested in windows of a crop's size, 512 px apart.
"""

_base_ = [
    './upernet_160k_mapillary-to-cityscapes-512x1024.py',
    '../../../../configs/segmentation/_base_/mask2former.py',
]

num_classes = 19
crop_size = (1024, 1024)
model = dict(
    _base_.mask2former,
    data_preprocessor=dict(size=crop_size),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(512, 512)),
)
model['decode_head'].num_classes = num_classes
model['decode_head'].loss_cls.class_weight = [1.0] * num_classes + [0.1]

load, labels, resize, crop, *rest = _base_.train_pipeline
train_pipeline = [load, labels, resize, dict(crop, crop_size=crop_size), *rest]
datasets = [
    dict(part, pipeline=train_pipeline)
    for part in _base_.train_dataloader.dataset.datasets
]
train_dataloader = dict(dataset=dict(datasets=datasets))

to_multiple = dict(type='ResizeToMultiple', size_divisor=32)
load, resize, *rest = _base_.test_pipeline
test_pipeline = [load, resize, to_multiple, *rest]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

views = _base_.tta_pipeline[1]
sizes, *rest = views.transforms
tta_pipeline = [load, dict(views, transforms=[sizes, [to_multiple], *rest])]

optim_wrapper = dict(optimizer=dict(lr=1e-5), paramwise_cfg=dict(layer_decay_rate=0.95))
warm_up, falling = _base_.param_scheduler
param_scheduler = [warm_up, dict(falling, end=80000)]
train_cfg = dict(max_iters=80000, val_interval=2000)
