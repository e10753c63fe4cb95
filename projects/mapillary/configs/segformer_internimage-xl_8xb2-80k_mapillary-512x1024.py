# SPDX-License-Identifier: Apache-2.0
"""No result is published; the weights are where those of Cityscapes start from.
mim train internimage <path of this file> -G 8 -l pytorch
"""

_base_ = [
    '../../../configs/_base_/internimage_xl.py',
    './_base_/segformer_80k_mapillary-512x1024.py',
]
# The programs that mim runs are elsewhere: this is how they find the data set's class.
__import__('sys').path.append('{{ fileDirname }}/..')
custom_imports = dict(imports=['internimage', 'mapillary_streets'])
model = dict(
    backbone=dict(_base_.backbone, layer_scale=1.0, drop_path_rate=0.4),
    decode_head=dict(in_channels=_base_.channels),
)
