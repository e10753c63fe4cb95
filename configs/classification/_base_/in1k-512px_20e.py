# SPDX-License-Identifier: Apache-2.0
"""ImageNet-1K fine-tuning at 512 px on 64 GPUs with 8 images; else as at 384 px."""

_base_ = './in1k-384px_20e.py'

image_size = 512
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=image_size)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=image_size)
test_pipeline[2].update(crop_size=image_size)
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
