# SPDX-License-Identifier: Apache-2.0
"""Mask2Former's head, as wide as in mmseg: 256 channels, 100 queries.

A recipe takes it by ``model = _base_.mask2former``, and states the number of its
classes and their weights.
"""

num_classes = 150
width = 256
attention = dict(embed_dims=width, num_heads=8)
positions = dict(num_feats=width // 2, normalize=True)
match_costs = [
    dict(type='mmdet.ClassificationCost', weight=2.0),
    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
]
mask2former = dict(
    auxiliary_head=None,
    decode_head=dict(
        _delete_=True,
        type='InternImageMask2FormerHead',
        feat_channels=width,
        out_channels=width,
        num_classes=num_classes,
        positional_encoding=positions,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            positional_encoding=positions,
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(self_attn_cfg=dict(num_levels=3, dropout=0.0)),
            ),
        ),
        transformer_decoder=dict(
            num_layers=9,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(feedforward_channels=8 * width),
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
