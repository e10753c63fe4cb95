# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on COCO-Stuff-10K, after 164K: crops of 512 px, 40000 iterations."""

_base_ = (
    '../../../../configs/segmentation/_base_/mask2former_80k_coco-stuff164k-896x896.py'
)

crop_size = (512, 512)
model = dict(data_preprocessor=dict(size=crop_size))

load, labels, resize, crop, *rest = _base_.train_pipeline
train_pipeline = [
    load,
    labels,
    dict(resize, scale=(2048, 512)),
    dict(crop, crop_size=crop_size),
    *rest,
]
load, resize, *rest = _base_.test_pipeline
test_pipeline = [load, dict(resize, scale=(2048, 512)), *rest]

# As in mmseg's configs/_base_/datasets/coco-stuff10k.py. Label 0 is no class here.
dataset = dict(data_root='data/coco_stuff10k', reduce_zero_label=True)
train_dataloader = dict(
    dataset=dict(
        dataset,
        data_prefix=dict(
            img_path='images/train2014', seg_map_path='annotations/train2014'
        ),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        dataset,
        data_prefix=dict(
            img_path='images/test2014', seg_map_path='annotations/test2014'
        ),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader

views = _base_.tta_pipeline[1]
sizes = [
    dict(resize, scale=(4 * short, short)) for short in (256, 384, 512, 640, 768, 896)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *views.transforms[1:]])]

optim_wrapper = dict(optimizer=dict(lr=1e-5))
warm_up, falling = _base_.param_scheduler
param_scheduler = [warm_up, dict(falling, end=40000)]
train_cfg = dict(max_iters=40000, val_interval=2000)
