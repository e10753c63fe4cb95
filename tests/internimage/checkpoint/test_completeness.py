# SPDX-License-Identifier: Apache-2.0
"""What is missing from weights, told by the names of the others."""

import pytest

from internimage.checkpoint.completeness import find_gaps


def layers(*numbers: int, names: tuple[str, ...] = ('weight', 'bias')) -> list[str]:
    return [f'convs.{number}.{name}' for number in numbers for name in names]


def blocks(*numbers: int) -> list[str]:
    return layers(*numbers, names=('norm.weight', 'norm.bias', 'fc.weight', 'fc.bias'))


@pytest.mark.parametrize(
    ('names', 'missing'),
    [
        (layers(0, 1, 2), []),
        (layers(0, 1, 3), ['convs.2']),
        (layers(0, 2, 3), ['convs.1']),
        (layers(1, 2, 4), ['convs.0', 'convs.3']),
        # An activation between layers takes a number, each time.
        (layers(0, 2, 4), []),
        (layers(1, 4), []),
        # What comes last is not missed.
        (layers(0, 1), []),
        (layers(5), []),
        # Parts that are not alike are no series.
        ([*layers(0, 1), 'convs.3.scale'], []),
        (blocks(0, 1, 2), []),
        (blocks(0, 2), ['convs.1']),
        (blocks(3, 4), ['convs.0', 'convs.1', 'convs.2']),
        ([*blocks(0, 1, 2)[:-1]], ['convs.2.fc.bias']),
        (['head.bias'], ['head.weight']),
    ],
)
def test_gaps(names: list[str], missing: list[str]):
    assert sorted(find_gaps(names)) == missing


def test_a_level_follows_a_downsampling():
    names = [
        f'levels.{level}.{name}'
        for level in (0, 1)
        for name in ('blocks.0.norm.weight', 'blocks.0.fc.weight', 'downsample.conv')
    ]
    assert find_gaps(names) == ['levels.2']
    assert find_gaps(names[:-1]) == []
