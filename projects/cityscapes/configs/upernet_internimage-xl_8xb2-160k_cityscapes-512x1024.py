# SPDX-License-Identifier: Apache-2.0
"""Expected: 83.62 mIoU on Cityscapes val, 84.28 with test-time augmentation (published).
mim train internimage <path of this file> -G 8 -l pytorch
"""  # noqa: E501

_base_ = [
    '../../../configs/_base_/internimage_xl.py',
    './_base_/upernet_160k_cityscapes-512x1024_layer-decay.py',
]
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.4),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
