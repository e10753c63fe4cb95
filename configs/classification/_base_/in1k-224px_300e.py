# SPDX-License-Identifier: Apache-2.0
"""ImageNet-1K from scratch at 224 px, 300 epochs on 32 GPUs with 128 images each."""

_base_ = [
    './conv-pool_classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

# The whole short edge, where mmpretrain's recipe cuts 224 out of 256.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge',
        scale=224,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, num_workers=8, drop_last=True)
val_dataloader = dict(
    batch_size=128, num_workers=8, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=4e-3),
    clip_grad=dict(max_norm=5.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0),
)
# Both from the first iteration on: the cosine covers all 300 epochs, and the warm-up
# multiplies its beginning.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=4096)

# momentum = 1 - decay
custom_hooks = [
    dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')
]
default_hooks = dict(
    checkpoint=dict(
        type='WholeCheckpointHook', max_keep_ckpts=1, save_best='accuracy/top1'
    ),
    random_streams=dict(type='RandomStreamHook'),
    finite_loss=dict(type='FiniteLossHook'),
)
env_cfg = dict(cudnn_benchmark=True)
randomness = dict(seed=0, diff_rank_seed=True)
