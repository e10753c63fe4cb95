# SPDX-License-Identifier: Apache-2.0
"""Expected: 86.20 mIoU on Cityscapes val, 86.42 with test-time augmentation (published).
mim train internimage <path of this file> -G 8 -l pytorch
"""  # noqa: E501

_base_ = [
    '../../../configs/_base_/internimage_xl.py',
    './_base_/upernet_160k_mapillary-to-cityscapes-512x1024.py',
]
# The programs that mim runs are elsewhere: this is how they find the data set's class.
__import__('sys').path.append('{{ fileDirname }}/..')
custom_imports = dict(imports=['internimage', 'refined_labels'])
model = dict(
    backbone=dict(_base_.backbone, init_cfg=None, layer_scale=1.0, drop_path_rate=0.4),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
# The published file names the weights with SegFormer's head here.
load_from = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/upernet_internimage_xl_512x1024_80k_mapillary.pth'
