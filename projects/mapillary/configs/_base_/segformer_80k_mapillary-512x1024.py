# SPDX-License-Identifier: Apache-2.0
"""SegFormer's head on Mapillary Vistas; the rest is as UperNet's."""

_base_ = [
    './upernet_80k_mapillary-512x1024.py',
    '../../../../configs/segmentation/_base_/segformer.py',
]

model = _base_.segformer
