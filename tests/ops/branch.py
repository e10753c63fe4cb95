# SPDX-License-Identifier: Apache-2.0
"""What the operators for inference promise, by PyTorch's functions, and arguments."""

import torch
from torch import nn
from torch.nn import functional as F

from ops_dcnv3 import DCNv3, dcnv3_reference


def branch(input, weight, bias, norm_weight, norm_bias, eps):
    """Compute what ``ops_dcnv3::branch_forward`` promises."""
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


def make(*shape):
    """Return random numbers, the same for a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def around(channels, pre_norm, post_norm, scale, add_input):
    """Return the arguments of what stands around a branch."""
    return {
        'pre_norm': [make(channels), make(channels + 1)[1:]] if pre_norm else [],
        'pre_norm_eps': 1e-3,
        'post_norm': [make(channels + 2)[2:], make(channels + 3)[3:]]
        if post_norm
        else [],
        'post_norm_eps': 1e-2,
        'scale': make(channels + 4)[4:] if scale else None,
        'add_input': add_input,
    }


#: What may stand around a branch: none, all, and what the published blocks have.
AROUND = [
    {'pre_norm': False, 'post_norm': False, 'scale': False, 'add_input': False},
    {'pre_norm': True, 'post_norm': True, 'scale': True, 'add_input': True},
    {'pre_norm': True, 'post_norm': False, 'scale': False, 'add_input': True},
    {'pre_norm': True, 'post_norm': False, 'scale': True, 'add_input': True},
    {'pre_norm': False, 'post_norm': True, 'scale': True, 'add_input': True},
    {'pre_norm': True, 'post_norm': True, 'scale': False, 'add_input': True},
]


def mlp_arguments(size, hidden, **settings):
    channels = size[-1]
    return {
        'input': make(*size),
        'fc1': [make(hidden, channels), make(hidden)],
        'fc2': [make(channels, hidden), make(channels)],
        **around(channels, **settings),
    }


def layer_arguments(
    size,
    groups,
    center_scale=False,
    kernel_size=(3, 3),
    dw_kernel_size=(3, 3),
    dilation=(1, 1),
    remove_center=False,
    **settings,
):
    channels = size[-1]
    points = groups * (kernel_size[0] * kernel_size[1] - remove_center)
    # Offsets of about a pixel.
    weak = channels**-0.5
    return {
        'input': make(*size),
        'dw_conv': [make(channels, 1, *dw_kernel_size), make(channels)],
        'dw_norm': [make(channels), make(channels)],
        'dw_norm_eps': 1e-6,
        'offset': [weak * make(2 * points, channels), weak * make(2 * points)],
        'mask': [weak * make(points, channels), weak * make(points)],
        'center_scale': [weak * make(groups, channels), make(groups)]
        if center_scale
        else [],
        'input_proj': [make(channels, channels), make(channels)],
        'output_proj': [weak * make(channels, channels), make(channels)],
        **around(channels, **settings),
        'kernel_size': list(kernel_size),
        'stride': [1, 1],
        'padding': [d * (k // 2) for k, d in zip(kernel_size, dilation, strict=True)],
        'dilation': list(dilation),
        'groups': groups,
        'offset_scale': 0.7,
        'remove_center': remove_center,
    }


def in_float64(arguments):
    """Return the arguments with all tensors in float64."""
    return {
        name: [x.double() for x in value]
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor)
        else value.double()
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }


def add_branch(compute, arguments):
    """Return ``compute`` of the normed input, with what stands around it."""
    a = arguments
    size = (a['input'].shape[-1],)
    x = a['input']
    if a['pre_norm']:
        x = F.layer_norm(x, size, *a['pre_norm'], a['pre_norm_eps'])
    x = compute(x)
    if a['post_norm']:
        x = F.layer_norm(x, size, *a['post_norm'], a['post_norm_eps'])
    if a['scale'] is not None:
        x = x * a['scale']
    return x + a['input'] if a['add_input'] else x


def mlp(arguments):
    """Compute what ``ops_dcnv3::mlp_forward`` promises, in float64."""
    a = in_float64(arguments)
    return add_branch(lambda x: F.linear(F.gelu(F.linear(x, *a['fc1'])), *a['fc2']), a)


def layer(arguments):
    """Compute what ``ops_dcnv3::layer_forward`` promises, in float64."""
    a = in_float64(arguments)
    groups = a['groups']

    def compute(x):
        features = branch(x, *a['dw_conv'], *a['dw_norm'], a['dw_norm_eps'])
        projected = F.linear(x, *a['input_proj'])
        logits = F.linear(features, *a['mask']).unflatten(-1, (groups, -1))
        out = dcnv3_reference(
            projected,
            F.linear(features, *a['offset']),
            logits.softmax(-1).flatten(-2),
            **{
                name: tuple(a[name])
                for name in ('kernel_size', 'stride', 'padding', 'dilation')
            },
            groups=groups,
            offset_scale=a['offset_scale'],
            remove_center=a['remove_center'],
        )
        if a['center_scale']:
            weight = F.linear(features, *a['center_scale']).sigmoid()
            weight = weight.repeat_interleave(x.shape[-1] // groups, dim=-1)
            out = out * (1 - weight) + projected * weight
        return F.linear(out, *a['output_proj'])

    return add_branch(compute, a)


def make_layer(channels=24, groups=3, **settings):
    """Return a small layer that samples off the grid."""
    layer = DCNv3(channels, groups=groups, **settings).eval()
    for predicts in (layer.offset, layer.mask):
        nn.init.normal_(predicts.weight, std=0.2)
    return layer
