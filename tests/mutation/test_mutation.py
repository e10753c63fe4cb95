# SPDX-License-Identifier: Apache-2.0
"""``make mutate`` on a package of a few lines, of which tests see one half."""

import json
import sys

import pytest

from tests.mutation.__main__ import main
from tests.mutation.mutants import is_equivalent, sample

SOURCE = '''"""A package."""

import sys

__all__ = ['clipped', 'doubled']


def doubled(number: int = 1) -> int:
    """Return twice as much."""
    return number + number


def clipped(number):
    if number < 0:
        raise ValueError('expected at least ' + str(1 + 1))
    print('clipped', 3 + 4)
    return number % 10
'''
TESTS = """
from small.arithmetic import clipped, doubled


def test_doubled():
    assert doubled(3) == 6
    assert doubled() == 2
    clipped(3)
"""


@pytest.fixture
def checkout(tmp_path):
    for folder in ('small', 'tests/small', 'tests/mutation'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'small' / '__init__.py').touch()
    (tmp_path / 'small' / 'arithmetic.py').write_text(SOURCE)
    (tmp_path / 'tests' / 'small' / 'test_arithmetic.py').write_text(TESTS)
    (tmp_path / 'pytest.ini').write_text(
        '[pytest]\nmarkers = slow\nfilterwarnings = ignore\n'
    )
    return tmp_path


def test_what_is_mutated(checkout):
    """No texts, annotations, errors and names for export."""
    mutants = sample(checkout, ['small'], 100, 0)
    assert len(mutants) < 100
    changed = {(mutant.before, mutant.after) for mutant in mutants}
    assert ('return number + number', 'return number - number') in changed
    assert ('if number < 0:', 'if number <= 0:') in changed
    assert ('return number % 10', 'return number % 11') in changed
    assert ('def doubled(number: int = 1) -> int:',) * 2 not in changed
    for before, _ in changed:
        assert not any(word in before for word in ('raise', 'print', '__all__', '"""'))


def test_the_sample_is_of_its_seed(checkout):
    first, second = (sample(checkout, ['small'], 4, 3) for _ in range(2))
    assert first == second
    assert len({*first, *sample(checkout, ['small'], 4, 4)}) > 4


@pytest.mark.skipif(sys.platform != 'linux', reason='tried on Linux')
def test_survivors_count_unless_they_change_nothing(checkout, capsys):
    arguments = ['small', '--mutants', '100', '--jobs', '2', '--limit', '60']
    assert not main(arguments, checkout)
    out = capsys.readouterr().out
    assert '- return number + number\n' not in out
    assert 'small/arithmetic.py:17\n  - return number % 10\n' in out
    assert (checkout / 'small' / 'arithmetic.py').read_text() == SOURCE
    survivors = [
        mutant
        for mutant in sample(checkout, ['small'], 100, 0)
        if f'- {mutant.before}\n  + {mutant.after}\n' in out
    ]
    equivalents = checkout / 'tests' / 'mutation' / 'equivalents.json'
    keys = ('file', 'before', 'after')
    equivalents.write_text(
        json.dumps(
            [{key: getattr(x, key) for key in keys} | {'reason': ''} for x in survivors]
        )
    )
    assert all(is_equivalent(mutant, equivalents) for mutant in survivors)
    assert main([*arguments, '--wanted', '1'], checkout)
    assert f'{len(survivors)} change nothing' in capsys.readouterr().out
