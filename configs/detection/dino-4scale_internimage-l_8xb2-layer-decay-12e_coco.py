# SPDX-License-Identifier: Apache-2.0
"""Expected: 57.5 box AP on COCO val2017 (published with the weights).
mim train internimage dino-4scale_internimage-l_8xb2-layer-decay-12e_coco.py -G 8 -l pytorch
"""  # noqa: E501

_base_ = ['../_base_/internimage_l.py', './_base_/dino-4scale_coco.py']
custom_imports = dict(imports=['internimage.detection'])
model = dict(
    backbone=dict(
        _base_.backbone, layer_scale=1.0, out_indices=(1, 2, 3), drop_path_rate=0.4
    ),
    neck=dict(in_channels=_base_.channels[1:]),
)
