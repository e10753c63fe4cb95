# SPDX-License-Identifier: Apache-2.0
"""Small DINO on the generated shapes, from scratch, on a CPU.

Train: mim train internimage projects/quickstart/configs/<this file>
"""

_base_ = ['./_base_/internimage_nano.py', './_base_/shapes_detection.py']
custom_imports = dict(imports=['internimage.detection'])

# model: that of configs/detection, narrow, with few layers and queries
width = 96
attention = dict(embed_dims=width, num_heads=8, dropout=0.0)
deformable_attention = dict(embed_dims=width, num_levels=4, dropout=0.0)
ffn = dict(embed_dims=width, feedforward_channels=4 * width, ffn_drop=0.0)
model = dict(
    type='InternImageDINO',
    num_queries=60,
    with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3)),
    neck=dict(
        type='ChannelMapper',
        in_channels=_base_.channels[1:],
        kernel_size=1,
        out_channels=width,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=4,
    ),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=deformable_attention, ffn_cfg=ffn),
    ),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=attention, cross_attn_cfg=deformable_attention, ffn_cfg=ffn
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(
        num_feats=width // 2, normalize=True, offset=0.0, temperature=20
    ),
    bbox_head=dict(
        type='DINOHead',
        embed_dims=width,
        num_classes=_base_.num_classes,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=30),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=60),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=1.0))
