# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on the 59 classes of Pascal Context: 480 px, 40000 iterations."""

_base_ = [
    '../../../../configs/segmentation/_base_/upernet_160k_ade20k-896x896.py',
    '../../../../configs/segmentation/_base_/mask2former.py',
]

num_classes = 59
crop_size = (480, 480)
model = dict(_base_.mask2former, data_preprocessor=dict(size=crop_size))
model['decode_head'].num_classes = num_classes
model['decode_head'].loss_cls.class_weight = [1.0] * num_classes + [0.1]

load, labels, resize, crop, *rest = _base_.train_pipeline
train_pipeline = [
    load,
    labels,
    dict(resize, scale=(520, 520)),
    dict(crop, crop_size=crop_size),
    *rest,
]
load, resize, *rest = _base_.test_pipeline
test_pipeline = [load, dict(resize, scale=(4096, 520)), *rest]

# As in mmseg's configs/_base_/datasets/pascal_context_59.py.
dataset = dict(
    type='PascalContextDataset59',
    data_root='data/VOCdevkit/VOC2010/',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
)
splits = 'ImageSets/SegmentationContext'
train_dataloader = dict(
    dataset=dict(dataset, ann_file=f'{splits}/train.txt', pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(dataset, ann_file=f'{splits}/val.txt', pipeline=test_pipeline)
)
test_dataloader = val_dataloader

views = _base_.tta_pipeline[1]
sizes = [
    dict(resize, scale=(int(4096 * ratio), int(520 * ratio)))
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *views.transforms[1:]])]

optim_wrapper = dict(clip_grad=None)
warm_up, falling = _base_.param_scheduler
param_scheduler = [warm_up, dict(falling, end=40000)]
train_cfg = dict(max_iters=40000, val_interval=2000)
