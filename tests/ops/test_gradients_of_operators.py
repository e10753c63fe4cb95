# SPDX-License-Identifier: Apache-2.0
"""No operator loses a gradient in silence: it computes it, or says that it cannot."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.branch import (
    AROUND,
    branch_arguments,
    layer_arguments,
    mlp_arguments,
)
from tests.ops.cases import Case

ops = torch.ops.ops_dcnv3
SETTINGS = ([3, 3], [1, 1], [1, 1], [1, 1], 3, 1.0, False)


FOR_INFERENCE = {
    'branch_forward': lambda: (*branch_arguments((2, 5, 7, 8), (3, 5)), 1e-6),
    'mlp_forward': lambda: in_order(
        ops.mlp_forward, mlp_arguments((2, 3, 24), 9, **AROUND[1])
    ),
    'layer_forward': lambda: in_order(
        ops.layer_forward,
        layer_arguments((2, 5, 7, 24), 3, center_scale=True, **AROUND[1]),
    ),
}


def in_order(operator: Any, arguments: dict) -> tuple:
    schema = operator.default._schema
    return tuple(arguments[argument.name] for argument in schema.arguments)


ALL = FOR_INFERENCE | {
    'dcnv3_forward': lambda: (*Case('raw').tensors(), *SETTINGS),
    'dcnv3_backward': lambda: (
        torch.randn(2, 6, 9, 15).double(),
        *Case('raw').tensors(),
        *SETTINGS,
    ),
}


def tensors_of(arguments: tuple) -> list[Tensor]:
    found = []
    for argument in arguments:
        found += argument if isinstance(argument, list) else [argument]
    return [x for x in found if isinstance(x, Tensor)]


@pytest.mark.parametrize('name', FOR_INFERENCE)
def test_refuses_to_lose_a_gradient(name):
    operator, arguments = getattr(ops, name), FOR_INFERENCE[name]()
    expected = operator(*arguments)
    message = rf'ops_dcnv3::{name} has no gradient, as it is for inference: .*no_grad'
    for tensor in tensors_of(arguments):
        tensor.requires_grad_()
        with pytest.raises(RuntimeError, match=message):
            operator(*arguments)
        with torch.no_grad():
            assert torch.equal(operator(*arguments), expected)
        with torch.inference_mode():
            assert torch.equal(operator(*arguments), expected)
        tensor.requires_grad_(False)


@pytest.mark.parametrize('name', FOR_INFERENCE)
def test_fake_kernel(name):
    """Also under torch.compile, where the gradient would vanish as well."""
    operator, arguments = getattr(ops, name), FOR_INFERENCE[name]()
    torch.library.opcheck(operator.default, arguments)
    compiled = torch.compile(operator, backend='aot_eager', fullgraph=True)
    assert torch.equal(compiled(*arguments), operator(*arguments))
    arguments[0].requires_grad_()
    with pytest.raises(Exception, match='has no gradient, as it is for inference'):
        compiled(*arguments)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('function', [torch.func.grad, torch.func.jacrev])
def test_reverse_transforms_of_raw_operators(function, name):
    operator, (x, *others) = getattr(ops, name), ALL[name]()

    def loss(x: Tensor) -> Tensor:
        output = operator(x, *others)
        return (output if isinstance(output, Tensor) else output[0]).sum()

    with pytest.raises(RuntimeError, match=rf'ops_dcnv3::{name} has no gradient'):
        function(loss)(x)


@pytest.mark.parametrize('with_gradients', [False, True])
@pytest.mark.parametrize('name', ALL)
def test_forward_mode_of_raw_operators(name, with_gradients):
    """A tangent would be dropped, and the derivative be zero."""
    operator, (x, *others) = getattr(ops, name), ALL[name]()
    with (
        torch.set_grad_enabled(with_gradients),
        pytest.raises(RuntimeError, match=rf'ops_dcnv3::{name} .* forward mode \(jvp'),
    ):
        torch.func.jvp(lambda x: operator(x, *others), (x,), (x,))
