# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity go where the reference has them, and no further."""

import pytest
import torch
from torch import Tensor

from ops_dcnv3 import dcnv3, dcnv3_reference, dcnv3_softmax
from tests.ops.not_finite import (
    CASE,
    NOT_FINITE,
    OPERANDS,
    assert_same_where_finite,
    tensors_with,
)


def reference_of_logits(input: Tensor, offset: Tensor, logits: Tensor, **kwargs):
    split = logits.unflatten(-1, (kwargs['groups'], -1))
    return dcnv3_reference(input, offset, split.softmax(-1).flatten(-2), **kwargs)


def results(function, tensors: list[Tensor]) -> list[Tensor]:
    *inputs, grad_output = tensors
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves, **CASE.kwargs)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


@pytest.mark.parametrize('softmax', [False, True])
@pytest.mark.parametrize('value', NOT_FINITE)
@pytest.mark.parametrize('operand', OPERANDS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_as_the_reference(operand, value, dtype, softmax, device):
    tensors = [x.to(device) for x in tensors_with(operand, value, dtype)]
    function = dcnv3_softmax if softmax else dcnv3
    reference = reference_of_logits if softmax else dcnv3_reference
    expected = results(reference, tensors)
    assert_same_where_finite(results(function, tensors), expected)


@pytest.mark.parametrize('softmax', [False, True])
@pytest.mark.parametrize('value', NOT_FINITE)
def test_a_point_outside_gets_no_gradient(value, softmax, device):
    """Whatever comes from above: that is what the documentation says."""
    function = dcnv3_softmax if softmax else dcnv3
    tensors = [x.to(device) for x in CASE.tensors(torch.float32)]
    tensors[1][...] = 100.0
    tensors[2][0, 2, 3, 4] = value
    leaves = [x.clone().requires_grad_() for x in tensors]
    output = function(*leaves, **CASE.kwargs)
    assert not output.any()
    grads = torch.autograd.grad(output, leaves, torch.full_like(output, torch.inf))
    if softmax and value != -torch.inf:
        # The softmax itself has no gradient there.
        assert grads[2].isnan().sum() == CASE.tensors()[2].shape[-1] // CASE.groups
        grads[2].nan_to_num_()
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize('scale', NOT_FINITE)
def test_offset_scale(scale):
    with pytest.raises(ValueError, match='offset_scale: expected a finite float, got'):
        dcnv3(*CASE.tensors(), groups=2, offset_scale=scale)
    with pytest.raises(RuntimeError, match='offset_scale: expected a finite number'):
        torch.ops.ops_dcnv3.dcnv3_forward(
            *CASE.tensors(), [3, 3], [1, 1], [1, 1], [1, 1], 2, scale, False
        )
