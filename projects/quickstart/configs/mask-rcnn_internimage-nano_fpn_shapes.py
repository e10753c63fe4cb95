"""Small Mask R-CNN on the generated shapes, from scratch, on a CPU.

Train: mim train internimage projects/quickstart/configs/<this file>
"""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['internimage'], allow_failed_imports=False)

# The two lines to change for other data; the model's num_classes follows the second.
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

# model: everything narrow, and normalised, as it starts from random weights
width = 48
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    backbone=dict(
        _delete_=True,
        type='InternImage',
        arch=dict(
            channels=32,
            depths=[1, 1, 2, 1],
            groups=[2, 4, 8, 16],
        ),
        drop_path_rate=0.0,
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=width, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=width, feat_channels=width, anchor_generator=dict(scales=[6])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=width,
            conv_out_channels=width,
            fc_out_channels=256,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
        ),
        mask_roi_extractor=dict(out_channels=width, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(
            num_convs=2,
            in_channels=width,
            conv_out_channels=width,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=48, pos_fraction=0.33)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

# data: any folder with annotations/instances_{train,val}.json, train/ and val/
scale = (224, 224)  # longest and shortest side
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
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
    metric=['bbox', 'segm'],
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
    checkpoint=dict(by_epoch=False, interval=-1, save_optimizer=False),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
