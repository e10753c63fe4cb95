# SPDX-License-Identifier: Apache-2.0
"""The classifier of InternImage-T to XL, with the losses of training from scratch.

A leaf puts in the backbone and the widths.
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='InternImage'),
    neck=dict(type='ConvPoolNeck'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    ),
)
