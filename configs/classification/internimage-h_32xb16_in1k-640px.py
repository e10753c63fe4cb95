# SPDX-License-Identifier: Apache-2.0
"""Expected: 89.6 top-1 on ImageNet-1K val (published with the weights).
mim train internimage internimage-h_32xb16_in1k-640px.py -G 32 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = ['../_base_/internimage_h.py', './_base_/in1k-640px_20e.py']
custom_imports = dict(imports=['internimage.classification'])
model = dict(
    backbone=dict(
        _base_.backbone,
        init_cfg=None,
        out_indices=(2, 3),
        drop_path_rate=0.2,
        with_cp=True,
    ),
    neck=dict(_delete_=True, type='AttentionPoolNeck', in_channels=_base_.channels[2:]),
    head=dict(in_channels=768),
    init_cfg=_base_.backbone.init_cfg,
)
