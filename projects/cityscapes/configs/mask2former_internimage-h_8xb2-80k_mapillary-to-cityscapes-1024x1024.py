# SPDX-License-Identifier: Apache-2.0
"""Expected: 86.37 mIoU on Cityscapes val, 86.96 with test-time augmentation (published).
mim train internimage <path of this file> -G 8 -l pytorch
"""  # noqa: E501

_base_ = [
    '../../../configs/_base_/internimage_h.py',
    './_base_/mask2former_80k_mapillary-to-cityscapes-1024x1024.py',
]
# The programs that mim runs are elsewhere: this is how they find the data set's class.
__import__('sys').path.append('{{ fileDirname }}/..')
custom_imports = dict(imports=['internimage.segmentation', 'refined_labels'])
model = dict(
    backbone=dict(_base_.backbone, init_cfg=None, drop_path_rate=0.5),
    decode_head=dict(in_channels=_base_.channels),
)
load_from = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask2former_internimage_h_896x896_80k_mapillary.pth'
