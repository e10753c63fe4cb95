# SPDX-License-Identifier: Apache-2.0
"""UperNet on ADE20K, 512 px, 160000 iterations on 8 GPUs with 2 images each.

Test images get sides that are multiples of 32. A port without that has 0.3 to 0.6 less.
"""

_base_ = './mmseg_upernet_160k_ade20k.py'

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)

# Without `reduce_zero_label` it does what the data set says; ADE20K's says True.
labels = dict(type='LoadAnnotations')
load, _, *rest = _base_.train_pipeline
train_pipeline = [load, labels, *rest]

to_multiple = dict(type='ResizeToMultiple', size_divisor=32)
load, resize, _, pack = _base_.test_pipeline
# The labels come after it: they keep the size of the original image.
test_pipeline = [load, resize, to_multiple, labels, pack]

train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# `tools/test.py --tta`. The ratios are to the size above, as in the published code;
# mmseg's own are to the size of the original image.
views = _base_.tta_pipeline[1]
sizes = [
    dict(resize, scale=(4 * short, short)) for short in (256, 384, 512, 640, 768, 896)
]
tta_pipeline = [
    load,
    dict(views, transforms=[sizes, [to_multiple], *views.transforms[1:]]),
]

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0),
)
# Both from the start: the published warm-up is a factor on the falling rate.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=0, end=160000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)

# 'auto' would take the first metric, the pixel accuracy.
default_hooks = dict(
    checkpoint=dict(
        type='WholeCheckpointHook', interval=1000, max_keep_ckpts=1, save_best='mIoU'
    ),
    random_streams=dict(type='RandomStreamHook'),
    finite_loss=dict(type='FiniteLossHook'),
)
