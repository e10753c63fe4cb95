# SPDX-License-Identifier: Apache-2.0
"""UperNet on Cityscapes, for L and XL: the learning rate falls with the depth."""

_base_ = './upernet_160k_cityscapes-512x1024.py'

optim_wrapper = dict(
    optimizer=dict(lr=2e-5),
    paramwise_cfg=dict(layer_decay_rate=0.94),
    clip_grad=dict(_delete_=True, max_norm=0.1, norm_type=2),
)
