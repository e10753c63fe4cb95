# SPDX-License-Identifier: Apache-2.0
"""DCNv3 in plain PyTorch: the definition, on any device, differentiable twice."""

import torch
from torch import Tensor

from .geometry import Geometry, IntOrPair, check_tensors, make_geometry


def dcnv3_reference(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    kernel_size: IntOrPair = 3,
    stride: IntOrPair = 1,
    padding: IntOrPair = 1,
    dilation: IntOrPair = 1,
    groups: int,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Compute :func:`ops_dcnv3.dcnv3` by indexing, one sampling point at a time.

    Arguments, result and errors are those of :func:`ops_dcnv3.dcnv3`. Half
    precision is computed in float32 and rounded once, as in the compiled kernels.
    Needs the memory of about eight copies of the output.
    """
    geometry = make_geometry(
        kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )
    check_tensors(input, offset, mask, geometry)
    return sample_and_sum(input, offset, mask, geometry)


def sample_and_sum(
    input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> Tensor:
    """Evaluate the operator on checked arguments."""
    n, h, w, c = input.shape
    _, out_h, out_w, _ = offset.shape
    g, points = geometry.groups, geometry.num_points
    acc = torch.promote_types(input.dtype, torch.float32)

    # (N, H*W, G, D) and (N, Ho*Wo, G, P, ...), so that a gather fetches D channels.
    pixels = input.to(acc).reshape(n, h * w, g, c // g)
    offset = offset.to(acc).reshape(n, out_h * out_w, g, points, 2)
    mask = mask.to(acc).reshape(n, out_h * out_w, g, points)

    output = pixels.new_zeros(n, out_h * out_w, g, c // g)
    # Points of the regular grid run x-outer, y-inner: released weights fix the order.
    grid = [
        (i, j)
        for i in range(geometry.kernel_size[1])
        for j in range(geometry.kernel_size[0])
        if not (
            geometry.remove_center
            and (j, i) == (geometry.kernel_size[0] // 2, geometry.kernel_size[1] // 2)
        )
    ]
    for p, (i, j) in enumerate(grid):
        y = _locations(geometry, 0, out_h, j, offset).view(out_h, 1)
        x = _locations(geometry, 1, out_w, i, offset).view(1, out_w)
        scale = geometry.offset_scale
        y = y.expand(out_h, out_w).reshape(-1, 1) + offset[..., p, 1] * scale
        x = x.expand(out_h, out_w).reshape(-1, 1) + offset[..., p, 0] * scale
        sample = _bilinear(pixels, y, x, h, w)
        inside = (y > -1) & (y < h) & (x > -1) & (x < w)
        # A point outside adds zero even if its mask is NaN.
        weight = torch.where(inside, mask[..., p], 0)
        output = output + sample * weight.unsqueeze(-1)
    return output.reshape(n, out_h, out_w, c).to(input.dtype)


def softmax_of(logits: Tensor, geometry: Geometry) -> Tensor:
    """Normalise ``(N, Ho, Wo, G*P)`` over the points of each group."""
    acc = torch.promote_types(logits.dtype, torch.float32)
    by_group = logits.unflatten(-1, (geometry.groups, geometry.num_points))
    return by_group.softmax(-1, dtype=acc).flatten(-2).to(logits.dtype)


def _locations(
    geometry: Geometry, axis: int, out_size: int, tap: int, like: Tensor
) -> Tensor:
    """Return the sampling positions of a kernel tap along one axis, in input pixels.

    ``offset_scale`` widens the grid of taps around the kernel's centre as well as
    the learned offsets.
    """
    dilation = geometry.dilation[axis]
    centre = dilation * (geometry.kernel_size[axis] - 1) // 2
    origin = torch.arange(out_size, dtype=like.dtype, device=like.device)
    origin = origin * geometry.stride[axis] - geometry.padding[axis] + centre
    return origin + (tap * dilation - centre) * geometry.offset_scale


def _bilinear(pixels: Tensor, y: Tensor, x: Tensor, h: int, w: int) -> Tensor:
    """Sample ``pixels`` ``(N, H*W, G, D)`` at ``y, x`` ``(N, Q, G)``.

    Corners outside the image count as zero. A position that is not finite, or so
    far out that all four corners are outside, gives zero and no gradient.
    """
    inside = (y > -1) & (y < h) & (x > -1) & (x < w)
    # Replace bad positions before floor(): NaN would survive a multiplication by 0.
    y = torch.where(inside, y, 0)
    x = torch.where(inside, x, 0)
    y0, x0 = y.detach().floor(), x.detach().floor()
    ly, lx = y - y0, x - x0

    total = torch.zeros_like(y).unsqueeze(-1)
    for dy, wy in ((0, 1 - ly), (1, ly)):
        for dx, wx in ((0, 1 - lx), (1, lx)):
            row, column = y0.long() + dy, x0.long() + dx
            valid = inside & (row >= 0) & (row < h) & (column >= 0) & (column < w)
            index = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
            index = index.unsqueeze(-1).expand(-1, -1, -1, pixels.shape[-1])
            corner = torch.where(valid.unsqueeze(-1), pixels.gather(1, index), 0)
            total = total + (wy * wx).unsqueeze(-1) * corner
    return total
