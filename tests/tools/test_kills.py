# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed end as if they had not been; ``make kills`` has more."""

import random
import re
from pathlib import Path

import pytest

from tests.kills import Bench, differences, kill_and_resume
from tests.tools.small_trainings import FAMILIES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', FAMILIES)
def test_a_killed_recipe_goes_on_bit_for_bit(name: str, tmp_path: Path):
    pytest.importorskip(FAMILIES[name].package)
    bench = Bench(FAMILIES[name], tmp_path)
    pointer = tmp_path / 'killed' / 'last_checkpoint'
    assert bench.kill('killed', pointer.exists)
    assert differences(bench.unbroken, bench.finish('killed')) == []
    assert 'resumed epoch: ' in (tmp_path / 'killed.txt').read_text()
    # And at a rate that spoils the weights, it stops and names the images.
    rate = ['--cfg-options', 'optim_wrapper.optimizer.lr=1e30']
    process = bench.start('spoilt', *rate)
    process.join()
    assert process.exitcode == 1
    sentence = (tmp_path / 'spoilt.txt').read_text().strip().splitlines()[-1]
    if name == 'dino':  # its matching refuses NaN before there is a loss
        assert sentence == 'ValueError: matrix contains invalid numeric entries'
    else:
        images = rf'images: [^;]*{FAMILIES[name].data}/\S+/\d\.(png|jpg)'
        assert re.match(r'train: iteration \d: .*loss.* is (nan|inf)', sentence)
        assert re.search(images, sentence)
    if name == 'classifier':
        assert kill_and_resume(bench, 3, random.Random(7)) == 3
