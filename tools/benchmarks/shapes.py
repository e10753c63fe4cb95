# SPDX-License-Identifier: Apache-2.0
"""The named shapes: what DCNv3 gets in the stages of the published models.

| name | batch x height x width x channels | groups |
|---|---|---|
| ``t1`` ... ``t4`` | a stage of InternImage-T at 224 x 224: 1x56x56x64, ... | 4, ... |
| ``b1``, ``l1``, ``h1``, ... | the same of the other variants | |
| ``64x56x56x128`` | the first one in the DCNv4 paper (arXiv:2401.06197, table 2) | 4 |

Channels, groups and ``offset_scale`` come from ``InternImage.arch_settings``.
"""

from typing import NamedTuple

from internimage.backbone import InternImage

#: Letter of a variant -> its name in ``InternImage.arch_settings``.
ARCHS = InternImage.arch_aliases


class Shape(NamedTuple):
    """One call of the operator: kernel 3, stride 1, padding 1, dilation 1."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    groups: int
    offset_scale: float = 1.0

    @property
    def points(self) -> int:
        """Sampling points of each group."""
        return 9

    @property
    def pixels(self) -> int:
        """Positions of the whole batch, in and out."""
        return self.batch * self.height * self.width

    def values(self, backward: bool) -> int:
        """Return how many values must move, each once.

        Forward reads input, offset and mask and writes the output. Backward reads the
        output's gradient and the three again, and writes three gradients.
        """
        features = self.pixels * self.channels
        sampling = self.pixels * self.groups * self.points * 3
        return 3 * features + 2 * sampling if backward else 2 * features + sampling

    def __str__(self) -> str:
        size = f'{self.batch}x{self.height}x{self.width}x{self.channels}'
        return f'{self.name} ({size}, G{self.groups})'


def stage_shapes(letter: str, batch: int, image: tuple[int, int]) -> list[Shape]:
    """Return what the operator gets in each stage of a variant.

    Args:
        letter: Of the variant, a key of ``ARCHS``.
        batch: Number of images.
        image: Their height and width; a stage has 1/4, 1/8, 1/16 and 1/32 of it,
            rounded up as by the backbone's strided convolutions.
    """
    settings = InternImage.arch_settings[ARCHS[letter]]
    return [
        Shape(
            name=f'{letter}{stage + 1}',
            batch=batch,
            height=-(-image[0] // 2 ** (stage + 2)),
            width=-(-image[1] // 2 ** (stage + 2)),
            channels=settings['channels'] * 2**stage,
            groups=groups,
            offset_scale=settings.get('offset_scale', 1.0),
        )
        for stage, groups in enumerate(settings['groups'])
    ]


#: The shape that the DCNv4 paper starts with, and published figures are known of.
PAPER = Shape('64x56x56x128', 64, 56, 56, 128, 4)


def find_shapes(names: list[str], batch: int, image: tuple[int, int]) -> list[Shape]:
    """Return the shapes of names such as 't', 't1' or '64x56x56x128'.

    Raises:
        ValueError: There is no such shape.
    """
    shapes = []
    for name in names:
        letter = name.rstrip('1234')
        if name == PAPER.name:
            shapes.append(PAPER)
        elif letter in ARCHS:
            stages = stage_shapes(letter, batch, image)
            shapes += [s for s in stages if name in (letter, s.name)]
        else:
            raise ValueError(
                f'shape: expected {list(ARCHS)}, each alone or with a stage from 1 to '
                f'4, or {PAPER.name!r}, got {name!r}'
            )
    return shapes
