# SPDX-License-Identifier: Apache-2.0
"""InternImage-H: weights (427M joint data, then ImageNet-22K, 384 px) and widths."""

custom_imports = dict(imports=['internimage'], allow_failed_imports=False)
backbone = dict(
    _delete_=True,
    type='InternImage',
    arch='huge',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_h_jointto22k_384.pth',
    ),
)
channels = [320, 640, 1280, 2560]
