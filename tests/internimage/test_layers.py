# SPDX-License-Identifier: Apache-2.0
"""What a layer says of an input that it cannot take."""

import re

import pytest
import torch
from torch import Tensor, nn

from internimage import InternImage
from internimage.layers import Downsample, Mlp, Stem
from ops_dcnv3 import DCNv3, dcnv3, dcnv3_reference, dcnv3_softmax

#: What makes a module, a shape that it takes and its argument.
MAKERS = {
    'dcnv3': (lambda: DCNv3(8, groups=2), (2, 5, 7, 8), 'x'),
    'mlp': (lambda: Mlp(8, 12, 'GELU'), (2, 5, 7, 8), 'x'),
    'downsample': (lambda: Downsample(8, 'LN'), (2, 5, 7, 8), 'x'),
    'stem': (lambda: Stem(8, 'GELU', 'LN'), (2, 3, 13, 17), 'image'),
    'backbone': (
        lambda: InternImage(
            dict(channels=8, depths=(1,), groups=(2,)), out_indices=(0,)
        ),
        (2, 3, 13, 17),
        'image',
    ),
}
EVERY_MODULE = pytest.mark.parametrize('name', MAKERS)
EVERY_MODE = pytest.mark.parametrize('gradients', [False, True])


def message_of(name: str, gradients: bool, change) -> str:
    make, shape, argument = MAKERS[name]
    module, x = make(), torch.randn(shape)
    with torch.set_grad_enabled(gradients):
        module(x)
        with pytest.raises((TypeError, ValueError)) as error:
            module(change(x))
    message = str(error.value)
    assert message.startswith(f'{argument}: expected ')
    assert ', got ' in message
    assert 'csrc' not in message
    return message


def swapped(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


@EVERY_MODE
@EVERY_MODULE
def test_shape(name, gradients):
    """Also of the right number of numbers, as a map with its channels first."""
    layout = 'channels first' if MAKERS[name][2] == 'image' else 'channels last'
    channels = 3 if layout == 'channels first' else 8
    for change in (swapped, lambda x: x[..., 1:, :, 1:].transpose(1, 3)):
        message = message_of(name, gradients, change)
        assert f'{layout}, with C = {channels}, got (2, ' in message
    if name != 'mlp':
        message = message_of(name, gradients, lambda x: x[0])
        assert re.search(r'\(N, .*, got \(\d+, \d+, \d+\)', message)


@EVERY_MODE
@EVERY_MODULE
def test_kind_of_numbers(name, gradients):
    message = message_of(name, gradients, lambda x: x.to(torch.uint8))
    assert 'expected floating-point numbers, got torch.uint8' in message
    message = message_of(name, gradients, lambda x: x.double())
    assert 'expected torch.float32 as ' in message
    assert message.endswith('weight, got torch.float64')
    message = message_of(name, gradients, lambda x: x.to('meta'))
    assert 'expected device cpu as ' in message
    assert message.endswith('weight, got meta')
    message = message_of(name, gradients, lambda x: x.tolist())
    assert 'expected a Tensor, got list' in message


def test_advice():
    with pytest.raises(ValueError, match=r'got \(2, 8, 5, 7\): permute\(0, 2, 3, 1\)'):
        DCNv3(8, groups=2)(torch.randn(2, 8, 5, 7))


def test_what_is_adapted_is_not_checked():
    """Whoever replaces a layer may take other inputs: more channels, other dtypes."""
    make, _, _ = MAKERS['backbone']
    model = make()
    model.patch_embed.conv1 = nn.Conv2d(5, 4, 3, stride=2, padding=1)
    assert model(torch.randn(1, 5, 13, 17))[0].shape == (1, 8, 4, 5)
    model.patch_embed.conv1.register_forward_pre_hook(
        lambda module, args: (args[0].float(),)
    )
    assert model(torch.randn(1, 5, 13, 17).double())[0].dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        assert model(torch.randn(1, 5, 13, 17).bfloat16())[0].shape == (1, 8, 4, 5)


@pytest.mark.parametrize('function', [dcnv3, dcnv3_softmax, dcnv3_reference])
def test_public_functions(function):
    tensors = (
        torch.randn(2, 5, 7, 8),
        torch.zeros(2, 5, 7, 36),
        torch.zeros(2, 5, 7, 18),
    )
    for index, name in enumerate(('input', 'offset', 'mask')):
        for change in (
            lambda x: x[0],
            lambda x: x.permute(0, 3, 1, 2),
            lambda x: x.int(),
            lambda x: x.to('meta'),
            lambda x: x.tolist(),
        ):
            changed = list(tensors)
            changed[index] = change(changed[index])
            with pytest.raises((TypeError, ValueError)) as error:
                function(*changed, groups=2)
            message = str(error.value)
            assert re.match(r'(input|offset|mask|groups): expected .*got ', message)
            assert name in message or index == 0
