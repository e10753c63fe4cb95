# SPDX-License-Identifier: Apache-2.0
"""Expected: 88.0 top-1 on ImageNet-1K val (published with the weights).
mim train internimage internimage-xl_32xb16_in1k-384px.py -G 32 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = ['../_base_/internimage_xl.py', './_base_/in1k-384px_20e.py']
custom_imports = dict(imports=['internimage.classification'])
model = dict(
    backbone=dict(
        _base_.backbone,
        init_cfg=None,
        out_indices=(3,),
        drop_path_rate=0.2,
        with_cp=True,
    ),
    neck=dict(in_channels=_base_.channels[-1], out_channels=_base_.conv_pool_channels),
    head=dict(in_channels=_base_.conv_pool_channels),
    init_cfg=_base_.backbone.init_cfg,
)
