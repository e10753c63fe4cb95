# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on Mapillary Vistas, in the classes of Cityscapes: crops of 896 px."""

_base_ = [
    '../../../cityscapes/configs/_base_/mask2former_80k_mapillary-to-cityscapes-1024x1024.py',
    './mapillary_streets.py',
]

crop_size = (896, 896)
model = dict(data_preprocessor=dict(size=crop_size), test_cfg=dict(crop_size=crop_size))
load, labels, resize, crop, *rest = _base_.train_pipeline
train_pipeline = [load, labels, resize, dict(crop, crop_size=crop_size), *rest]
datasets = [dict(part, pipeline=train_pipeline) for part in _base_.mapillary_streets]
train_dataloader = dict(dataset=dict(datasets=datasets))
optim_wrapper = dict(optimizer=dict(lr=2e-5))
