# SPDX-License-Identifier: Apache-2.0
"""UperNet on Mapillary Vistas, in the classes of Cityscapes: 80000 iterations.

The images are made smaller, never larger. Tested on Cityscapes val.
"""

_base_ = [
    '../../../cityscapes/configs/_base_/upernet_160k_cityscapes-512x1024_layer-decay.py',
    './mapillary_streets.py',
]

load, labels, resize, *rest = _base_.train_pipeline
train_pipeline = [load, labels, dict(resize, ratio_range=(0.5, 1.0)), *rest]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(part, pipeline=train_pipeline) for part in _base_.mapillary_streets
        ],
    )
)

warm_up, falling = _base_.param_scheduler
param_scheduler = [warm_up, dict(falling, end=80000)]
train_cfg = dict(max_iters=80000, val_interval=8000)
