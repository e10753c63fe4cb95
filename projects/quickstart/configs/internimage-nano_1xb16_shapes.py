"""Small InternImage classifier of the generated shapes, from scratch, on a CPU.

Train: mim train internimage projects/quickstart/configs/<this file>
"""

_base_ = ['mmpretrain::_base_/default_runtime.py']
custom_imports = dict(
    imports=['internimage', 'internimage.classification'], allow_failed_imports=False
)

# The two lines to change for other data; the model's num_classes follows the second.
data_root = 'data/shape_crops/'
metainfo = dict(classes=('ellipse', 'rectangle', 'ring', 'star', 'triangle'))

# model
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='InternImage',
        arch=dict(
            channels=32,
            depths=[1, 1, 2, 1],
            groups=[2, 4, 8, 16],
        ),
        drop_path_rate=0.0,
        out_indices=(3,),
    ),
    neck=dict(type='ConvPoolNeck', in_channels=256, out_channels=384),
    head=dict(
        type='LinearClsHead',
        num_classes=len(metainfo['classes']),
        in_channels=384,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
data_preprocessor = dict(
    num_classes=len(metainfo['classes']),
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

# data: any folder with train/<class>/ and val/<class>/
scale = (72, 64)  # (w, h), as mmcv's Resize has it
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale),
    dict(type='RandomFlip', prob=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale),
    dict(type='PackInputs'),
]
dataset = dict(type='CustomDataset', data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset, data_prefix=dict(img_path='train/'), pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, data_prefix=dict(img_path='val/'), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='SingleLabelMetric', items=['precision', 'recall']),
]
test_evaluator = val_evaluator

# schedule
max_iters = 1000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=40, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=16)

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
