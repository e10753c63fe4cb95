# SPDX-License-Identifier: Apache-2.0
"""The operators for the two halves of a block, on a CPU."""

import pytest
import torch
from torch.nn import functional as F

from tests.ops.branch import (
    AROUND,
    layer,
    layer_arguments,
    make,
    mlp,
    mlp_arguments,
)
from tests.tolerances import FORWARD, relative_error

mlp_forward = torch.ops.ops_dcnv3.mlp_forward
layer_forward = torch.ops.ops_dcnv3.layer_forward
NOTHING, EVERYTHING = AROUND[:2]


@pytest.mark.parametrize('settings', AROUND, ids=range(len(AROUND)))
@pytest.mark.parametrize(
    ('size', 'hidden'),
    [
        ((1, 1), 1),
        ((5, 3), 7),  # not a whole tile of columns
        ((7, 7, 40), 160),
        ((2000, 24), 96),  # each thread by itself
        ((3000, 20), 300),  # and several times
        ((700, 8), 3000),  # all together, and twice
        ((49, 333), 65),  # two blocks of features
        ((13,), 21),
        ((0, 16), 64),
    ],
)
def test_mlp(size, hidden, settings):
    arguments = mlp_arguments(size, hidden, **settings)
    kept = arguments['input'].clone()
    output = mlp_forward(**arguments)
    assert (output.dtype, output.shape) == (torch.float32, size)
    assert relative_error(output, mlp(arguments)) < FORWARD[torch.float32]
    assert torch.equal(arguments['input'], kept)


@pytest.mark.parametrize('settings', AROUND, ids=range(len(AROUND)))
@pytest.mark.parametrize('center_scale', [False, True])
@pytest.mark.parametrize(
    ('size', 'groups', 'others'),
    [
        ((2, 5, 7, 24), 3, {}),  # all threads together
        ((1, 37, 61, 24), 3, {}),  # each by itself, and several times
        ((2, 9, 11, 21), 7, {'kernel_size': (5, 3), 'dw_kernel_size': (3, 5)}),
        ((1, 6, 13, 40), 2, {'remove_center': True, 'dw_kernel_size': (5, 5)}),
        ((1, 8, 5, 19), 19, {'dilation': (2, 3)}),
        ((0, 5, 7, 8), 2, {}),
    ],
)
def test_layer(size, groups, others, center_scale, settings):
    arguments = layer_arguments(
        size, groups, center_scale=center_scale, **others, **settings
    )
    output = layer_forward(**arguments)
    assert (output.dtype, output.shape) == (torch.float32, size)
    # Positions are sums of many products, and samples follow them.
    assert relative_error(output, layer(arguments)) < 4 * FORWARD[torch.float32]


def test_strided_tensors():
    arguments = mlp_arguments((2, 9, 5, 24), 40, **EVERYTHING)
    expected = mlp_forward(**arguments)
    x = arguments['input']
    arguments['input'] = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    wide = make(40, 30)
    wide[:, :24] = arguments['fc1'][0]
    arguments['fc1'][0] = wide[:, :24]
    assert torch.equal(mlp_forward(**arguments), expected)


@pytest.mark.parametrize('post_norm', [False, True])
def test_an_input_that_is_not_finite_stays_in_its_row(post_norm):
    """Rows and columns beyond the last are computed, but not seen."""
    settings = NOTHING | {'post_norm': post_norm}
    arguments = mlp_arguments((7, 20), 9, **settings)
    arguments['input'][6, 3] = torch.nan
    output = mlp_forward(**arguments)
    assert output[6].isnan().all()
    assert output[:6].isfinite().all()


def test_gelu_of_any_number():
    extremes = [-torch.inf, -1e30, -1e4, 1e4, 1e30, torch.inf, torch.nan]
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor(extremes)])
    identity = [torch.ones(1, 1), torch.zeros(1)]
    arguments = mlp_arguments((1, 1), 1, **NOTHING)
    arguments |= {'input': x[:, None], 'fc1': identity, 'fc2': identity}
    output = mlp_forward(**arguments)[:, 0]
    expected = F.gelu(x.double()).float()
    expected[-7] = 0  # the limit; PyTorch says NaN
    # PyTorch's own is as far from it.
    torch.testing.assert_close(output, expected, rtol=0, atol=1.5e-6, equal_nan=True)


