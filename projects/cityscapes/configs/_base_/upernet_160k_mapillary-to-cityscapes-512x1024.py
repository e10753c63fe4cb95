# SPDX-License-Identifier: Apache-2.0
"""UperNet on Cityscapes, after Mapillary Vistas: fine and refined coarse labels."""

_base_ = './upernet_160k_cityscapes-512x1024_layer-decay.py'

fine = _base_.train_dataloader.dataset
refined = dict(
    fine,
    type='CityscapesRefinedLabels',
    data_prefix=dict(
        img_path='leftImg8bit/train_extra', seg_map_path='refinement_final/train_extra'
    ),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[fine, refined],
        ignore_keys=['label_map'],  # the labels in the files are others
    )
)
train_cfg = dict(val_interval=4000)
