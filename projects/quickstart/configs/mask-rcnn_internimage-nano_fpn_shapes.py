# SPDX-License-Identifier: Apache-2.0
"""Small Mask R-CNN on the generated shapes, from scratch, on a CPU.

Train: mim train internimage projects/quickstart/configs/<this file>
"""

_base_ = [
    './_base_/internimage_nano.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    './_base_/shapes_instance.py',
]

# model: everything narrow, and normalised, as it starts from random weights
width = 48
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    backbone=dict(_base_.backbone, _delete_=True, out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=_base_.channels, out_channels=width, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=width, feat_channels=width, anchor_generator=dict(scales=[6])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=width,
            conv_out_channels=width,
            fc_out_channels=256,
            num_classes=_base_.num_classes,
            norm_cfg=norm_cfg,
        ),
        mask_roi_extractor=dict(out_channels=width, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(
            num_convs=2,
            in_channels=width,
            conv_out_channels=width,
            num_classes=_base_.num_classes,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=48, pos_fraction=0.33)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(score_thr=0.001),  # a young model is sure of nothing
    ),
)
