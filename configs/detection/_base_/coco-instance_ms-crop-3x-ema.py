# SPDX-License-Identifier: Apache-2.0
"""The same 36 epochs for L and XL, on 32 GPUs, with averaged weights.

4 nodes and 64 images at a time are named in the published configs.
"""

_base_ = './coco-instance_ms-crop-3x.py'

optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    # Published, and without effect: nothing in these models has the names that
    # `offset_lr_scale` looks for. DCNv3's offsets learn at the full rate.
    paramwise_cfg=dict(layer_decay_rate=0.9, offset_lr_scale=0.01),
)
auto_scale_lr = dict(base_batch_size=64)

custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=1e-4,
        update_buffers=True,
        priority=49,
    )
]
