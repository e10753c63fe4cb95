# SPDX-License-Identifier: Apache-2.0
"""What PyTorch knows of the compiled operators: shapes, gradients, autocast."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ops_dcnv3 import dcnv3, dcnv3_reference
from tests.ops.cases import Case
from tests.tolerances import BACKWARD, FORWARD, relative_error

CASE = Case(
    'registration',
    settings=dict(kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=1),
)
SETTINGS = ([3, 5], [2, 1], [1, 2], [1, 1], 3, 1.0, False)


@pytest.mark.parametrize('dtype', list(FORWARD), ids=lambda d: str(d)[6:])
def test_opcheck_forward(dtype, device):
    tensors = [x.requires_grad_() for x in CASE.tensors(dtype, device)]
    # Half-precision gradients are compared by test_backward, against float64.
    torch.library.opcheck(
        torch.ops.ops_dcnv3.dcnv3_forward.default,
        (*tensors, *SETTINGS),
        atol=1e-2 if dtype.itemsize == 2 else 1e-5,
        rtol=1e-2 if dtype.itemsize == 2 else 1e-5,
    )


def test_opcheck_backward(device):
    input, offset, mask = CASE.tensors(torch.float64, device)
    grad_output = torch.randn_like(dcnv3(input, offset, mask, **CASE.kwargs))
    torch.library.opcheck(
        torch.ops.ops_dcnv3.dcnv3_backward.default,
        (grad_output, input, offset, mask, *SETTINGS),
    )


def test_fake_and_meta_tensors():
    tensors = CASE.tensors(torch.bfloat16)
    real = dcnv3(*tensors, **CASE.kwargs)
    with FakeTensorMode() as mode:
        fake = dcnv3(*map(mode.from_tensor, tensors), **CASE.kwargs)
    meta = dcnv3(*(x.to('meta') for x in tensors), **CASE.kwargs)
    for other in (fake, meta):
        assert (other.shape, other.dtype) == (real.shape, real.dtype)
        assert other.stride() == real.stride()


def test_large_meta_tensor_costs_nothing():
    """More elements than 32 bits count, and no memory."""
    case = Case('large', size=(4096, 4099), batch=9, groups=4, group_channels=16)
    input = torch.empty(9, 4096, 4099, 64, device='meta')
    offset = torch.empty(9, 4096, 4099, 72, device='meta')
    mask = torch.empty(9, 4096, 4099, 36, device='meta')
    output = dcnv3(input, offset, mask, **case.kwargs)
    assert output.shape == input.shape
    assert output.numel() > 2**31


@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [False, True])
def test_compile(dynamic, device):
    """One graph, forward and backward; sizes may change where asked for."""
    compiled = torch.compile(
        lambda *x: dcnv3(*x, **CASE.kwargs).square(),
        fullgraph=True,
        dynamic=dynamic,
        backend='aot_eager',
    )
    for size in ((6, 9), (8, 7)) if dynamic else ((6, 9),):
        tensors = Case('compile', size=size, settings=CASE.settings).tensors()
        results = []
        for function in (compiled, lambda *x: dcnv3(*x, **CASE.kwargs).square()):
            leaves = [x.to(device).requires_grad_() for x in tensors]
            output = function(*leaves)
            output.sum().backward()
            results.append((output, *(x.grad for x in leaves)))
        for actual, expected in zip(*results, strict=True):
            assert relative_error(actual, expected) < BACKWARD[torch.float64]


AUTOCAST = pytest.mark.parametrize(
    'dtypes',
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)


@AUTOCAST
@pytest.mark.parametrize('direct', [False, True])
def test_autocast(dtypes, direct, device):
    """Any mix works; features are rounded, positions keep what they have."""
    case = Case('autocast', size=(5, 30), spread=8.0)
    tensors = [
        x.to(d) for x, d in zip(case.tensors(device=device), dtypes, strict=True)
    ]
    leaves = [x.clone().requires_grad_() for x in tensors]
    with torch.autocast(device.type, torch.bfloat16):
        if direct:
            settings = ([3, 3], [1, 1], [1, 1], [1, 1], 3, 1.0, False)
            output = torch.ops.ops_dcnv3.dcnv3_forward(*leaves, *settings)
        else:
            output = dcnv3(*leaves, **case.kwargs)
    assert output.dtype == torch.bfloat16
    exact = dcnv3_reference(
        tensors[0].bfloat16().double(),
        *(x.double() for x in tensors[1:]),
        **case.kwargs,
    )
    assert relative_error(output, exact) < FORWARD[torch.bfloat16]
    output.sum().backward()
    assert [x.grad.dtype for x in leaves] == list(dtypes)


def test_autocast_leaves_float64_alone(device):
    tensors = CASE.tensors(torch.float64, device)
    with torch.autocast(device.type, torch.bfloat16):
        output = dcnv3(*tensors, **CASE.kwargs)
    assert torch.equal(output, dcnv3(*tensors, **CASE.kwargs))
    assert output.dtype == torch.float64
