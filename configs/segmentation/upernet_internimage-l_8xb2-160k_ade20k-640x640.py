# SPDX-License-Identifier: Apache-2.0
"""Expected: 53.9 mIoU on ADE20K val, 54.1 with test-time augmentation (published).
mim train internimage upernet_internimage-l_8xb2-160k_ade20k-640x640.py -G 8 -l pytorch
"""

_base_ = ['../_base_/internimage_l.py', './_base_/upernet_160k_ade20k-640x640.py']
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.4),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)

# The published config names three ratios for L (0.75, 1, 1.25), six for the others.
load, views = _base_.tta_pipeline
sizes, *rest = views.transforms
tta_pipeline = [load, dict(views, transforms=[sizes[1:4], *rest])]
