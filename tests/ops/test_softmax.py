# SPDX-License-Identifier: Apache-2.0
"""``dcnv3_softmax`` is ``dcnv3`` on the softmax of its last argument."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from ops_dcnv3 import dcnv3, dcnv3_reference, dcnv3_softmax, library
from tests.ops.cases import CASE_IDS, CASES, Case
from tests.tolerances import BACKWARD, FORWARD, relative_error


def in_two_steps(input: Tensor, offset: Tensor, logits: Tensor, **kwargs) -> Tensor:
    """Compute the expected result in float64."""
    groups = kwargs['groups']
    mask = F.softmax(logits.double().unflatten(-1, (groups, -1)), -1).flatten(-2)
    return dcnv3_reference(input.double(), offset.double(), mask, **kwargs)


@pytest.mark.parametrize('dtype', list(FORWARD), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_forward(case: Case, dtype: torch.dtype, device):
    tensors = case.tensors(dtype, device)
    output = dcnv3_softmax(*tensors, **case.kwargs)
    assert (output.dtype, output.is_contiguous()) == (dtype, True)
    expected = in_two_steps(*tensors, **case.kwargs)
    assert relative_error(output, expected) < FORWARD[dtype]


@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_numerical_gradients(case: Case, device):
    tensors = [x.requires_grad_() for x in case.tensors(torch.float64, device)]
    # Atomic sums on CUDA come in any order: two runs differ in the last digits.
    assert gradcheck(
        lambda *x: dcnv3_softmax(*x, **case.kwargs),
        tensors,
        nondet_tol=1e-12,
        fast_mode=True,
    )


@pytest.mark.parametrize('dtype', list(BACKWARD), ids=lambda d: str(d)[6:])
def test_gradients(dtype: torch.dtype, device):
    case = Case('gradients', groups=2, group_channels=16)
    leaves = [x.requires_grad_() for x in case.tensors(dtype, device)]
    output = dcnv3_softmax(*leaves, **case.kwargs)
    grad_output = torch.randn_like(output)
    grads = torch.autograd.grad(output, leaves, grad_output)
    expected = torch.autograd.grad(
        in_two_steps(*leaves, **case.kwargs), leaves, grad_output.double()
    )
    for grad, other in zip(grads, expected, strict=True):
        assert relative_error(grad, other) < BACKWARD[dtype]


def test_large_logits_do_not_overflow(device):
    case = Case('large')
    input, offset, logits = case.tensors(torch.float32, device)
    logits = logits * 1000 + 5e4
    output = dcnv3_softmax(input, offset, logits, **case.kwargs)
    expected = in_two_steps(input, offset, logits, **case.kwargs)
    assert relative_error(output, expected) < FORWARD[torch.float32]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('size', [39.9, 40.1, 90.0, 800.0])
def test_logits_up_to_a_size(size: float, dtype: torch.dtype, device):
    """Small ones take a shorter way; one large group sends its neighbours the other."""
    case = Case('sizes', size=(5, 23), groups=2, group_channels=5)
    input, offset, logits = case.tensors(dtype, device)
    logits[0] = size * (2 * torch.rand_like(logits[0]) - 1)
    logits[0, 1, :, 3] = size
    logits[0, 2, :, 12] = -size
    logits[0, 3, 5, 13] = -torch.inf
    logits.requires_grad_()
    output = dcnv3_softmax(input, offset, logits, **case.kwargs)
    expected = in_two_steps(input, offset, logits, **case.kwargs)
    assert relative_error(output, expected) < FORWARD[dtype]
    grad_output = torch.randn_like(output)
    (grad,) = torch.autograd.grad(output, logits, grad_output)
    (exact,) = torch.autograd.grad(expected, logits, grad_output.double())
    assert relative_error(grad, exact) < BACKWARD[dtype]


def test_nan_stays_in_its_group(device):
    case = Case('nan', groups=2, group_channels=3)
    input, offset, logits = case.tensors(torch.float32, device)
    logits[1, 2, 3, 4] = torch.nan  # of the first group's nine
    output = dcnv3_softmax(input, offset, logits, **case.kwargs)
    is_nan = output.isnan()
    assert is_nan[1, 2, 3, :3].all()
    assert is_nan.sum() == 3


def test_without_kernels(monkeypatch: pytest.MonkeyPatch):
    case = Case('reference')
    tensors = case.tensors(torch.float64)
    expected = dcnv3_softmax(*tensors, **case.kwargs)
    monkeypatch.setattr(library, 'has_kernels_for', lambda device: False)
    monkeypatch.setattr(library, 'warn_slow', lambda device: None)
    output = dcnv3_softmax(*tensors, **case.kwargs)
    assert relative_error(output, expected) < FORWARD[torch.float64]


def test_settings_are_those_of_dcnv3():
    input, offset, logits = Case('settings').tensors()
    for function in (dcnv3, dcnv3_softmax):
        with pytest.raises(ValueError, match=r'mask: expected \(2, 6, 9, 27\)'):
            function(input, offset, logits[..., 1:], groups=3)


def test_opcheck(device):
    tensors = [x.requires_grad_() for x in Case('opcheck').tensors(device=device)]
    settings = ([3, 3], [1, 1], [1, 1], [1, 1], 3, 1.0, False, True)
    torch.library.opcheck(
        torch.ops.ops_dcnv3.dcnv3_forward.default, (*tensors, *settings)
    )
