# SPDX-License-Identifier: Apache-2.0
"""InternImage-S: weights (ImageNet-1K, 224 px) and widths."""

custom_imports = dict(imports=['internimage'], allow_failed_imports=False)
backbone = dict(
    _delete_=True,
    type='InternImage',
    arch='small',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_s_1k_224.pth',
    ),
)
channels = [80, 160, 320, 640]
conv_pool_channels = 960
