# SPDX-License-Identifier: Apache-2.0
"""Mask2Former, as wide as InternImage-H needs it, on ADE20K: 80000 iterations.

Four times as wide as in mmseg, with twice the queries. Data, augmentation and schedule
are UperNet's, in half the iterations.
"""

_base_ = './upernet_160k_ade20k-896x896.py'

num_classes = 150
width = 1024
attention = dict(embed_dims=width, num_heads=32)
ffn = dict(embed_dims=width, feedforward_channels=4 * width)
positions = dict(num_feats=width // 2, normalize=True)
match_costs = [
    dict(type='mmdet.ClassificationCost', weight=2.0),
    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
]
model = dict(
    auxiliary_head=None,
    decode_head=dict(
        _delete_=True,
        type='InternImageMask2FormerHead',
        feat_channels=width,
        out_channels=width,
        num_classes=num_classes,
        num_queries=200,
        positional_encoding=positions,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            positional_encoding=positions,
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(attention, num_levels=3, dropout=0.0),
                    ffn_cfg=ffn,
                ),
            ),
        ),
        transformer_decoder=dict(
            num_layers=9,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn
            ),
        ),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss',
            loss_weight=2.0,
            class_weight=[1.0] * num_classes + [0.1],  # the last: no object
        ),
        loss_mask=dict(
            type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0
        ),
        loss_dice=dict(
            type='mmdet.DiceLoss', naive_dice=True, eps=1.0, loss_weight=5.0
        ),
        train_cfg=dict(
            num_points=12544,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(type='mmdet.HungarianAssigner', match_costs=match_costs),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    ),
)

load, views = _base_.tta_pipeline
sizes, *rest = views.transforms
sizes = [
    dict(sizes[0], scale=(4 * short, short)) for short in (768, 832, 896, 960, 1024)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *rest])]

optim_wrapper = dict(optimizer=dict(lr=1e-5))
warm_up, falling = _base_.param_scheduler
param_scheduler = [warm_up, dict(falling, end=80000)]
train_cfg = dict(max_iters=80000, val_interval=2000)
