# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on the 40 classes of NYU Depth V2, learned as on Pascal Context."""

_base_ = (
    '../../../pascal_context/configs/_base_/'
    'mask2former_40k_pascal-context-59-480x480.py'
)

num_classes = 40
model = dict(
    decode_head=dict(
        num_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
    )
)

load, labels, resize, *rest = _base_.train_pipeline
train_pipeline = [load, labels, dict(resize, scale=(2048, 512)), *rest]
load, resize, *rest = _base_.test_pipeline
test_pipeline = [load, dict(resize, scale=(640, 480)), *rest]

dataset = dict(
    type='NYUDepthV2Dataset',
    data_root='data/nyu_depth_v2/',
    data_prefix=dict(img_path='image', seg_map_path='label40'),
)
train_dataloader = dict(
    dataset=dict(dataset, ann_file='train.txt', pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(dataset, ann_file='test.txt', pipeline=test_pipeline)
)
test_dataloader = val_dataloader

views = _base_.tta_pipeline[1]
sizes = [
    dict(resize, scale=(int(640 * ratio), int(480 * ratio)))
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *views.transforms[1:]])]
