# SPDX-License-Identifier: Apache-2.0
"""Expected: 37.0 box AP on COCO-O, effective robustness 11.72 (published).
mim train internimage <path of this file> -G 32 -g 8 -l slurm -p PART --srun-args=-u
"""

_base_ = './_base_/cascade-mask-rcnn_internimage-l_coco-o.py'
# The programs that mim runs are elsewhere: this is how they find the evaluator.
__import__('sys').path.append('{{ fileDirname }}/..')
custom_imports = dict(imports=['internimage', 'coco_o'])
