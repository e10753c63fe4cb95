# SPDX-License-Identifier: Apache-2.0
"""Small Cascade Mask R-CNN on the generated shapes, from scratch, on a CPU.

Train: mim train internimage projects/quickstart/configs/<this file>
"""

_base_ = './mask-rcnn_internimage-nano_fpn_shapes.py'

box_head = _base_.model.roi_head.bbox_head
rcnn = _base_.model.train_cfg.rcnn
stds = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(box_head, bbox_coder=dict(box_head.bbox_coder, target_stds=list(std)))
            for std in stds
        ],
    ),
    train_cfg=dict(
        rcnn=[
            dict(
                rcnn,
                assigner=dict(
                    rcnn.assigner, pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou
                ),
            )
            for iou in (0.5, 0.6, 0.7)
        ]
    ),
)
