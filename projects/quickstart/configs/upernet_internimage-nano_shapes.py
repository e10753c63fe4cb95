# SPDX-License-Identifier: Apache-2.0
"""Small UperNet on the generated shapes, from scratch, on a CPU.

Train: mim train internimage projects/quickstart/configs/<this file>
"""

_base_ = [
    './_base_/internimage_nano.py',
    '../../../configs/segmentation/_base_/mmseg_upernet_160k_ade20k.py',
]

# The two lines to change for other data; num_classes of the model follows the second.
data_root = 'data/shape_masks/'
metainfo = dict(
    classes=('background', 'ellipse', 'triangle', 'rectangle', 'star', 'ring'),
    palette=[
        (70, 70, 70),
        (0, 170, 255),
        (255, 90, 60),
        (60, 200, 90),
        (255, 200, 0),
        (190, 90, 255),
    ],
)

# model: everything narrow
num_classes = len(metainfo['classes'])
head = dict(
    channels=48,
    num_classes=num_classes,
    norm_cfg=dict(type='BN'),
    dropout_ratio=0.0,
    # Most pixels are background, and few are of a triangle or a star.
    loss_decode=dict(class_weight=[0.3, 1.0, 2.0, 1.3, 2.0, 1.5]),
)
model = dict(
    pretrained=None,
    # Training images are padded to the largest of a batch, and to a multiple of 32.
    data_preprocessor=dict(size_divisor=32),
    backbone=dict(_base_.backbone, _delete_=True, out_indices=(0, 1, 2, 3)),
    decode_head=dict(**head, in_channels=_base_.channels),
    auxiliary_head=dict(**head, in_channels=_base_.channels[2]),
)

# data: any folder with images/{train,val}/*.jpg and masks/{train,val}/*.png
scale = (160, 160)  # longest and shortest side
load = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=scale, keep_ratio=True)
labels = dict(type='LoadAnnotations')
train_pipeline = [
    load,
    labels,
    resize,
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='RandomFlip', prob=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='PackSegInputs'),
]
# The labels come after the sizes: they keep the size of the original image.
test_pipeline = [
    load,
    resize,
    dict(type='ResizeToMultiple', size_divisor=32),
    labels,
    dict(type='PackSegInputs'),
]
dataset = dict(
    _delete_=True, type='BaseSegDataset', data_root=data_root, metainfo=metainfo
)
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# schedule
max_iters = 800
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=3e-3, weight_decay=0.05),
    clip_grad=dict(_delete_=True, max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=40, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False),
]

# runtime
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(type='WholeCheckpointHook', interval=-1, save_optimizer=False),
    random_streams=dict(type='RandomStreamHook'),
    finite_loss=dict(type='FiniteLossHook'),
)
randomness = dict(seed=0)