def test_center_scale_of_any_logit():
    """Its sigmoid is 0 or 1 far from zero, and NaN stays NaN."""
    logits = [-torch.inf, -1e4, -95.0, -3.0, 0.0, 3.0, 95.0, 1e4, torch.inf]
    arguments = layer_arguments((1, 3, 4, 18), 9, center_scale=True, **NOTHING)
    arguments['center_scale'] = [torch.zeros(9, 18), torch.tensor(logits)]
    arguments['output_proj'] = [torch.eye(18), torch.zeros(18)]
    output = layer_forward(**arguments)
    assert relative_error(output, layer(arguments)) < 4 * FORWARD[torch.float32]
    arguments['center_scale'][1][4] = torch.nan
    assert layer_forward(**arguments).isnan().all()


def put(name, index, tensor):
    def change(arguments):
        arguments[name][index] = tensor

    return change


def set_to(name, value):
    return lambda arguments: arguments.__setitem__(name, value)


CHANGES_AROUND = [
    (set_to('pre_norm', [make(4)]), 'pre_norm: expected .* or nothing, got 1 tensors'),
    (put('pre_norm', 1, make(5)), r'pre_norm.bias: expected \(4\), got \(5\)'),
    (put('post_norm', 0, make(5)), r'post_norm.weight: expected \(4\), got \(5\)'),
    (set_to('scale', make(5)), r'scale: expected \(4\), got \(5\)'),
    (set_to('scale', make(4).double()), 'scale: expected float32 on the CPU'),
]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        *CHANGES_AROUND,
        (set_to('fc1', []), 'fc1: expected weight and bias, got 0 tensors'),
        (put('fc1', 0, make(7, 5)), r'fc1.weight: expected \(any, 4\), got \(7, 5\)'),
        (put('fc1', 0, make(7)), r'fc1.weight: expected \(any, 4\), got \(7\)'),
        (put('fc1', 1, make(4)), r'fc1.bias: expected \(7\), got \(4\)'),
        (put('fc1', 1, make(1, 7)), r'fc1.bias: expected \(7\), got \(1, 7\)'),
        (put('fc2', 0, make(5, 7)), r'fc2.weight: expected \(4, 7\), got \(5, 7\)'),
        (put('fc2', 0, make(4, 7).bfloat16()), 'fc2: expected float32 on the CPU'),
        (set_to('input', make(3, 4).double()), 'input: expected float32 on the CPU'),
        (set_to('input', make()), r'input: expected \(..., C\), .* got \(\)'),
        (set_to('input', make(3, 0)), r'at least one channel, got \(3, 0\)'),
    ],
)
def test_errors_of_mlp(change, message):
    arguments = mlp_arguments((3, 4), 7, **EVERYTHING)
    change(arguments)
    with pytest.raises(RuntimeError, match=message):
        mlp_forward(**arguments)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        *CHANGES_AROUND,
        (set_to('dw_conv', []), 'dw_conv: expected weight and bias, got 0'),
        (put('dw_conv', 0, make(5, 1, 3, 3)), r'dw_conv.weight: .*\(4, 1, any, any\)'),
        (put('dw_conv', 0, make(4, 1, 2, 3)), 'weight: expected .* odd, odd'),
        (set_to('dw_norm', []), 'dw_norm: expected weight and bias, got 0'),
        (put('dw_norm', 1, make(5)), r'dw_norm.bias: expected \(4\)'),
        (put('offset', 0, make(35, 4)), r'offset.weight: expected \(36, 4\)'),
        (put('mask', 0, make(19, 4)), r'mask.weight: expected \(18, 4\)'),
        (put('mask', 1, make(19)), r'mask.bias: expected \(18\)'),
        (put('center_scale', 0, make(3, 4)), r'center_scale.weight: expected \(2, 4\)'),
        (put('input_proj', 0, make(5, 4)), r'input_proj.weight: expected \(4, 4\)'),
        (put('output_proj', 0, make(4, 5)), r'output_proj.weight: expected \(4, 4\)'),
        (put('offset', 0, make(36, 4).double()), 'offset: expected float32'),
        (set_to('stride', [2, 1]), 'expected stride 1'),
        (set_to('padding', [1, 0]), r"input's size, \(5, 7\), got .* \(5, 5\)"),
        (set_to('groups', 3), 'groups: expected a divisor of 4'),
        (set_to('groups', 4), r'offset.weight: expected \(72, 4\)'),
        (set_to('input', make(5, 7, 4)), 'input: expected 4 dimensions'),
    ],
)
def test_errors_of_layer(change, message):
    arguments = layer_arguments((1, 5, 7, 4), 2, center_scale=True, **EVERYTHING)
    change(arguments)
    with pytest.raises(RuntimeError, match=message):
        layer_forward(**arguments)
