# SPDX-License-Identifier: Apache-2.0
"""The number of threads changes no bit of any operator, whatever the numbers are.

A thread gets other neighbours for a pixel or a group: nothing may depend on them.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ops_dcnv3 import dcnv3, dcnv3_softmax
from tests.ops.branch import branch_arguments, make_layer
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


@pytest.mark.parametrize(
    ('size', 'groups'),
    [((2, 5, 7, 24), 3), ((1, 61, 93, 24), 3), ((1, 17, 31, 140), 7)],
)
@torch.no_grad()
def test_layer(size, groups):
    torch.manual_seed(0)
    layer = make_layer(size[-1], groups)
    # One point of some groups is far above the others, at few pixels.
    layer.mask.weight[::13] *= 20
    parameters, eps = layer._plain_layers()
    norm = [torch.randn(size[-1]), torch.randn(size[-1])]
    x = torch.randn(size)
    logits = layer.mask(layer.dw_conv(x.permute(0, 3, 1, 2)))
    assert 0.001 < (logits.abs() > 40).float().mean() < 0.1

    def run() -> list[Tensor]:
        settings = (True, *layer.geometry)
        return [ops.layer_forward(x, parameters, eps, norm, 1e-6, *settings)]

    assert_same_bits(run)


@torch.no_grad()
def test_what_a_layer_consists_of():
    torch.manual_seed(0)
    x = 30 * torch.randn(611, 40)
    x.view(-1)[7::1013] = torch.inf
    hidden, back = torch.randn(100, 40), torch.randn(40, 100)
    parameters = [hidden, torch.randn(100), back, torch.randn(40)]
    norm = [torch.randn(40), torch.randn(40)]
    branch = branch_arguments((2, 13, 29, 24), (3, 3))
    branch[0].view(-1)[7::1013] = torch.inf
    for run in (
        lambda: [ops.linear_forward(x, hidden, None)],
        lambda: [ops.mlp_forward(x, parameters, norm, 1e-6, True)],
        lambda: [ops.mlp_forward(x[:37], parameters, [], 0.0, False)],
        lambda: [ops.branch_forward(*branch, 1e-6)],
    ):
        assert_same_bits(run)
