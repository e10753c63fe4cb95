# SPDX-License-Identifier: Apache-2.0
"""The public function: checks its arguments, then calls the fastest backend."""

from torch import Tensor

from . import autograd, library
from .autocast import cast_for_autocast
from .geometry import Geometry, IntOrPair, check_tensors, make_geometry
from .reference import sample_and_sum, softmax_of
from .torch_internals import is_forward_mode, is_traced


def dcnv3(
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
    """Sum bilinear samples of ``input`` at learned positions, group by group.

    The output at ``(ho, wo)`` of a group is ``sum_p mask_p * input(y_p, x_p)`` with

    ``y_p = ho * stride - padding + centre + (j * dilation - centre + dy_p) * scale``

    where ``centre = dilation * (kernel - 1) // 2``, ``j`` is the row of the kernel
    tap, ``scale`` is ``offset_scale``; ``x_p`` alike. A sample counts corners outside
    the image as zero. A point whose position is not strictly between -1 and the
    image size, or is not finite, adds nothing and gets no gradient.

    On a device without compiled kernels the PyTorch reference computes the same,
    slowly, after one warning. Under autocast ``input`` is cast to the autocast
    dtype; ``offset`` and ``mask`` keep float32 if either has it.

    Args:
        input: Features, ``(N, H, W, G*D)``, channels last. float64, float32,
            bfloat16 or float16; sums are accumulated in at least float32.
        offset: Shifts in input pixels before ``offset_scale``,
            ``(N, Ho, Wo, G*P*2)``; pairs are (x, y), points run x-outer, y-inner.
            The dtype of ``input``, or float32 for a half-precision ``input``.
        mask: Weight of each point, ``(N, Ho, Wo, G*P)``, dtype of ``offset``. Not
            normalised here.
        kernel_size: Taps of the regular grid, at least 1. Like every argument
            after it up to ``dilation`` an int or an ``(h, w)`` pair.
        stride: Step between output pixels, in input pixels, at least 1.
        padding: Zero border in input pixels, at least 0.
        dilation: Distance between taps before ``offset_scale``, at least 1.
        groups: Number of groups ``G``; divides the channels of ``input``.
        offset_scale: Factor on offsets and on the grid of taps.
        remove_center: Leave out the central tap; both kernel sides must be odd.

    Returns:
        ``(N, Ho, Wo, G*D)``, contiguous, dtype and device of ``input``; ``Ho`` and
        ``Wo`` are those of a Conv2d with the same settings. Differentiable once
        (``dcnv3_reference`` is differentiable twice).

    Raises:
        TypeError: An argument's type, a dtype or a layout is not accepted.
        ValueError: A shape, device or setting disagrees; the message names the
            argument, what was expected and what came.

    Source: InternImage, arXiv:2211.05778, eq. 2. Point order and border rule:
    OpenGVLab/InternImage@31c962d, detection/ops_dcnv3/src/cuda/
    dcnv3_im2col_cuda.cuh, dcnv3_im2col_gpu_kernel.
    """
    geometry = make_geometry(
        kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )
    return apply(input, offset, mask, geometry)


def dcnv3_softmax(
    input: Tensor,
    offset: Tensor,
    logits: Tensor,
    *,
    kernel_size: IntOrPair = 3,
    stride: IntOrPair = 1,
    padding: IntOrPair = 1,
    dilation: IntOrPair = 1,
    groups: int,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Compute :func:`dcnv3` with the softmax of ``logits`` for a mask, in one pass.

    Args:
        input: As for :func:`dcnv3`.
        offset: As for :func:`dcnv3`.
        logits: ``(N, Ho, Wo, G*P)``, dtype of ``offset``. The softmax runs over the
            ``P`` points of a group, in at least float32. Points outside the image
            have their share in it.
        kernel_size: As for :func:`dcnv3`.
        stride: As for :func:`dcnv3`.
        padding: As for :func:`dcnv3`.
        dilation: As for :func:`dcnv3`.
        groups: As for :func:`dcnv3`.
        offset_scale: As for :func:`dcnv3`.
        remove_center: As for :func:`dcnv3`.

    Returns:
        As :func:`dcnv3`.

    Raises:
        TypeError: As :func:`dcnv3`.
        ValueError: As :func:`dcnv3`, which calls ``logits`` ``mask``.
    """
    geometry = make_geometry(
        kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    )
    return apply(input, offset, logits, geometry, softmax=True)


def apply(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    geometry: Geometry,
    softmax: bool = False,
) -> Tensor:
    """Check the tensors and run the fastest backend."""
    if (
        isinstance(input, Tensor)
        and isinstance(offset, Tensor)
        and isinstance(mask, Tensor)
    ):
        input, offset, mask = cast_for_autocast(input, offset, mask)
    # A trace holds sizes as tensors, of which Python can not decide; the kernels check.
    if not is_traced():
        check_tensors(input, offset, mask, geometry)
    has_kernels = library.has_kernels_for(input.device.type)
    if has_kernels and not is_forward_mode():
        return autograd.run(input, offset, mask, *geometry, softmax)
    if not has_kernels:
        library.warn_slow(input.device.type)
    if softmax:
        mask = softmax_of(mask, geometry)
    return sample_and_sum(input, offset, mask, geometry)
