# SPDX-License-Identifier: Apache-2.0
"""Sizes of a DCNv3 call: what the arguments mean and which ones fit together.

Legend: ``N`` batch, ``H W`` input, ``Ho Wo`` output, ``G`` groups, ``D`` channels
of a group, ``P`` sampling points of a group. Pairs are ``(h, w)``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import flag, is_integer, number

#: An int for both directions, or an ``(h, w)`` pair.
IntOrPair = int | tuple[int, int]

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_HALF_DTYPES = (torch.bfloat16, torch.float16)


def to_pair(name: str, value: IntOrPair, minimum: int) -> tuple[int, int]:
    """Return ``value`` as an ``(h, w)`` pair of ints that are at least ``minimum``.

    Raises:
        TypeError: Not an int and not a pair of ints.
        ValueError: Smaller than ``minimum``.
    """
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not (is_integer(pair[0]) and is_integer(pair[1])):
        raise TypeError(f'{name}: expected an int or an (h, w) pair, got {value!r}')
    if min(pair) < minimum:
        raise ValueError(f'{name}: expected at least {minimum}, got {value!r}')
    return int(pair[0]), int(pair[1])


class Geometry(NamedTuple):
    """The settings of a DCNv3 call. Build it with :func:`make_geometry`."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_scale: float
    remove_center: bool

    @property
    def num_points(self) -> int:
        """Sampling points of one group, ``P``."""
        return self.kernel_size[0] * self.kernel_size[1] - int(self.remove_center)

    @property
    def is_centered(self) -> bool:
        """Whether output pixel ``o`` sits on input pixel ``o * stride``."""
        return all(
            2 * pad == dilation * (kernel - 1)
            for kernel, pad, dilation in zip(
                self.kernel_size, self.padding, self.dilation, strict=True
            )
        )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return ``(Ho, Wo)`` for an input of ``height`` x ``width``, as in Conv2d.

        A size is 0 or less where the kernel does not fit.
        """
        (kernel_h, kernel_w), (dilation_h, dilation_w) = self.kernel_size, self.dilation
        room_h = height + 2 * self.padding[0] - dilation_h * (kernel_h - 1) - 1
        room_w = width + 2 * self.padding[1] - dilation_w * (kernel_w - 1) - 1
        return room_h // self.stride[0] + 1, room_w // self.stride[1] + 1


def make_geometry(
    kernel_size: IntOrPair,
    stride: IntOrPair,
    padding: IntOrPair,
    dilation: IntOrPair,
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Geometry:
    """Normalise and check the settings that need no tensor.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or ``remove_center`` comes with a
            kernel that has no centre (an even side) or no other point (1 x 1).
    """
    kernel = to_pair('kernel_size', kernel_size, 1)
    if not is_integer(groups):
        raise TypeError(f'groups: expected an int, got {groups!r}')
    if groups < 1:
        raise ValueError(f'groups: expected at least 1, got {groups}')
    offset_scale = number(
        'offset_scale', offset_scale, 'a finite float', lambda scale: True
    )
    remove_center = flag('remove_center', remove_center)
    if remove_center and (kernel[0] % 2 == 0 or kernel[1] % 2 == 0 or kernel == (1, 1)):
        raise ValueError(
            'remove_center: expected a kernel_size with odd sides and more than '
            f'one point, got {kernel}'
        )
    return Geometry(
        kernel,
        to_pair('stride', stride, 1),
        to_pair('padding', padding, 0),
        to_pair('dilation', dilation, 1),
        int(groups),
        offset_scale,
        remove_center,
    )


def check_tensors(
    input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[int, int]:
    """Check that the tensors fit the settings and return ``(Ho, Wo)``.

    Raises:
        TypeError: Not a tensor, not strided, or a dtype that is not accepted.
        ValueError: A shape or a device that disagrees.
    """
    for name, tensor in (('input', input), ('offset', offset), ('mask', mask)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name}: expected a Tensor, got {type(tensor).__name__}')
        if tensor.layout != torch.strided:
            raise TypeError(
                f'{name}: expected a dense (strided) tensor, got layout {tensor.layout}'
            )
        if tensor.dim() != 4:
            raise ValueError(
                f'{name}: expected 4 dimensions (N, H, W, C), '
                f'got shape {tuple(tensor.shape)}'
            )
        if tensor.device != input.device:
            raise ValueError(
                f'{name}: expected device {input.device} as input, got {tensor.device}'
            )
    if input.dtype not in FLOAT_DTYPES:
        raise TypeError(f'input: expected one of {FLOAT_DTYPES}, got {input.dtype}')
    expected_dtypes = [input.dtype]
    if input.dtype in _HALF_DTYPES:
        expected_dtypes.append(torch.float32)
    if offset.dtype not in expected_dtypes:
        raise TypeError(
            f'offset: expected {" or ".join(map(str, expected_dtypes))} '
            f'for an input of {input.dtype}, got {offset.dtype}'
        )
    if mask.dtype != offset.dtype:
        raise TypeError(f'mask: expected {offset.dtype} as offset, got {mask.dtype}')

    n, h, w, c = input.shape
    groups, points = geometry.groups, geometry.num_points
    if c == 0 or c % groups:
        raise ValueError(
            f'groups: expected a divisor of the {c} channels of input, got {groups}'
        )
    out_h, out_w = geometry.output_size(h, w)
    if h < 1 or w < 1 or out_h < 1 or out_w < 1:
        raise ValueError(
            f'input: the output is empty, ({out_h}, {out_w}), for size ({h}, {w}), '
            f'kernel_size {geometry.kernel_size}, stride {geometry.stride}, '
            f'padding {geometry.padding}, dilation {geometry.dilation}; '
            'expected a larger input or more padding'
        )
    for name, tensor, channels, formula in (
        ('offset', offset, groups * points * 2, 'G*P*2'),
        ('mask', mask, groups * points, 'G*P'),
    ):
        expected = (n, out_h, out_w, channels)
        if tensor.shape != expected:
            raise ValueError(
                f'{name}: expected {expected} = (N, Ho, Wo, {formula}), '
                f'got {tuple(tensor.shape)}'
            )
    return out_h, out_w
