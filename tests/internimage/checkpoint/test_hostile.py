# SPDX-License-Identifier: Apache-2.0
"""Hostile, damaged and foreign files, through every door by which a file comes in.

A process of its own opens them: one of them may crash it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.internimage.checkpoint import damaged_files, hostile_files
from tests.paths import ROOT

KINDS = hostile_files.KINDS
ALWAYS = ('load_checkpoint_file', 'CheckpointLoader', 'convert')
HEAVY = (
    *('load_checkpoint', 'load_pretrained', 'init_weights', 'resume', 'load_from'),
    *('init_detector', 'init_model', 'get_model', 'inferencer_without_config'),
)
# These the conversion refuses: it is no part of reading.
CONVERTED = {'weights: two names become one'}
# Of all kinds, some of each group; all that may be taken.
SAMPLE = {
    *hostile_files.HARMLESS,
    *CONVERTED,
    *list(KINDS)[::12],
    *('weights: not a number', 'array: of objects', 'foreign: an HTML page'),
}


def drive(folder: Path, names: list[str], doors: tuple[str, ...]) -> dict:
    """Return what happened, by kind of file and door."""
    (folder / 'files').mkdir()
    (folder / 'payload.py').write_text(hostile_files.CODE)
    paths = {f'files/{index:03}.pth': name for index, name in enumerate(names)}
    for path, name in paths.items():
        (folder / path).write_bytes(KINDS[name]())
    program = Path(__file__).with_name('hostile_doors.py')
    done = subprocess.run(
        [sys.executable, '-X', 'faulthandler', program, folder, *doors],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (folder / 'results.jsonl').read_text().splitlines()
    results = [json.loads(line) for line in lines]
    if done.returncode:
        last = results[-1]
        pytest.fail(f'{paths[last["path"]]}: crash at {last}\n{done.stderr[-3000:]}')
    assert len(results) == 2 * len(names) * len(doors)
    for begun, ended in zip(results[::2], results[1::2], strict=True):
        ended['path'] = begun['path']
    return {
        (paths[begun['path']], begun['door']): ended
        for begun, ended in zip(results[::2], results[1::2], strict=True)
    }


def check(results: dict) -> None:
    """Nothing ran or hung, and each refusal is one sentence that names the file."""
    wrong = []
    for (name, door), result in results.items():
        message = result['message']
        is_taken = message is None
        may_be_taken = name in hostile_files.HARMLESS or (
            name in CONVERTED and door == 'load_checkpoint_file'
        )
        is_sound = may_be_taken if is_taken else result['path'] in message
        if result['ran'] or not is_sound or (message and '\n' in message.strip()):
            wrong.append((name, door, result))
        assert result['seconds'] < 60, (name, door)
    assert not wrong


def test_every_kind(tmp_path):
    assert len(KINDS) > 200
    results = drive(tmp_path, list(KINDS), ALWAYS)
    check(results)
    for name in damaged_files.FOREIGN:
        # What it is called.
        message = results[f'foreign: {name}', 'load_checkpoint_file']['message']
        assert f' {name}' in message


def test_some_kinds_at_every_door(tmp_path):
    results = drive(tmp_path, sorted(SAMPLE), HEAVY)
    check(results)
    for name in hostile_files.HARMLESS:
        # A run goes on without the config in the file. An inferencer does not.
        assert results[name, 'resume']['message'] is None
        message = results[name, 'inferencer_without_config']['message']
        assert 'expected a config beside these weights' in message
