# SPDX-License-Identifier: Apache-2.0
"""The DCNv3 layer."""

import copy

import pytest
import torch
from torch.nn import functional as F

from ops_dcnv3 import DCNv3, build_act_layer, build_norm_layer, dcnv3_reference
from tests.tolerances import FORWARD, relative_error


def randomise(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return layer


def test_parameter_names():
    layer = DCNv3(12, kernel_size=(3, 5), groups=3, padding=(1, 2))
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        'dw_conv.0.weight': (12, 1, 3, 5),
        'dw_conv.0.bias': (12,),
        'dw_conv.1.1.weight': (12,),
        'dw_conv.1.1.bias': (12,),
        'offset.weight': (3 * 15 * 2, 12),
        'offset.bias': (3 * 15 * 2,),
        'mask.weight': (3 * 15, 12),
        'mask.bias': (3 * 15,),
        'input_proj.weight': (12, 12),
        'input_proj.bias': (12,),
        'output_proj.weight': (12, 12),
        'output_proj.bias': (12,),
    }
    scaled = DCNv3(12, groups=3, center_feature_scale=True, remove_center=True)
    assert scaled.center_feature_scale_proj_weight.shape == (3, 12)
    assert scaled.center_feature_scale_proj_bias.shape == (3,)
    assert scaled.mask.weight.shape == (3 * 8, 12)


def test_new_layer_averages_the_neighbourhood():
    layer = DCNv3(8, groups=2)
    for linear in (layer.input_proj, layer.output_proj):
        torch.nn.init.eye_(linear.weight)
    x = torch.randn(2, 5, 7, 8)
    expected = F.avg_pool2d(x.permute(0, 3, 1, 2), 3, stride=1, padding=1)
    assert relative_error(layer(x), expected.permute(0, 2, 3, 1)) < 1e-5


def test_formula(device):
    """The whole layer against the formula of the paper, written out."""
    layer = DCNv3(
        12, kernel_size=3, dw_kernel_size=5, groups=3, center_feature_scale=True
    )
    layer = randomise(layer.double().to(device))
    x = torch.randn(2, 6, 9, 12, dtype=torch.float64, device=device)
    projected = layer.input_proj(x)
    branch = F.conv2d(
        x.permute(0, 3, 1, 2), *layer.dw_conv[0].parameters(), padding=2, groups=12
    )
    branch = F.layer_norm(
        branch.permute(0, 2, 3, 1), (12,), *layer.dw_conv[1][1].parameters(), eps=1e-6
    )
    branch = F.gelu(branch)
    mask = layer.mask(branch).view(2, 6, 9, 3, 9).softmax(-1).view(2, 6, 9, 27)
    sampled = dcnv3_reference(projected, layer.offset(branch), mask, groups=3)
    scale = F.linear(
        branch,
        layer.center_feature_scale_proj_weight,
        layer.center_feature_scale_proj_bias,
    ).sigmoid()
    scale = scale.repeat_interleave(4, dim=-1)
    expected = layer.output_proj(sampled * (1 - scale) + projected * scale)
    assert relative_error(layer(x), expected) < FORWARD[torch.float64]


@pytest.mark.parametrize(
    ('settings', 'out_size'),
    [
        (dict(stride=2), (6, 5)),
        (dict(stride=(1, 3)), (11, 4)),
        (dict(kernel_size=(5, 3), stride=(2, 1), padding=(2, 1)), (6, 10)),
        (dict(dilation=2, padding=2, dw_kernel_size=5), (11, 10)),
        (dict(padding=0, dw_kernel_size=3), (9, 8)),
        (dict(kernel_size=2, padding=0), (10, 9)),
        (dict(stride=2, center_feature_scale=True), (6, 5)),
    ],
)
def test_output_size(settings, out_size):
    layer = randomise(DCNv3(8, groups=2, **settings))
    assert layer(torch.randn(2, 11, 10, 8)).shape == (2, *out_size, 8)


def test_stride_takes_every_other_output():
    """A strided layer is the dense one, subsampled."""
    dense, strided = DCNv3(8, groups=2), DCNv3(8, groups=2, stride=(2, 3))
    randomise(dense)
    strided.load_state_dict(dense.state_dict())
    x = torch.randn(1, 7, 9, 8)
    assert relative_error(strided(x), dense(x)[:, ::2, ::3]) < 1e-5


