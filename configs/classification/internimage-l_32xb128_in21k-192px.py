# SPDX-License-Identifier: Apache-2.0
"""Expected: nothing published; fine-tuned at 384 px, 87.7 top-1 on ImageNet-1K val.
mim train internimage internimage-l_32xb128_in21k-192px.py -G 32 -g 8 -l slurm -p PART --srun-args=-u --amp
"""  # noqa: E501

_base_ = ['../_base_/internimage_l.py', './_base_/in21k-192px_90e.py']
custom_imports = dict(imports=['internimage.classification'])
model = dict(
    backbone=dict(_base_.backbone, init_cfg=None, out_indices=(3,), drop_path_rate=0.1),
    neck=dict(in_channels=_base_.channels[-1], out_channels=_base_.conv_pool_channels),
    head=dict(in_channels=_base_.conv_pool_channels),
)
