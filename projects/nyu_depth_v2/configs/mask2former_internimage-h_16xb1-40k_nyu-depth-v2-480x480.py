# SPDX-License-Identifier: Apache-2.0
"""Expected: 67.1 mIoU on NYU Depth V2 test, 68.1 with test-time augmentation (published).
mim train internimage <path of this file> -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""  # noqa: E501

_base_ = [
    '../../../configs/_base_/internimage_h.py',
    './_base_/mask2former_40k_nyu-depth-v2-480x480.py',
]
# The programs that mim runs are elsewhere: this is how they find the data set's class.
__import__('sys').path.append('{{ fileDirname }}/..')
custom_imports = dict(imports=['internimage.segmentation', 'nyu_depth_v2'])
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.5),
    decode_head=dict(in_channels=_base_.channels),
)
