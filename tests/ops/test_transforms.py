# SPDX-License-Identifier: Apache-2.0
"""The transforms of ``torch.func`` on the operator, against the plain reference."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

from ops_dcnv3 import dcnv3, dcnv3_reference, dcnv3_softmax
from tests.ops.cases import Case
from tests.tolerances import BACKWARD, relative_error

CASE = Case(
    'transforms',
    size=(3, 4),
    groups=2,
    group_channels=2,
    settings=dict(kernel_size=(1, 3), padding=(0, 1), offset_scale=1.5),
)


def reference_softmax(input, offset, logits, **kwargs):
    mask = logits.unflatten(-1, (kwargs['groups'], -1)).softmax(-1).flatten(-2)
    return dcnv3_reference(input, offset, mask, **kwargs)


FUNCTIONS = pytest.mark.parametrize(
    ('function', 'reference'),
    [(dcnv3, dcnv3_reference), (dcnv3_softmax, reference_softmax)],
)


def gradients(function):
    """Return a function that returns the gradients of all operands."""
    return grad(lambda *x: function(*x).square().sum(), argnums=ALL)


TENSORS = tuple(CASE.tensors())
TANGENTS = tuple(CASE.tensors(seed=1))
BATCH = tuple(torch.stack([x, 0.7 * x, -x]) for x in TENSORS)
ALL = (0, 1, 2)


def vmap_of_some(f):
    input, _, mask = BATCH
    mapped = vmap(f, in_dims=(1, None, 4), out_dims=2)
    return mapped(input.movedim(0, 1), TENSORS[1], mask.movedim(0, 4))


def gradient_of_vmap(f):
    return grad(lambda *x: vmap(f)(*x).square().sum(), argnums=ALL)(*BATCH)


def hessian_of_offset(f):
    input, offset, mask = TENSORS
    return hessian(lambda x: f(input, x, mask).square().sum())(offset)


TRANSFORMS = {
    'grad': lambda f: gradients(f)(*TENSORS),
    'vmap': lambda f: vmap(f)(*BATCH),
    'vmap_of_some': vmap_of_some,
    'per_sample': lambda f: vmap(gradients(f))(*BATCH),
    'gradient_of_vmap': gradient_of_vmap,
    'jacrev': lambda f: jacrev(f, argnums=ALL)(*TENSORS),
    'jacfwd': lambda f: jacfwd(f, argnums=ALL)(*TENSORS),
    'jvp': lambda f: jvp(f, TENSORS, TANGENTS),
    'hessian_of_offset': hessian_of_offset,
}


@FUNCTIONS
@pytest.mark.parametrize('transform', TRANSFORMS)
def test_as_the_reference(function, reference, transform):
    run = TRANSFORMS[transform]
    actual = tree_leaves(run(partial(function, **CASE.kwargs)))
    expected = tree_leaves(run(partial(reference, **CASE.kwargs)))
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < BACKWARD[torch.float64]


@FUNCTIONS
@pytest.mark.parametrize('with_gradients', [False, True])
def test_tangents_are_not_lost(function, reference, with_gradients):
    tangents = []
    for call in (function, reference):
        with forward_ad.dual_level(), torch.set_grad_enabled(with_gradients):
            duals = map(forward_ad.make_dual, TENSORS, TANGENTS)
            output = call(*duals, **CASE.kwargs)
            tangents.append(forward_ad.unpack_dual(output).tangent)
    assert relative_error(*tangents) < BACKWARD[torch.float64]


def test_reverse_mode_twice():
    with pytest.raises(RuntimeError, match=r'differentiable once.*dcnv3_reference'):
        jacrev(gradients(partial(dcnv3, **CASE.kwargs)))(*TENSORS)
