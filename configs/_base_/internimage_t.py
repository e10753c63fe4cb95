# SPDX-License-Identifier: Apache-2.0
"""InternImage-T: weights (ImageNet-1K, 224 px) and widths."""

custom_imports = dict(imports=['internimage'], allow_failed_imports=False)
backbone = dict(
    _delete_=True,
    type='InternImage',
    arch='tiny',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_t_1k_224.pth',
    ),
)
channels = [64, 128, 256, 512]
conv_pool_channels = 768
