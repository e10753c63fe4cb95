# SPDX-License-Identifier: Apache-2.0
"""Cascade R-CNN on CrowdHuman: the sizes, crops and epochs of COCO's longer recipe."""

_base_ = [
    'mmdet::_base_/models/cascade-rcnn_r50_fpn.py',
    '../../../../configs/detection/_base_/coco-instance_ms-crop-3x.py',
]

heads = _base_.model.roi_head.bbox_head
model = dict(
    backbone=dict(_delete_=True, type='InternImage'),
    roi_head=dict(bbox_head=[dict(head, num_classes=1) for head in heads]),
)

boxes = dict(type='LoadAnnotations', with_bbox=True)
load, _, *rest = _base_.train_pipeline
train_pipeline = [load, boxes, *rest]
load, resize, _, pack = _base_.test_pipeline
test_pipeline = [load, resize, boxes, pack]

# As in mmdet's configs/crowddet.
dataset_type = 'CrowdHumanDataset'
data_root = 'data/CrowdHuman/'
images = dict(img='Images/')
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotation_train.odgt',
        data_prefix=images,
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotation_val.odgt',
        data_prefix=images,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='CrowdHumanMetric',
    ann_file=data_root + 'annotation_val.odgt',
    metric=['AP', 'MR', 'JI'],
)
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4), paramwise_cfg=dict(layer_decay_rate=0.94)
)
train_cfg = dict(val_interval=100)  # never, as published
default_hooks = dict(checkpoint=dict(save_best='crowd_human/mAP'))
auto_scale_lr = dict(base_batch_size=16)
