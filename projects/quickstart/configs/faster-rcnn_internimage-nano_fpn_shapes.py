# SPDX-License-Identifier: Apache-2.0
"""Small Faster R-CNN on the generated shapes, for data without masks, on a CPU.

Train: mim train internimage projects/quickstart/configs/<this file>
"""

_base_ = './mask-rcnn_internimage-nano_fpn_shapes.py'

model = dict(roi_head=dict(mask_roi_extractor=None, mask_head=None))

labels = dict(type='LoadAnnotations', with_bbox=True)
train_pipeline = [_base_.train_pipeline[0], labels, *_base_.train_pipeline[2:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = test_evaluator = dict(metric='bbox')
