# SPDX-License-Identifier: Apache-2.0
"""mmdet's Cascade Mask R-CNN with other box heads: convolutions, GIoU, per class."""

_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

changes = dict(
    type='ConvFCBBoxHead',
    num_shared_convs=4,
    num_shared_fcs=1,
    conv_out_channels=256,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    reg_class_agnostic=False,
    reg_decoded_bbox=True,
    loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
)
# The three heads differ in the `target_stds` of their `bbox_coder`.
box_heads = [dict(head, **changes) for head in _base_.model.roi_head.bbox_head]
model = dict(roi_head=dict(bbox_head=box_heads))
