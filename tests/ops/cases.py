# SPDX-License-Identifier: Apache-2.0
"""Inputs for the operator's tests, and the slow oracle that judges them."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import torch

from tests.paths import DATA

GOLDEN = DATA / 'dcnv3_op.npz'
TENSORS = ('input', 'offset', 'mask')


@dataclass
class Case:
    """Settings of a call, lopsided on purpose: a swap of h and w must fail."""

    name: str
    size: tuple[int, int] = (6, 9)
    batch: int = 2
    groups: int = 3
    group_channels: int = 5
    spread: float = 2.0
    settings: dict = field(default_factory=dict)

    @property
    def kwargs(self) -> dict:
        return dict(groups=self.groups, **self.settings)

    def tensors(self, dtype=torch.float64, device='cpu', seed=0):
        """Random (input, offset, mask) of the right shapes."""
        settings = dict(
            kernel_size=3, stride=1, padding=1, dilation=1, remove_center=False
        )
        settings.update(self.settings)
        kh, kw, sh, sw, ph, pw, dh, dw = (
            side
            for name in ('kernel_size', 'stride', 'padding', 'dilation')
            for side in pair(settings[name])
        )
        h, w = self.size
        out_h = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1
        out_w = (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        points = self.groups * (kh * kw - int(settings['remove_center']))
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(dtype).to(device)

        return (
            normal(self.batch, h, w, self.groups * self.group_channels),
            normal(self.batch, out_h, out_w, points * 2) * self.spread,
            normal(self.batch, out_h, out_w, points),
        )


CASES = [
    Case('default'),
    Case('one_image', batch=1, size=(1, 4)),
    Case('no_image', batch=0),
    Case('far_offsets', spread=20.0),
    Case('tiny_offsets', spread=0.01),
    Case('lopsided_kernel', settings=dict(kernel_size=(3, 5), padding=(1, 2))),
    Case('even_kernel', settings=dict(kernel_size=(2, 4), padding=(0, 3))),
    # The centre between two taps is the lower one, which only a scale shows.
    Case(
        'even_kernel_scaled',
        settings=dict(kernel_size=(2, 4), padding=(0, 3), offset_scale=1.5),
    ),
    Case('stride', settings=dict(stride=(2, 1), padding=(1, 0))),
    Case(
        'everything',
        size=(11, 14),
        groups=2,
        group_channels=7,
        settings=dict(
            kernel_size=(3, 5),
            stride=(2, 3),
            padding=(2, 1),
            dilation=(3, 2),
            offset_scale=1.75,
        ),
    ),
    Case('remove_center', settings=dict(kernel_size=(5, 3), remove_center=True)),
    Case('large_kernel', settings=dict(kernel_size=(7, 9), padding=(3, 4))),
    Case('no_padding', settings=dict(padding=0)),
    Case('one_channel', groups=4, group_channels=1),
    Case('sixteen_channels', groups=2, group_channels=16),
    Case('many_channels', groups=1, group_channels=39),
    Case('many_groups', size=(4, 3), groups=36, group_channels=2),
]
CASE_IDS = [case.name for case in CASES]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def golden_cases():
    """Yield (name, settings, arrays) of what the published implementation computed."""
    arrays = np.load(GOLDEN)
    for settings in json.loads(str(arrays['cases'])):
        name = settings.pop('name')
        settings.pop('group_channels')
        prefix = f'{name}/'
        yield (
            name,
            settings,
            {
                key.removeprefix(prefix): torch.from_numpy(arrays[key])
                for key in arrays.files
                if key.startswith(prefix)
            },
        )


def oracle(
    input,
    offset,
    mask,
    *,
    groups,
    kernel_size=3,
    stride=1,
    padding=1,
    dilation=1,
    offset_scale=1.0,
    remove_center=False,
):
    """DCNv3 as seven plain loops in float64: slow and obviously right."""
    (kh, kw), (sh, sw) = pair(kernel_size), pair(stride)
    (ph, pw), (dh, dw) = pair(padding), pair(dilation)
    input, offset, mask = (x.double().numpy() for x in (input, offset, mask))
    n_images, _, _, channels = input.shape
    _, out_h, out_w, _ = offset.shape
    per_group = channels // groups
    points = kh * kw - int(remove_center)
    output = np.zeros((n_images, out_h, out_w, channels))
    for n in range(n_images):
        for ho in range(out_h):
            for wo in range(out_w):
                for g in range(groups):
                    p = g * points
                    for i in range(kw):  # x outer
                        for j in range(kh):  # y inner
                            if remove_center and (i, j) == (kw // 2, kh // 2):
                                continue
                            dx, dy = offset[n, ho, wo, 2 * p : 2 * p + 2]
                            center_y = dh * (kh - 1) // 2
                            center_x = dw * (kw - 1) // 2
                            y = ho * sh - ph + center_y
                            y += (j * dh - center_y + dy) * offset_scale
                            x = wo * sw - pw + center_x
                            x += (i * dw - center_x + dx) * offset_scale
                            for c in range(g * per_group, (g + 1) * per_group):
                                output[n, ho, wo, c] += mask[n, ho, wo, p] * bilinear(
                                    input[n, :, :, c], y, x
                                )
                            p += 1
    return torch.from_numpy(output)


def bilinear(image, y, x):
    """Sample one channel; pixels outside are zero, and so are bad positions."""
    height, width = image.shape
    if not (math.isfinite(y) and math.isfinite(x)):
        return 0.0
    y0, x0 = math.floor(y), math.floor(x)
    total = 0.0
    for row, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= row < height and 0 <= column < width:
                total += wy * wx * image[row, column]
    return total
