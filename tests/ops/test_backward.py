# SPDX-License-Identifier: Apache-2.0
"""Gradients: numerical -> published numbers -> reference -> compiled kernels."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ops_dcnv3 import dcnv3, dcnv3_reference
from tests.ops.cases import CASE_IDS, CASES, TENSORS, Case, golden_cases
from tests.tolerances import BACKWARD, relative_error

BOTH = pytest.mark.parametrize('function', [dcnv3_reference, dcnv3])


def gradients(function, tensors, kwargs, grad_output=None):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    output = function(*leaves, **kwargs)
    if grad_output is None:
        generator = torch.Generator().manual_seed(1)
        grad_output = torch.randn(output.shape, generator=generator)
    output.backward(grad_output.to(output))
    return [x.grad for x in leaves]


@BOTH
@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_numerical(function, case, device):
    tensors = [x.requires_grad_() for x in case.tensors(torch.float64, device)]
    # Atomic sums on CUDA come in any order: two runs differ in the last digits.
    assert gradcheck(
        lambda *x: function(*x, **case.kwargs),
        tensors,
        nondet_tol=1e-12,
        fast_mode=True,
    )


@BOTH
def test_numerical_in_full(function, device):
    """Every entry of the Jacobian, for one small case."""
    case = Case('full', size=(3, 4), batch=1, groups=2, group_channels=3)
    case.settings = dict(kernel_size=(2, 3), stride=(1, 2), offset_scale=1.5)
    tensors = [x.requires_grad_() for x in case.tensors(torch.float64, device)]
    assert gradcheck(lambda *x: function(*x, **case.kwargs), tensors, nondet_tol=1e-12)


@BOTH
def test_published(function, device):
    for name, settings, arrays in golden_cases():
        grads = gradients(
            function,
            [arrays[k].to(device) for k in TENSORS],
            settings,
            arrays['grad_output'],
        )
        for key, grad in zip(TENSORS, grads, strict=True):
            if (name, key) == ('zero_offsets', 'offset'):
                continue  # its points sit on grid lines, where the derivative jumps
            error = relative_error(grad, arrays[f'grad_{key}'])
            assert error < BACKWARD[torch.float32], (name, key)


@pytest.mark.parametrize('dtype', list(BACKWARD), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_dtypes(case, dtype, device):
    tensors = case.tensors(dtype, device)
    grads = gradients(dcnv3, tensors, case.kwargs)
    grad_output = torch.randn(
        dcnv3(*tensors, **case.kwargs).shape, generator=torch.Generator().manual_seed(1)
    ).to(dtype)
    exact = gradients(
        dcnv3_reference, [x.double() for x in tensors], case.kwargs, grad_output
    )
    for grad, tensor, expected in zip(grads, tensors, exact, strict=True):
        assert grad.dtype == tensor.dtype
        assert relative_error(grad, expected) < BACKWARD[dtype]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_features_with_float_offsets(dtype, device):
    case = Case('mixed', group_channels=16)
    input, offset, mask = case.tensors(torch.float32, device)
    tensors = [input.to(dtype), offset, mask]
    grad_output = torch.randn(input.shape).to(dtype)
    grads = gradients(dcnv3, tensors, case.kwargs, grad_output)
    exact = gradients(
        dcnv3_reference, [x.double() for x in tensors], case.kwargs, grad_output
    )
    assert [x.dtype for x in grads] == [dtype, torch.float32, torch.float32]
    assert relative_error(grads[0], exact[0]) < BACKWARD[dtype]
    for grad, expected in zip(grads[1:], exact[1:], strict=True):
        assert relative_error(grad, expected) < BACKWARD[torch.float32]


@BOTH
def test_bad_positions_get_no_gradient(function, device):
    case = Case('bad', batch=1)
    input, offset, mask = case.tensors(torch.float32, device)
    offset[..., 0] = float('nan')
    offset[..., 3] = float('inf')
    mask[..., 0] = float('nan')
    grads = gradients(function, (input, offset, mask), case.kwargs)
    assert all(x.isfinite().all() for x in grads)
    assert not grads[1][..., :4].any()
    assert not grads[2][..., :2].any()
    assert grads[1][..., 4:].any()


def test_not_contiguous(device):
    case = Case('strided', group_channels=8)
    tensors = case.tensors(torch.float64, device)
    strided = [torch.stack([x, -x], dim=-1)[..., 0] for x in tensors]
    leaves = [x.detach().requires_grad_() for x in strided]
    output = dcnv3(*leaves, **case.kwargs)
    # expand() gives a gradient with strides of zero.
    output.sum().backward()
    expected = gradients(dcnv3_reference, tensors, case.kwargs, torch.ones_like(output))
    for leaf, grad in zip(leaves, expected, strict=True):
        assert relative_error(leaf.grad, grad) < BACKWARD[torch.float64]


def test_reference_is_differentiable_twice():
    case = Case('twice', size=(2, 3), batch=1, groups=2, group_channels=2)
    tensors = [x.requires_grad_() for x in case.tensors()]
    assert gradgradcheck(
        lambda *x: dcnv3_reference(*x, **case.kwargs), tensors, fast_mode=True
    )


def test_compiled_is_not_differentiable_twice(device):
    case = Case('twice')
    tensors = [x.requires_grad_() for x in case.tensors(torch.float32, device)]
    output = dcnv3(*tensors, **case.kwargs)
    (grad,) = torch.autograd.grad(output.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r'differentiable once.*dcnv3_reference'):
        grad.sum().backward()


@pytest.mark.parametrize('dtype', list(BACKWARD), ids=lambda d: str(d)[6:])
def test_deterministic(dtype, device):
    """Asked for, two runs give the same bits, and the right ones."""
    case = Case('deterministic', size=(37, 41), group_channels=16, spread=0.5)
    tensors = case.tensors(dtype, device)
    grad_output = torch.randn(dcnv3(*tensors, **case.kwargs).shape).to(dtype)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            gradients(dcnv3, tensors, case.kwargs, grad_output) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    exact = gradients(
        dcnv3_reference, [x.double() for x in tensors], case.kwargs, grad_output
    )
    for grad, again, expected in zip(first, second, exact, strict=True):
        assert torch.equal(grad, again)
        assert relative_error(grad, expected) < BACKWARD[dtype]
