# SPDX-License-Identifier: Apache-2.0
"""DINO on BDD100K: 12 epochs, else as on COCO.

No config was published. That the detector is DINO, and its recipe, are our choice.
"""

_base_ = '../../../../configs/detection/_base_/dino-4scale_coco.py'

# The 10 classes of its detection challenge, in the order of its own COCO files.
classes = (
    *('pedestrian', 'rider', 'car', 'truck', 'bus'),
    *('train', 'motorcycle', 'bicycle', 'traffic light', 'traffic sign'),
)
model = dict(bbox_head=dict(num_classes=len(classes)))

data_root = 'data/bdd100k/'
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
labels = 'labels/det_20/det_{}_coco.json'
train_dataloader = dict(
    dataset=dict(
        dataset,
        ann_file=labels.format('train'),
        data_prefix=dict(img='images/100k/train/'),
    )
)
val_dataloader = dict(
    dataset=dict(
        dataset,
        ann_file=labels.format('val'),
        data_prefix=dict(img='images/100k/val/'),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + labels.format('val'))
test_evaluator = val_evaluator
