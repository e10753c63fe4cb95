# SPDX-License-Identifier: Apache-2.0
"""Expected: 57.6 box AP on COCO val2017 (published with the weights).
mim train internimage dino-4scale_internimage-l_8xb2-small-backbone-lr-12e_coco.py -G 8 -l pytorch
"""  # noqa: E501

_base_ = './dino-4scale_internimage-l_8xb2-layer-decay-12e_coco.py'
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
