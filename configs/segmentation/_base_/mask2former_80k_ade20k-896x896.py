# SPDX-License-Identifier: Apache-2.0
"""Mask2Former on ADE20K: data, augmentation and schedule are UperNet's, in 80000
iterations.
"""

_base_ = ['./upernet_160k_ade20k-896x896.py', './mask2former_1024.py']

model = _base_.mask2former

load, views = _base_.tta_pipeline
sizes, *rest = views.transforms
sizes = [
    dict(sizes[0], scale=(4 * short, short)) for short in (768, 832, 896, 960, 1024)
]
tta_pipeline = [load, dict(views, transforms=[sizes, *rest])]

optim_wrapper = dict(optimizer=dict(lr=1e-5))
warm_up, falling = _base_.param_scheduler
param_scheduler = [warm_up, dict(falling, end=80000)]
train_cfg = dict(max_iters=80000, val_interval=2000)
