# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose results are wider than the layer."""

import pytest
import torch
from torch import nn

from ops_dcnv3 import linear
from ops_dcnv3.linear import linear_to_float32
from tests.tolerances import FORWARD, relative_error


def make(dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    x = torch.randn(2, 5, 7, 24)
    # Rounded, so that float64 of the same numbers is what is exact.
    return layer.to(dtype), x.to(dtype)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('compiled', [False, True])
def test_linear(compiled, bias):
    layer, x = make(bias=bias)

    def call(x):
        return linear(layer, x)

    run = torch.compile(call, backend='eager', fullgraph=True) if compiled else call
    assert relative_error(run(x), layer(x)) < FORWARD[torch.float32]


def test_hooks_of_a_compiled_layer():
    layer, x = make()
    expected = 3 * layer(x)
    layer.register_forward_hook(lambda module, args, output: 3 * output)
    run = torch.compile(lambda x: linear(layer, x), backend='eager')
    assert relative_error(run(x), expected) < FORWARD[torch.float32]


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('is_inference', [False, True])
@pytest.mark.parametrize('autocast', [False, True])
def test_bfloat16_becomes_float32(autocast, is_inference, bias, device):
    layer, x = make(torch.bfloat16, bias)
    exact = layer.double()(x.double())
    layer = layer.to(device, torch.float32 if autocast else torch.bfloat16)
    with (
        torch.set_grad_enabled(not is_inference),
        torch.autocast(device.type, torch.bfloat16, enabled=autocast),
    ):
        output = linear_to_float32(layer, x.to(device), is_inference)
    assert output.dtype == torch.float32
    assert output.shape == (2, 5, 7, 40)
    assert relative_error(output, exact) < FORWARD[torch.float32]


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_others_stay(dtype):
    layer, x = make(dtype)
    assert torch.equal(linear_to_float32(layer, x, False), layer(x))


def test_gradient_of_a_wider_result():
    layer, x = make(torch.bfloat16)
    linear_to_float32(layer, x.requires_grad_(), False).square().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.bfloat16
    exact, y = make(torch.bfloat16)
    exact, y = exact.double(), y.double().requires_grad_()
    exact(y).square().sum().backward()
    for one, other in ((x, y), (layer.weight, exact.weight), (layer.bias, exact.bias)):
        assert relative_error(one.grad, other.grad) < FORWARD[torch.bfloat16]
