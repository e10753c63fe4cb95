# SPDX-License-Identifier: Apache-2.0
"""Expected: 38.8 mAP on BDD100K val (arXiv:2211.05778, Table 10); no weights are published.
mim train internimage <path of this file> -G 8 -l pytorch
"""  # noqa: E501

_base_ = ['../../../configs/_base_/internimage_h.py', './_base_/dino-4scale_bdd100k.py']
custom_imports = dict(imports=['internimage.detection'])
settings = dict(out_indices=(1, 2, 3), drop_path_rate=0.5, with_cp=True)
model = dict(
    backbone=dict(_base_.backbone, **settings),
    neck=dict(in_channels=_base_.channels[1:]),
)
