# SPDX-License-Identifier: Apache-2.0
"""DINO with composite InternImage-H on Open Images V6, after Objects365."""

_base_ = (
    '../../../../configs/detection/'
    'dino-4scale_cb-internimage-h_16xb1-20k_o365-to-coco.py'
)

model = dict(bbox_head=dict(num_classes=601))

load, boxes, flip, resize, pack = _base_.train_pipeline
resize = dict(resize, scale=[(2000, 600), (2000, 1200)])
train_pipeline = [load, boxes, flip, resize, pack]
*rest, pack = _base_.test_pipeline
# The metric asks the samples for the labels of whole images.
keys = (*pack.meta_keys, 'instances', 'image_level_labels')
test_pipeline = [*rest, dict(pack, meta_keys=keys)]

# As in mmdet's configs/_base_/datasets/openimages_detection.py.
annotations = 'annotations/'
dataset = dict(
    _delete_=True,
    type='OpenImagesDataset',
    data_root='data/OpenImages/',
    label_file=annotations + 'class-descriptions-boxable.csv',
    hierarchy_file=annotations + 'bbox_labels_600_hierarchy.json',
)
train_dataloader = dict(
    # An image of one class after the other, so that rare ones are seen as often.
    sampler=dict(_delete_=True, type='ClassAwareSampler', num_sample_class=1),
    dataset=dict(
        dataset,
        ann_file=annotations + 'oidv6-train-annotations-bbox.csv',
        meta_file=annotations + 'train-image-metas.pkl',
        data_prefix=dict(img='OpenImages/train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        dataset,
        ann_file=annotations + 'validation-annotations-bbox.csv',
        meta_file=annotations + 'validation-image-metas.pkl',
        image_level_ann_file=annotations
        + 'validation-annotations-human-imagelabels-boxable.csv',
        data_prefix=dict(img='OpenImages/validation/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='OpenImagesMetric',
    iou_thrs=0.5,
    ioa_thrs=0.5,
    use_group_of=True,
    get_supercategory=True,
)
test_evaluator = val_evaluator

train_cfg = dict(max_iters=100000, val_interval=2000)
default_hooks = dict(checkpoint=dict(interval=2000, save_best='openimages/mAP'))
