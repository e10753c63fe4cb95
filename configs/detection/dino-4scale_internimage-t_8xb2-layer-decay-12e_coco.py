# SPDX-License-Identifier: Apache-2.0
"""Expected: 53.9 box AP on COCO val2017 (published with the weights).
mim train internimage dino-4scale_internimage-t_8xb2-layer-decay-12e_coco.py -G 8 -l pytorch
"""  # noqa: E501

_base_ = ['../_base_/internimage_t.py', './_base_/dino-4scale_coco.py']
custom_imports = dict(imports=['internimage.detection'])
model = dict(
    backbone=dict(
        _base_.backbone,
        layer_scale=1.0,
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        with_cp=True,
    ),
    neck=dict(in_channels=_base_.channels[1:]),
    test_cfg=dict(max_per_img=100),
)