def test_center_of_a_strided_layer():
    """The input that is mixed in sits where the output does: height is not width."""
    settings = dict(groups=2, center_feature_scale=True)
    dense, strided = DCNv3(8, **settings), DCNv3(8, stride=(2, 3), **settings)
    randomise(dense)
    strided.load_state_dict(dense.state_dict())
    x = torch.randn(1, 7, 10, 8)
    output, expected = strided(x), dense(x)[:, ::2, ::3]
    assert output.shape == expected.shape == (1, 4, 4, 8)
    assert relative_error(output, expected) < 1e-5


@pytest.mark.parametrize('with_gradients', [False, True])
@pytest.mark.parametrize('autocast', [False, True])
def test_offsets_are_exact_in_bfloat16(autocast, with_gradients, device):
    """Rounded to bfloat16, an offset of 20 pixels is off by up to 1/16."""
    torch.manual_seed(0)
    layer = DCNv3(8, groups=2).to(device)
    # What the branch computes is exact, so that offsets alone can be rounded.
    torch.nn.init.zeros_(layer.dw_conv[1][1].weight)
    layer.dw_conv[1][1].bias.data = torch.arange(8.0, 16.0, device=device)
    torch.nn.init.normal_(layer.offset.weight, std=0.5)
    for projection in (layer.input_proj, layer.output_proj):
        torch.nn.init.eye_(projection.weight)
    layer.bfloat16()
    x = torch.randn(1, 40, 64, 8, device=device).bfloat16()
    exact = copy.deepcopy(layer).double()(x.double())
    with torch.set_grad_enabled(with_gradients):
        if autocast:
            with torch.autocast(device.type, torch.bfloat16):
                output = layer.float()(x.float())
        else:
            output = layer(x)
    assert output.dtype == torch.bfloat16
    assert relative_error(output, exact) < 0.01


def test_batch_norm_and_activations():
    layer = DCNv3(8, groups=2, norm_layer='BN', act_layer='SiLU')
    assert 'dw_conv.1.0.running_mean' in layer.state_dict()
    assert layer(torch.randn(2, 5, 7, 8)).shape == (2, 5, 7, 8)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_meta_device(dtype):
    layer = DCNv3(8, groups=2, center_feature_scale=True).to('meta', dtype)
    output = layer(torch.empty(2, 5, 7, 8, device='meta', dtype=dtype))
    assert (output.shape, output.dtype) == ((2, 5, 7, 8), dtype)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision(dtype, autocast, device):
    """Half precision stays near float32, under autocast and in a cast model."""
    layer = DCNv3(32, groups=2, center_feature_scale=True)
    layer = randomise(layer).to(device)
    x = torch.randn(2, 9, 8, 32, device=device)
    expected = layer(x)
    if autocast:
        with torch.autocast(device.type, dtype):
            output = layer(x)
    else:
        output = layer.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert relative_error(output, expected) < (3e-2 if dtype == torch.float16 else 0.2)
    output.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(channels=10, groups=4), 'channels: expected a positive multiple of gr'),
        (dict(channels=8, groups=0), 'groups: expected at least 1'),
        (dict(channels=8, kernel_size=0), 'kernel_size: expected at least 1'),
        (dict(channels=8, dw_kernel_size=4), 'dw_kernel_size: expected sizes'),
        (dict(channels=8, dilation=3), 'dw_kernel_size: expected sizes'),
        (dict(channels=8, act_layer='Tanh'), "act_layer: .*got 'Tanh'"),
        (dict(channels=8, norm_layer='GN'), "norm_layer: .*got 'GN'"),
        (
            dict(channels=8, padding=0, dw_kernel_size=3, center_feature_scale=True),
            'center_feature_scale: expected padding',
        ),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        DCNv3(**settings)


def test_layers():
    x = torch.randn(2, 3, 5, 8)
    norm = build_norm_layer(8)
    assert list(norm.state_dict()) == ['0.weight', '0.bias']
    assert norm(x).shape == x.shape
    to_first = build_norm_layer(8, 'BN', 'channels_last', 'channels_first')
    assert to_first(x).shape == (2, 8, 3, 5)
    to_last = build_norm_layer(3, 'LN', 'channels_first', 'channels_last')
    assert list(to_last.state_dict()) == ['1.weight', '1.bias']
    assert to_last(torch.randn(2, 3, 5, 8)).shape == (2, 5, 8, 3)
    with pytest.raises(ValueError, match=r"in_format: .*got 'NCHW'"):
        build_norm_layer(8, in_format='NCHW')
    assert isinstance(build_act_layer('ReLU'), torch.nn.ReLU)
