# SPDX-License-Identifier: Apache-2.0
"""DINO with composite InternImage-H on the boxes of LVIS v1, after Objects365.

Images with rare categories come more often: once per 0.001 of the images.
"""

_base_ = (
    '../../../../configs/detection/'
    'dino-4scale_cb-internimage-h_16xb1-20k_o365-to-coco.py'
)

model = dict(bbox_head=dict(num_classes=1203))

load, boxes, flip, resize, pack = _base_.train_pipeline
resize = dict(resize, scale=[(2000, 600), (2000, 1200)])
train_pipeline = [load, boxes, flip, resize, pack]

# As in mmdet's configs/_base_/datasets/lvis_v1_instance.py.
data_root = 'data/lvis_v1/'
dataset = dict(type='LVISV1BoxDataset', data_root=data_root, data_prefix=dict(img=''))
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='ClassBalancedDataset',
        oversample_thr=1e-3,
        dataset=dict(
            dataset,
            ann_file='annotations/lvis_v1_train.json',
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    ),
)
dataset['_delete_'] = True
dataset['pipeline'] = _base_.test_pipeline

train_cfg = dict(max_iters=80000, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=10, save_best=None))
