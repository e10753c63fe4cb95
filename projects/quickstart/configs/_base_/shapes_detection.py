# SPDX-License-Identifier: Apache-2.0
"""The generated shapes, their boxes: data, schedule, runtime."""

_base_ = 'mmdet::_base_/default_runtime.py'

# The two lines to change for other data; num_classes of the model follows the second.
data_root = 'data/shapes/'
metainfo = dict(
    classes=('ellipse', 'triangle', 'rectangle', 'star', 'ring'),
    palette=[
        (0, 170, 255),
        (255, 90, 60),
        (60, 200, 90),
        (255, 200, 0),
        (190, 90, 255),
    ],
)
num_classes = len(metainfo['classes'])

# data: any folder with annotations/instances_{train,val}.json, train/ and val/
scale = (224, 224)  # longest and shortest side
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
dataset = dict(type='CocoDataset', data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric='bbox',
)
test_evaluator = val_evaluator

# schedule
max_iters = 1300
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=40, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False),
]

# runtime
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(
        type='WholeCheckpointHook', by_epoch=False, interval=-1, save_optimizer=False
    ),
    random_streams=dict(type='RandomStreamHook'),
    finite_loss=dict(type='FiniteLossHook'),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
