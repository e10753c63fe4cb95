# SPDX-License-Identifier: Apache-2.0
"""What DINO's training on Objects365 and, after it, on COCO have in common."""

_base_ = './dino-4scale_coco.py'

model = dict(dn_cfg=dict(group_cfg=dict(num_dn_queries=1000)))

test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(2000, 1000), keep_ratio=True),
    *_base_.test_pipeline[2:],
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

views = _base_.tta_pipeline[1]
larger = [
    dict(type='Resize', scale=scale, keep_ratio=True)
    for scale in [(2000, 800), (2000, 1000), (2000, 1200)]
]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(views, transforms=[larger, *views.transforms[1:]]),
]

# The latter slows the layers `sampling_offsets` and `reference_points` of DINO down.
# DCNv3's offsets have another name and learn at the rate of their depth, as published.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.94, offset_lr_scale=1e-3))
