# SPDX-License-Identifier: Apache-2.0
"""SegFormer's head on four levels, without an auxiliary head.

A recipe takes it by ``model = _base_.segformer``.
"""

segformer = dict(
    auxiliary_head=None,
    decode_head=dict(
        _delete_=True,
        type='SegformerHead',
        in_index=(0, 1, 2, 3),
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
