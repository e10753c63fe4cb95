# SPDX-License-Identifier: Apache-2.0
"""The depthwise branch by PyTorch's functions, arguments for it, and a layer."""

import torch
from torch import nn
from torch.nn import functional as F

from ops_dcnv3 import DCNv3


def branch(input, weight, bias, norm_weight, norm_bias, eps):
    """Compute what ``ops_dcnv3::branch_forward`` promises with PyTorch's functions."""
    channels, _, kh, kw = weight.shape
    x = F.conv2d(
        input.permute(0, 3, 1, 2),
        weight,
        bias,
        padding=(kh // 2, kw // 2),
        groups=channels,
    )
    x = F.layer_norm(x.permute(0, 2, 3, 1), (channels,), norm_weight, norm_bias, eps)
    return F.gelu(x)


def branch_arguments(size, kernel, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    channels = size[-1]
    shapes = [size, (channels, 1, *kernel), *[(channels,)] * 3]
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


def make_layer(channels=24, groups=3, **settings):
    """Return a small layer that samples off the grid."""
    layer = DCNv3(channels, groups=groups, **settings).eval()
    for predicts in (layer.offset, layer.mask):
        nn.init.normal_(predicts.weight, std=0.2)
    return layer
