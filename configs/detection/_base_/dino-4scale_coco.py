# SPDX-License-Identifier: Apache-2.0
"""DINO on COCO, 12 epochs on 8 GPUs with 2 images each.

mmdet's recipe, but images are padded to multiples of 32, crops and images have an
object, the learning rate warms up and falls with the distance from the output.
"""

_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', './dino-tta.py']

model = dict(
    type='InternImageDINO',
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(type='InternImage'),
)

load, labels, flip, augment, pack = _base_.train_pipeline
resizes, (first_resize, crop, resize) = augment.transforms
crops = [first_resize, dict(crop, allow_negative_crop=False), resize]
train_pipeline = [load, labels, flip, dict(augment, transforms=[resizes, crops]), pack]
train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=True), pipeline=train_pipeline)
)

val_evaluator = dict(classwise=True)
test_evaluator = dict(classwise=True)

optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9),
)
warm_up = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
param_scheduler = [warm_up, *_base_.param_scheduler]
auto_scale_lr = dict(enable=False)

# 'auto' would take the first metric, which with classwise is the AP of one class.
default_hooks = dict(
    checkpoint=dict(
        type='WholeCheckpointHook', max_keep_ckpts=3, save_best='coco/bbox_mAP'
    ),
    random_streams=dict(type='RandomStreamHook'),
    finite_loss=dict(type='FiniteLossHook'),
)
custom_hooks = [dict(type='NumClassCheckHook')]
