# SPDX-License-Identifier: Apache-2.0
"""COCO boxes and masks, one size, 12 epochs on 8 GPUs with 2 images each."""

_base_ = [
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0),
)

val_evaluator = dict(classwise=True)
test_evaluator = dict(classwise=True)

# 'auto' would take the first metric, which with classwise is the AP of one class.
default_hooks = dict(
    checkpoint=dict(
        type='WholeCheckpointHook', max_keep_ckpts=3, save_best='coco/bbox_mAP'
    ),
    random_streams=dict(type='RandomStreamHook'),
    finite_loss=dict(type='FiniteLossHook'),
)
custom_hooks = [dict(type='NumClassCheckHook')]
