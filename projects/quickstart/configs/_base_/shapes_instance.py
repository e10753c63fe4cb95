# SPDX-License-Identifier: Apache-2.0
"""The generated shapes, with masks."""

_base_ = './shapes_detection.py'

load, labels, *others = _base_.train_pipeline
train_pipeline = [load, dict(labels, with_mask=True), *others]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = test_evaluator = dict(metric=['bbox', 'segm'])
