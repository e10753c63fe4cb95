# SPDX-License-Identifier: Apache-2.0
"""DINO with composite InternImage-H on PASCAL VOC, after Objects365.

Trained on the training and validation images of 2007 and 2012, three times an epoch, at
one size.
"""

_base_ = (
    '../../../../configs/detection/'
    'dino-4scale_cb-internimage-h_16xb1-20k_o365-to-coco.py'
)

model = dict(bbox_head=dict(num_classes=20))

load, boxes, flip, _, pack = _base_.train_pipeline
resize = dict(type='Resize', scale=(1000, 600), keep_ratio=True)
train_pipeline = [load, boxes, resize, flip, pack]
data_root = 'data/VOCdevkit/'
dataset = dict(_delete_=True, type='VOCDataset', data_root=data_root)
parts = [
    dict(
        type='VOCDataset',
        data_root=data_root,
        ann_file=f'{year}/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root=f'{year}/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    )
    for year in ('VOC2007', 'VOC2012')
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=3,
        dataset=dict(
            type='ConcatDataset', datasets=parts, ignore_keys=['dataset_type']
        ),
    )
)

optim_wrapper = dict(optimizer=dict(lr=5e-5))
train_cfg = dict(val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500, save_best='pascal_voc/mAP'))
