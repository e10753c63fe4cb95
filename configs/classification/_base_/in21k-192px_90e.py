# SPDX-License-Identifier: Apache-2.0
"""ImageNet-22K (21841 classes) at 192 px, 90 epochs on 32 GPUs with 128 images each.

No config of this step was published: the settings are those of the paper's Table 7 and,
where it is silent, the defaults of the published code.
"""

_base_ = './in1k-224px_300e.py'

model = dict(head=dict(num_classes=21841))
data_preprocessor = dict(num_classes=21841)

rand_augment, erasing = _base_.train_pipeline[3:5]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop', scale=192, backend='pillow', interpolation='bicubic'
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    rand_augment,
    erasing,
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(
        type='ImageNet21k', data_root='data/imagenet21k', pipeline=train_pipeline
    )
)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=4e-3,
        by_epoch=True,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=4e-2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=90)

# The published code averages weights only where a config asks for it.
custom_hooks = []
default_hooks = dict(checkpoint=dict(save_best=None))
