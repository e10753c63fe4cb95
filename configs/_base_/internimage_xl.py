# SPDX-License-Identifier: Apache-2.0
"""InternImage-XL: weights (ImageNet-22K, 192 then 384 px) and widths."""

custom_imports = dict(imports=['internimage'], allow_failed_imports=False)
backbone = dict(
    _delete_=True,
    type='InternImage',
    arch='xlarge',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_xl_22k_192to384.pth',
    ),
)
channels = [192, 384, 768, 1536]
conv_pool_channels = 2304
