# SPDX-License-Identifier: Apache-2.0
"""UperNet on Cityscapes, crops of 1024 x 512 px, 160000 iterations on 8 GPUs x 2.

Images are tested whole, as they are: their sides are multiples of 32. The heads keep
the 150 classes of the ADE20K recipe, as the published weights have them; those beyond
Cityscapes' 19 are never a label, and are not counted.
"""

_base_ = '../../../../configs/segmentation/_base_/upernet_160k_ade20k-512x512.py'

model = dict(data_preprocessor=dict(size=(512, 1024)))

load, labels, resize, crop, *rest = _base_.train_pipeline
train_pipeline = [
    load,
    labels,
    dict(resize, scale=(2048, 1024)),
    dict(crop, crop_size=(512, 1024)),
    *rest,
]
load, resize, _, *rest = _base_.test_pipeline
test_pipeline = [load, dict(resize, scale=(2048, 1024)), *rest]

dataset = dict(type='CityscapesDataset', data_root='data/cityscapes/')
train_dataloader = dict(
    num_workers=2,
    dataset=dict(
        dataset,
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        dataset,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader

views = _base_.tta_pipeline[1]
sizes = [
    dict(resize, scale=(2 * short, short))
    for short in (512, 768, 1024, 1280, 1536, 1792)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *views.transforms[2:]])]
