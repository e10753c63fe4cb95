# SPDX-License-Identifier: Apache-2.0
"""Expected: the start for training on COCO; no result is published.
mim train internimage dino-4scale_internimage-g_128xb2-26e_objects365.py -G 128 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = ['../_base_/internimage_g.py', './_base_/dino-4scale_objects365.py']
custom_imports = dict(imports=['internimage.detection'])
model = dict(
    backbone=dict(
        _base_.backbone, out_indices=(1, 2, 3), drop_path_rate=0.5, with_cp=True
    ),
    neck=dict(in_channels=_base_.channels[1:]),
)
