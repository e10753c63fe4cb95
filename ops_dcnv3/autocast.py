# SPDX-License-Identifier: Apache-2.0
"""What autocast asks of the operator and of layers."""

import torch
from torch import Tensor


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of the autocast region that is active, None outside of one."""
    if device_type not in ('cpu', 'cuda') or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def dtype_under_autocast(x: Tensor) -> torch.dtype:
    """Return the dtype that autocast gives to what a layer gets."""
    dtype = autocast_dtype(x.device.type)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def cast_for_autocast(
    input: Tensor, offset: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors in the dtypes that autocast asks for, if it is on.

    ``input`` takes the autocast dtype. Positions lose up to 1/4 pixel in bfloat16,
    so ``offset`` and ``mask`` stay in float32 where one of them has it.
    float64 is left alone, as by PyTorch's own autocast rules.
    """
    dtype = autocast_dtype(input.device.type)
    if dtype is None or any(
        x.dtype == torch.float64 or not x.is_floating_point()
        for x in (input, offset, mask)
    ):
        return input, offset, mask
    same = offset.dtype == mask.dtype == dtype
    points_dtype = dtype if same else torch.float32
    return input.to(dtype), offset.to(points_dtype), mask.to(points_dtype)
