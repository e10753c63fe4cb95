# SPDX-License-Identifier: Apache-2.0
"""No result is published; the weights are where those of Cityscapes start from.
mim train internimage <path of this file> -G 8 -l pytorch
"""

_base_ = [
    '../../../configs/_base_/internimage_h.py',
    './_base_/mask2former_80k_mapillary-896x896.py',
]
# The programs that mim runs are elsewhere: this is how they find the data set's class.
__import__('sys').path.append('{{ fileDirname }}/..')
custom_imports = dict(imports=['internimage.segmentation', 'mapillary_streets'])
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.5),
    decode_head=dict(in_channels=_base_.channels),
)
