# SPDX-License-Identifier: Apache-2.0
"""COCO boxes and masks at many sizes, half the time of a part of the image, 36 epochs.

DETR's augmentation; the rest as in 12 epochs.
"""

_base_ = './coco-instance_1x.py'

resize = dict(
    type='RandomChoiceResize',
    scales=[(short, 1333) for short in range(480, 801, 32)],
    keep_ratio=True,
)
first_resize = dict(
    type='RandomChoiceResize',
    scales=[(400, 1333), (500, 1333), (600, 1333)],
    keep_ratio=True,
)
crop = dict(
    type='RandomCrop',
    crop_type='absolute_range',
    crop_size=(384, 600),
    allow_negative_crop=True,
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[resize], [first_resize, crop, resize]]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

train_cfg = dict(max_epochs=36)
warm_up, steps = _base_.param_scheduler
param_scheduler = [warm_up, dict(steps, end=36, milestones=[27, 33])]
