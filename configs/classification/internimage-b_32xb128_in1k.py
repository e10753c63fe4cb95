# SPDX-License-Identifier: Apache-2.0
"""Expected: 84.9 top-1 on ImageNet-1K val (published with the weights).
mim train internimage internimage-b_32xb128_in1k.py -G 32 -g 8 -l slurm -p PART --srun-args=-u --amp
"""  # noqa: E501

_base_ = ['../_base_/internimage_b.py', './_base_/in1k-224px_300e.py']
custom_imports = dict(imports=['internimage.classification'])
model = dict(
    backbone=dict(_base_.backbone, init_cfg=None, out_indices=(3,), drop_path_rate=0.5),
    neck=dict(in_channels=_base_.channels[-1], out_channels=_base_.conv_pool_channels),
    head=dict(in_channels=_base_.conv_pool_channels),
)
