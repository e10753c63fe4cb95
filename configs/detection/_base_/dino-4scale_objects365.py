# SPDX-License-Identifier: Apache-2.0
"""DINO on Objects365 (v2), 26 epochs on 128 GPUs with 2 images each.

No config of this step was published. Length, rate, batch and sizes are the paper's, the
long side and the rest are those of the next step, on COCO.
"""

_base_ = './dino-4scale_large.py'

model = dict(bbox_head=dict(num_classes=365))

train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type='RandomResize', scale=[(2000, 600), (2000, 1200)], keep_ratio=True),
    _base_.train_pipeline[-1],
]
# As in mmdet::_base_/datasets/objects365v2_detection.py.
dataset_type = 'Objects365V2Dataset'
data_root = 'data/Objects365/Obj365_v2/'
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/zhiyuan_objv2_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/zhiyuan_objv2_val.json',
        data_prefix=dict(img='val/'),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=data_root + 'annotations/zhiyuan_objv2_val.json',
    classwise=False,  # 365 lines
)
test_evaluator = val_evaluator

max_epochs = 26
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    _base_.warm_up,
    dict(_base_.param_scheduler[1], end=max_epochs, milestones=[22]),
]
auto_scale_lr = dict(base_batch_size=256)
