# SPDX-License-Identifier: Apache-2.0
"""Forward: oracle -> published numbers -> reference -> compiled kernels."""

import pytest
import torch

from ops_dcnv3 import dcnv3, dcnv3_reference
from tests.ops.cases import CASE_IDS, CASES, TENSORS, Case, golden_cases, oracle
from tests.tolerances import FORWARD, relative_error

BOTH = pytest.mark.parametrize('function', [dcnv3_reference, dcnv3])
DTYPES = pytest.mark.parametrize('dtype', list(FORWARD), ids=lambda d: str(d)[6:])


@BOTH
@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_oracle(function, case, device):
    tensors = case.tensors()
    output = function(*(x.to(device) for x in tensors), **case.kwargs)
    expected = oracle(*tensors, **case.kwargs)
    assert relative_error(output, expected) < FORWARD[torch.float64]


@BOTH
def test_published(function, device):
    for name, settings, arrays in golden_cases():
        output = function(*(arrays[k].to(device) for k in TENSORS), **settings)
        error = relative_error(output, arrays['output'])
        assert error < FORWARD[torch.float32], name


@DTYPES
@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_dtypes(case, dtype, device):
    tensors = case.tensors(dtype, device)
    output = dcnv3(*tensors, **case.kwargs)
    assert output.dtype == dtype
    assert output.is_contiguous()
    exact = dcnv3_reference(*(x.double() for x in tensors), **case.kwargs)
    assert relative_error(output, exact) < FORWARD[dtype]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_features_with_float_offsets(dtype, device):
    """Positions keep float32 precision: far out, half precision would move them."""
    case = Case('mixed', size=(5, 40), spread=10.0, group_channels=16)
    input, offset, mask = case.tensors(torch.float32, device)
    input = input.to(dtype)
    output = dcnv3(input, offset, mask, **case.kwargs)
    assert output.dtype == dtype
    exact = dcnv3_reference(
        input.double(), offset.double(), mask.double(), **case.kwargs
    )
    assert relative_error(output, exact) < FORWARD[dtype]


@pytest.mark.parametrize('group_channels', [1, 2, 3, 4, 8, 15, 17, 24, 32, 33, 64])
def test_group_channels(group_channels, device):
    """Every way to split channels into vectors, with and without a rest."""
    case = Case('channels', batch=1, groups=2, group_channels=group_channels)
    for dtype in FORWARD:
        tensors = case.tensors(dtype, device)
        exact = dcnv3_reference(*(x.double() for x in tensors), **case.kwargs)
        output = dcnv3(*tensors, **case.kwargs)
        assert relative_error(output, exact) < FORWARD[dtype], dtype


@BOTH
def test_not_contiguous(function, device):
    case = Case('strided', group_channels=8)
    tensors = case.tensors(torch.float32, device)
    strided = [torch.stack([x, -x], dim=-1)[..., 0] for x in tensors]
    strided[0] = tensors[0].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not any(x.is_contiguous() for x in strided)
    assert torch.equal(
        function(*strided, **case.kwargs), function(*tensors, **case.kwargs)
    )


def test_unaligned_storage(device):
    """A slice that starts off a 16-byte boundary takes the narrow loads."""
    case = Case('unaligned', group_channels=8)
    input, offset, mask = case.tensors(torch.float16, device)
    storage = torch.zeros(input.numel() + 1, dtype=input.dtype, device=device)
    shifted = storage[1:].view_as(input).copy_(input)
    assert torch.equal(
        dcnv3(shifted, offset, mask, **case.kwargs),
        dcnv3(input, offset, mask, **case.kwargs),
    )


@BOTH
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf'), 1e30])
def test_bad_positions_add_zero(function, bad, device):
    case = Case('bad', batch=1)
    input, offset, mask = case.tensors(torch.float32, device)
    bad_offset, zero_mask = offset.clone(), mask.clone()
    # The third point of the second group everywhere, in x; the first, in y, once.
    bad_offset[..., (9 + 2) * 2] = bad
    zero_mask[..., 9 + 2] = 0
    bad_offset[0, 2, 3, 1] = bad
    zero_mask[0, 2, 3, 0] = 0
    bad_mask = torch.where(zero_mask == 0, float('nan'), mask)
    expected = function(input, offset, zero_mask, **case.kwargs)
    assert torch.equal(function(input, bad_offset, bad_mask, **case.kwargs), expected)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_bad_features_reach_their_samples_only(bad, dtype, device):
    """A sample across the border reads nothing but the pixels that it touches."""
    case = Case('bad features', size=(5, 9), batch=1, groups=2, group_channels=17)
    input, offset, mask = case.tensors(dtype)
    input = input.abs()  # so that no infinities cancel out
    mask = mask.abs()
    input[0, ::4, 2, 3] = bad
    input[0, 2, 0, 5] = bad
    input[0, 1, -1, 20] = bad
    expected = oracle(input, offset, mask, **case.kwargs)
    output = dcnv3(*(x.to(device) for x in (input, offset, mask)), **case.kwargs)
    assert 0 < expected.isfinite().sum() < expected.numel()
    torch.testing.assert_close(
        output.cpu().double(), expected, rtol=1e-4, atol=1e-5, equal_nan=True
    )


@BOTH
def test_borders(function, device):
    """Points on -1 and on the size count as outside; just inside they fade out."""
    input = torch.ones(1, 4, 7, 1, dtype=torch.float64, device=device)
    mask = torch.ones(1, 4, 7, 1, dtype=torch.float64, device=device)
    settings = dict(kernel_size=1, padding=0, groups=1)
    for axis, size in ((1, 4), (0, 7)):
        position = {0: 0, 1: 0}
        for target, expected in ((-1, 0), (-0.75, 0.25), (0, 1), (size - 1, 1)):
            offset = torch.zeros(1, 4, 7, 2, dtype=torch.float64, device=device)
            offset[..., axis] = target - position[axis]
            output = function(input, offset, mask, **settings)
            assert output[0, 0, 0, 0].item() == expected
        for target in (-1, size):
            offset[..., axis] = target
            # So far outside that not even a mask of NaN is read.
            for value in (1.0, float('nan')):
                output = function(input, offset, mask * value, **settings)
                assert output[0, 0, 0, 0].item() == 0
        offset[..., axis] = size - 0.25
        assert function(input, offset, mask, **settings)[0, 0, 0, 0].item() == 0.25


@pytest.mark.gpu
def test_more_than_2_31_elements():
    """Indices beyond 32 bits, in input and output."""
    n, h, w, groups, d = 3, 4096, 4100, 4, 16
    input = torch.zeros(n, h, w, groups * d, dtype=torch.float16, device='cuda')
    input[-1, -3:, -5:] = torch.randn(3, 5, groups * d, device='cuda').half()
    offset = torch.zeros(n, h, w, groups * 2, dtype=torch.float16, device='cuda')
    mask = torch.ones(n, h, w, groups, dtype=torch.float16, device='cuda')
    output = dcnv3(input, offset, mask, kernel_size=1, padding=0, groups=groups)
    assert input.numel() > 2**31
    assert torch.equal(output[-1, -4:, -6:], input[-1, -4:, -6:])
