# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed end as if they had not been; ``make kills`` has more."""

import random
from pathlib import Path

import pytest

from tests.kills import FAMILIES, Bench, differences, kill_and_resume

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', FAMILIES)
def test_a_killed_recipe_goes_on_bit_for_bit(name: str, tmp_path: Path):
    pytest.importorskip(FAMILIES[name].package)
    bench = Bench(FAMILIES[name], tmp_path)
    pointer = tmp_path / 'killed' / 'last_checkpoint'
    assert bench.kill('killed', pointer.exists)
    assert differences(bench.unbroken, bench.finish('killed')) == []
    assert 'resumed epoch: ' in (tmp_path / 'killed.txt').read_text()
    if name == 'classifier':
        assert kill_and_resume(bench, 3, random.Random(7)) == 3
