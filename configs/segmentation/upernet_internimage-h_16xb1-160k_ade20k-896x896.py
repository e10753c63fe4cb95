# SPDX-License-Identifier: Apache-2.0
"""Expected: 59.9 mIoU on ADE20K val, 60.3 with test-time augmentation (published).
mim train internimage upernet_internimage-h_16xb1-160k_ade20k-896x896.py -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = ['../_base_/internimage_h.py', './_base_/upernet_160k_ade20k-896x896.py']
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.5),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
