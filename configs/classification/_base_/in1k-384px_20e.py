# SPDX-License-Identifier: Apache-2.0
"""ImageNet-1K fine-tuning at 384 px, 20 epochs on 32 GPUs with 16 images each."""

_base_ = './in1k-224px_300e.py'

# Mixup, CutMix and erasing are off. RandAugment stays.
model = dict(
    head=dict(type='ImageNet1kHead', loss=dict(label_smooth_val=0.3)), train_cfg=None
)

rand_augment = _base_.train_pipeline[3]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop', scale=384, backend='pillow', interpolation='bicubic'
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    rand_augment,
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge',
        scale=384,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=16, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-5))
# The published warm-up starts at 0, from which LinearLR cannot multiply.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        by_epoch=True,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.0,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=512)
