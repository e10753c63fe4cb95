# SPDX-License-Identifier: Apache-2.0
"""The number of threads changes no bit of any operator, whatever the numbers are.

A thread gets other neighbours for a pixel or a group: nothing may depend on them.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ops_dcnv3 import dcnv3, dcnv3_softmax
from tests.ops.branch import (
    AROUND,
    branch_arguments,
    layer_arguments,
    mlp_arguments,
)
from tests.ops.cases import Case
from tests.tolerances import FORWARD

ops = torch.ops.ops_dcnv3


def with_threads(call: Callable[[], Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    default = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(default)
    return results


def assert_same_bits(call: Callable[[], Sequence[Tensor]]) -> None:
    first, *others = with_threads(call)
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0))
            assert torch.equal(one.isnan(), two.isnan())


def extreme(logits: Tensor) -> Tensor:
    """A few are far from zero, as many as there are kinds of neighbours for them."""
    flat = logits.flatten()
    flat[5::97] = 41.0
    flat[11::143] = -300.0
    flat[17::411] = torch.inf
    flat[23::457] = torch.nan
    return flat.view_as(logits)


@pytest.mark.parametrize('softmax', [False, True])
@pytest.mark.parametrize('dtype', list(FORWARD), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    'case',
    [
        Case('rows', size=(13, 29), batch=1, groups=2, group_channels=16),
        Case('groups', size=(7, 11), batch=2, groups=7, group_channels=5),
        Case('wide', size=(5, 17), groups=1, settings=dict(kernel_size=5, padding=2)),
    ],
    ids=lambda case: case.name,
)
def test_operator(case, dtype, softmax):
    input, offset, mask = case.tensors(dtype)
    tensors = [input, offset, extreme(mask)]
    function = dcnv3_softmax if softmax else dcnv3

    def run() -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        output = function(*leaves, **case.kwargs)
        return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]

    assert_same_bits(run)


@pytest.mark.parametrize('settings', AROUND, ids=range(len(AROUND)))
@pytest.mark.parametrize(
    ('size', 'groups'),
    [((2, 5, 7, 24), 3), ((1, 61, 93, 24), 3), ((1, 17, 31, 140), 7)],
)
@torch.no_grad()
def test_layer(size, groups, settings):
    arguments = layer_arguments(size, groups, center_scale=True, **settings)
    # One point of some groups is far above the others, at few pixels.
    arguments['mask'][0][::13] *= 20
    assert_same_bits(lambda: [ops.layer_forward(**arguments)])


@pytest.mark.parametrize('settings', AROUND, ids=range(len(AROUND)))
@pytest.mark.parametrize('rows', [37, 611, 3000])
@torch.no_grad()
def test_mlp(rows, settings):
    arguments = mlp_arguments((rows, 40), 100, **settings)
    arguments['input'] *= 30
    arguments['input'].view(-1)[7::1013] = torch.inf
    assert_same_bits(lambda: [ops.mlp_forward(**arguments)])


@torch.no_grad()
def test_branch():
    arguments = branch_arguments((2, 13, 29, 24), (3, 3))
    arguments[0].view(-1)[7::1013] = torch.inf
    assert_same_bits(lambda: [ops.branch_forward(*arguments, 1e-6)])
