# SPDX-License-Identifier: Apache-2.0
"""Tensors with numbers that are not finite, and what to demand of the results."""

import torch
from torch import Tensor

from tests.ops.cases import Case

OPERANDS = ('input', 'offset', 'mask', 'grad_output')
NOT_FINITE = [torch.nan, torch.inf, -torch.inf]
CASE = Case('not_finite', size=(5, 7), batch=1, groups=2, group_channels=4)


def tensors_with(operand: str, value: float, dtype: torch.dtype) -> list[Tensor]:
    """Points in, across the border of and outside the image; some numbers replaced."""
    input, offset, mask = CASE.tensors(dtype)
    offset[..., ::2, 0:6] = 30.0  # three points of every second column are outside
    offset[0, 0, 0, 6:8] = torch.tensor([-0.5, -0.5])
    offset[0, 1:3, :, 8:10] = 0.0  # on pixels: two weights of four are zero
    grad_output = torch.randn(input.shape, generator=torch.Generator().manual_seed(2))
    tensors = [input, offset, mask, grad_output.to(dtype)]
    chosen = tensors[OPERANDS.index(operand)].view(-1)
    chosen[torch.arange(3, chosen.numel(), 29)] = value
    return tensors


def assert_same_where_finite(actual: list[Tensor], expected: list[Tensor]) -> None:
    names = ('output', 'grad_input', 'grad_offset', 'grad_mask')
    for name, one, other in zip(names, actual, expected, strict=True):
        finite = other.isfinite()
        assert torch.equal(one.isfinite(), finite), name
        torch.testing.assert_close(
            one[finite], other[finite].to(one), rtol=1e-3, atol=1e-3, msg=name
        )
