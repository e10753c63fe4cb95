# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on COCO-Stuff-164K: twice the rate on ADE20K, gradients not clipped."""

_base_ = './mask2former_80k_ade20k-896x896.py'

num_classes = 171
model = dict(
    decode_head=dict(
        num_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
    )
)

# As in mmseg's configs/_base_/datasets/coco-stuff164k.py.
dataset_type = 'COCOStuffDataset'
data_root = 'data/coco_stuff164k'
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(
            img_path='images/train2017', seg_map_path='annotations/train2017'
        ),
    )
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'),
    )
)
test_dataloader = val_dataloader

load, views = _base_.tta_pipeline
sizes, *rest = views.transforms
sizes = [
    dict(sizes[0], scale=(4 * short, short))
    for short in (448, 672, 896, 1120, 1344, 1568)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *rest])]

optim_wrapper = dict(optimizer=dict(lr=2e-5), clip_grad=None)
train_cfg = dict(val_interval=8000)
