# SPDX-License-Identifier: Apache-2.0
"""Expected: 74.1 mAP on Open Images V6 val (published).
mim train internimage <path of this file> -G 16 -g 8 -l slurm -p PART --srun-args=-u
"""

_base_ = './_base_/dino-4scale_cb-internimage-h_o365-to-openimages.py'
load_from = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_80classes.pth'
