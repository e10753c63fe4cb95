# SPDX-License-Identifier: Apache-2.0
"""What runs again in the backward pass, and with which parameters."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ops_dcnv3 import AsBuilt, checkpointed, recomputed
from tests.tolerances import BACKWARD, relative_error


class Counted(AsBuilt):
    """A linear layer and a tanh, whose second half may run again."""

    def __init__(self, recompute) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5)
        self.recompute = recompute
        self.calls = []
        self.remember_build()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return recomputed(self, self.end, x, 2.0) if self.recompute else self.end(x, 2)

    def end(self, x: Tensor, factor: float) -> Tensor:
        self.calls.append(1)
        return factor * self.second(x.tanh()).tanh()


class Checkpointed(nn.Module):
    def __init__(self, inner: Counted) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpointed(self.inner, x)


def make(recompute=False, whole=False):
    torch.manual_seed(0)
    module = Counted(recompute)
    return Checkpointed(module) if whole else module


X = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
BOTH = pytest.mark.parametrize('whole', [False, True])


def gradients(module, call, parameters):
    x = X.clone().requires_grad_()
    return torch.autograd.grad(call(x).sin().sum(), [x, *parameters])


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < BACKWARD[torch.float32]


@BOTH
def test_runs_twice_and_computes_the_same(whole):
    plain, module = make(), make(recompute=not whole, whole=whole)
    expected = gradients(plain, plain, plain.parameters())
    assert_same(gradients(module, module, module.parameters()), expected)
    counted = module.inner if whole else module
    assert len(plain.calls) == 1
    assert len(counted.calls) == 2
    with torch.no_grad():
        assert torch.equal(module(X), plain(X))
    assert len(counted.calls) == 3


@pytest.mark.parametrize('kind', [Tensor, nn.Parameter])
@BOTH
def test_with_parameters_of_functional_call(whole, kind):
    """They are gone when the backward pass begins."""
    plain, module = make(), make(recompute=not whole, whole=whole)
    generator = torch.Generator().manual_seed(2)
    values = [torch.randn(p.shape, generator=generator) for p in plain.parameters()]
    given = [
        nn.Parameter(x) if kind is nn.Parameter else x.requires_grad_() for x in values
    ]
    results = []
    for one in (plain, module):
        names = [name for name, _ in one.named_parameters()]
        others = dict(zip(names, given, strict=True))
        results.append(
            gradients(one, lambda x, m=one, o=others: functional_call(m, o, x), given)
        )
    assert_same(results[1], results[0])


@BOTH
def test_under_a_transform(whole):
    module = make(recompute=not whole, whole=whole)
    assert torch.allclose(vmap(module)(X), module(X))
    counted = module.inner if whole else module
    assert len(counted.calls) == 2


def test_what_was_changed_is_not_run_again():
    module, seen = make(recompute=True), []
    module.second.register_forward_hook(lambda *_: seen.append(1))
    gradients(module, module, module.parameters())
    assert len(seen) == len(module.calls) == 1


def test_what_is_watched_is_not_run_again():
    module, seen = make(recompute=True), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda part, *_: seen.append(part)
    )
    try:
        gradients(module, module, module.parameters())
    finally:
        handle.remove()
    assert len(module.calls) == 1
    assert seen == [module.first, module.second, module]


def test_random_numbers_of_a_checkpointed_module():
    """Those of its forward pass come again."""
    module = nn.Sequential(nn.Linear(3, 400), nn.Dropout(0.5))
    x = X.clone().requires_grad_()
    output = checkpointed(module, x)
    (grad,) = torch.autograd.grad(output.sum(), x)
    kept = (output != 0).float() * 2
    assert relative_error(grad, kept @ module[0].weight) < BACKWARD[torch.float32]
