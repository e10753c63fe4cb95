# SPDX-License-Identifier: Apache-2.0
"""InternImage-L: weights (ImageNet-22K, 192 then 384 px) and widths."""

custom_imports = dict(imports=['internimage'], allow_failed_imports=False)
backbone = dict(
    _delete_=True,
    type='InternImage',
    arch='large',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_l_22k_192to384.pth',
    ),
)
channels = [160, 320, 640, 1280]
conv_pool_channels = 1920
