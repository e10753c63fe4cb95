# SPDX-License-Identifier: Apache-2.0
"""DINO on COCO after Objects365: 20000 iterations, 16 GPUs with 1 image each.

The number of GPUs is not published. A leaf says in `load_from` where to start: most
published configs name nothing, and would have trained from random weights.
"""

_base_ = './dino-4scale_large.py'

train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type='RandomResize', scale=[(2000, 600), (2000, 1800)], keep_ratio=True),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(
    batch_size=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(pipeline=train_pipeline),
)

max_epochs = None
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=20000, val_interval=200
)
param_scheduler = [_base_.warm_up]
default_hooks = dict(checkpoint=dict(interval=200, by_epoch=False))
log_processor = dict(by_epoch=False)
