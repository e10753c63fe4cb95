# SPDX-License-Identifier: Apache-2.0
"""How far two right implementations may be apart, relative to the largest value.

A sum of n products in a type of relative step eps differs by up to about
sqrt(n) * eps between orders of summation; n is a few hundred here.
"""

import torch

FORWARD = {
    torch.float64: 1e-13,  # eps 2e-16
    torch.float32: 1e-5,  # eps 1.2e-7; positions lose digits with their distance from 0
    torch.bfloat16: 8e-3,  # eps 8e-3, one rounding of a float32 sum
    torch.float16: 1e-3,  # eps 1e-3, one rounding of a float32 sum
}
BACKWARD = {
    torch.float64: 1e-12,
    torch.float32: 1e-4,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert torch.equal(actual.isfinite(), expected.isfinite())
    scale = expected.abs().max().clamp(min=1e-30)
    return ((actual - expected).abs().max() / scale).item()
