# SPDX-License-Identifier: Apache-2.0
"""Expected: 50.1 mIoU on ADE20K val, 50.9 with test-time augmentation (published).
mim train internimage upernet_internimage-s_8xb2-160k_ade20k-512x512.py -G 8 -l pytorch
"""

_base_ = ['../_base_/internimage_s.py', './_base_/upernet_160k_ade20k-512x512.py']
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.3),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
