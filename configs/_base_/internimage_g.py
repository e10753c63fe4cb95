# SPDX-License-Identifier: Apache-2.0
"""InternImage-G: weights (427M joint data, then ImageNet-22K, 384 px) and widths."""

custom_imports = dict(imports=['internimage'], allow_failed_imports=False)
backbone = dict(
    _delete_=True,
    type='InternImage',
    arch='giant',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_g_pretrainto22k_384.pth',
    ),
)
channels = [512, 1024, 2048, 4096]
