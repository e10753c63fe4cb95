# SPDX-License-Identifier: Apache-2.0
"""InternImage-B: weights (ImageNet-1K, 224 px) and widths."""

custom_imports = dict(imports=['internimage'], allow_failed_imports=False)
backbone = dict(
    _delete_=True,
    type='InternImage',
    arch='base',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_b_1k_224.pth',
    ),
)
channels = [112, 224, 448, 896]
conv_pool_channels = 1344
