# SPDX-License-Identifier: Apache-2.0
"""Bad input: the error names the argument, what was expected and what came."""

import re

import pytest
import torch

from ops_dcnv3 import dcnv3, dcnv3_reference
from tests.ops.cases import Case

BOTH = pytest.mark.parametrize('function', [dcnv3_reference, dcnv3])
# Input (2, 6, 9, 15), offset (2, 6, 9, 54), mask (2, 6, 9, 27).
CASE = Case('errors')


def narrow(name, dim):
    return {name: lambda x: x.narrow(dim, 0, x.shape[dim] - 1)}


BAD_TENSORS = {
    'offset_batch': (
        narrow('offset', 0),
        ValueError,
        r'offset: expected \(2, 6, 9, 54\)',
    ),
    'offset_height': (
        narrow('offset', 1),
        ValueError,
        r'offset: .*got \(2, 5, 9, 54\)',
    ),
    'offset_width': (narrow('offset', 2), ValueError, r'offset: .*got \(2, 6, 8, 54\)'),
    'offset_points': (narrow('offset', 3), ValueError, r'offset: .*G\*P\*2'),
    'mask_height': (narrow('mask', 1), ValueError, r'mask: expected \(2, 6, 9, 27\)'),
    'mask_points': (narrow('mask', 3), ValueError, r'mask: .*got \(2, 6, 9, 26\)'),
    'channels': (narrow('input', 3), ValueError, 'groups: .*14 channels.*got 3'),
    'no_channels': (
        {'input': lambda x: x[..., :0]},
        ValueError,
        'groups: .*0 channels',
    ),
    'dimensions': (
        {'input': lambda x: x[0]},
        ValueError,
        'input: expected 4 dimensions',
    ),
    'mask_flat': ({'mask': lambda x: x.flatten(1)}, ValueError, 'mask: expected 4 dim'),
    'integer': ({'input': lambda x: x.long()}, TypeError, 'input: .*got torch.int64'),
    'complex': (
        {'input': lambda x: x + 0j},
        TypeError,
        'input: .*got torch.complex128',
    ),
    'offset_dtype': (
        {'offset': lambda x: x.float()},
        TypeError,
        'offset: expected torch.float64 .*got torch.float32',
    ),
    'mask_dtype': (
        {'mask': lambda x: x.half()},
        TypeError,
        'mask: .*got torch.float16',
    ),
    'half_offset': (
        {'input': lambda x: x.float(), 'offset': lambda x: x.half()},
        TypeError,
        'offset: expected torch.float32',
    ),
    'sparse': (
        {'input': lambda x: x.to_sparse()},
        TypeError,
        r'input: expected a dense \(strided\) tensor, got layout torch.sparse_coo',
    ),
    'list': (
        {'mask': lambda x: x.tolist()},
        TypeError,
        'mask: expected a Tensor, got list',
    ),
    'device': ({'offset': lambda x: x.to('meta')}, ValueError, 'offset: .*device cpu'),
}
BAD_SETTINGS = {
    'groups_zero': (dict(groups=0), ValueError, 'groups: expected at least 1, got 0'),
    'groups_float': (dict(groups=3.0), TypeError, 'groups: expected an int, got 3.0'),
    'groups_other': (
        dict(groups=4),
        ValueError,
        'groups: expected a divisor of the 15',
    ),
    'kernel_zero': (
        dict(kernel_size=0),
        ValueError,
        'kernel_size: .*at least 1, got 0',
    ),
    'kernel_triple': (dict(kernel_size=(3, 3, 3)), TypeError, 'kernel_size: .*pair'),
    'kernel_other': (dict(kernel_size=(3, 1)), ValueError, 'offset: expected'),
    'stride_zero': (dict(stride=(1, 0)), ValueError, 'stride: expected at least 1'),
    'stride_float': (dict(stride=1.5), TypeError, 'stride: .*got 1.5'),
    'padding': (
        dict(padding=(-1, 1)),
        ValueError,
        r'padding: .*at least 0, got \(-1, 1\)',
    ),
    'dilation': (dict(dilation=0), ValueError, 'dilation: expected at least 1, got 0'),
    'scale_text': (
        dict(offset_scale='2'),
        TypeError,
        'offset_scale: expected a finite float',
    ),
    'center_even': (
        dict(kernel_size=(3, 2), remove_center=True),
        ValueError,
        'remove_center: .*odd',
    ),
    'center_only': (
        dict(kernel_size=1, remove_center=True),
        ValueError,
        'remove_center: .*more than one point',
    ),
    'center_int': (dict(remove_center=2), TypeError, 'remove_center: expected a bool'),
    'empty_output': (
        dict(dilation=9),
        ValueError,
        r'input: the output is empty, \(-10, -7\)',
    ),
}


@BOTH
@pytest.mark.parametrize('name', BAD_TENSORS)
def test_tensors(function, name):
    change, error, message = BAD_TENSORS[name]
    tensors = dict(zip(('input', 'offset', 'mask'), CASE.tensors(), strict=True))
    for key, make in change.items():
        tensors[key] = make(tensors[key])
    with pytest.raises(error, match=message):
        function(**tensors, **CASE.kwargs)


@BOTH
@pytest.mark.parametrize('name', BAD_SETTINGS)
def test_settings(function, name):
    settings, error, message = BAD_SETTINGS[name]
    with pytest.raises(error, match=message):
        function(*CASE.tensors(), **(CASE.kwargs | settings))


@pytest.mark.parametrize(
    'name', [x for x in BAD_TENSORS if x not in ('list', 'sparse')]
)
def test_direct_call(name):
    """A caller of torch.ops goes past the Python checks and is stopped in C++."""
    change, _, _ = BAD_TENSORS[name]
    tensors = dict(zip(('input', 'offset', 'mask'), CASE.tensors(), strict=True))
    for key, make in change.items():
        tensors[key] = make(tensors[key])
    settings = ([3, 3], [1, 1], [1, 1], [1, 1], 3, 1.0, False)
    grad_output = torch.zeros(2, 6, 9, 15, dtype=torch.float64)
    ops = torch.ops.ops_dcnv3
    for call, arguments in (
        (ops.dcnv3_forward, (*tensors.values(), *settings)),
        (ops.dcnv3_backward, (grad_output, *tensors.values(), *settings)),
    ):
        with pytest.raises((RuntimeError, TypeError, ValueError)) as error:
            call(*arguments)
        # It starts with an argument: not with a function, a file and a line.
        assert re.match(r'[a-z_]+: expected .*got |\[enforce', str(error.value))


@pytest.mark.parametrize(
    'settings',
    [
        ([3], [1, 1], [1, 1], [1, 1], 3, 1.0, False),
        ([3, 0], [1, 1], [1, 1], [1, 1], 3, 1.0, False),
        ([3, 3], [1, 0], [1, 1], [1, 1], 3, 1.0, False),
        ([3, 3], [1, 1], [1, -1], [1, 1], 3, 1.0, False),
        ([3, 3], [1, 1], [1, 1], [2**40, 1], 3, 1.0, False),
        ([3, 3], [1, 1], [1, 1], [9, 1], 3, 1.0, False),
        ([3, 3], [1, 1], [1, 1], [1, 1], 0, 1.0, False),
        ([3, 4], [1, 1], [1, 1], [1, 1], 3, 1.0, True),
    ],
)
def test_direct_call_settings(settings):
    with pytest.raises(RuntimeError, match=r'expected|empty'):
        torch.ops.ops_dcnv3.dcnv3_forward(*CASE.tensors(), *settings)


def test_direct_call_grad_output():
    settings = ([3, 3], [1, 1], [1, 1], [1, 1], 3, 1.0, False)
    for grad_output in (torch.zeros(2, 6, 9, 14).double(), torch.zeros(2, 6, 9, 15)):
        with pytest.raises(RuntimeError, match='grad_output: expected'):
            torch.ops.ops_dcnv3.dcnv3_backward(grad_output, *CASE.tensors(), *settings)
