# SPDX-License-Identifier: Apache-2.0
"""A run goes on from the newest checkpoint that loads, and says what it left."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from internimage.engine import ResumeError, find_resumable, resuming


def write_checkpoint(path: Path, iteration: int, **changes: Any) -> bytes:
    """Write what a resume needs; a change to None leaves something out."""
    checkpoint: dict[str, Any] = {
        'meta': {'epoch': 1, 'iter': iteration},
        'state_dict': {'weight': torch.arange(500.0)},
        'message_hub': {},
        'optimizer': {},
        **changes,
    }
    torch.save({k: v for k, v in checkpoint.items() if v is not None}, path)
    return path.read_bytes()


def find(folder: Path, *more: str) -> str | None:
    found = find_resumable(str(folder), more)
    return found and os.path.relpath(found, folder)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(resuming, 'print_log', lambda line, **_: lines.append(line))
    return lines


def test_a_folder_that_is_empty_or_missing(tmp_path: Path):
    assert find(tmp_path) is None
    assert find(tmp_path / 'missing') is None


def test_newest_is_by_iteration(tmp_path: Path):
    """Not by the order of letters, nor by the time of the file, nor by the pointer."""
    for number in (9, 10, 2):
        write_checkpoint(tmp_path / f'epoch_{number}.pth', number)
    assert find(tmp_path) == 'epoch_10.pth'
    write_checkpoint(tmp_path / 'iter_11.pth', 11)
    write_checkpoint(tmp_path / 'iter_4.pth', 4)
    os.utime(tmp_path / 'iter_11.pth', (1, 1))
    assert find(tmp_path) == 'iter_11.pth'


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('', 'last_checkpoint: passed over: empty'),
        ('away/epoch_7.pth', 'passed over: no such file: away/epoch_7.pth'),
        ('epoch_1.pth', r'last_checkpoint names \S+epoch_1.pth, but \S+epoch_2.pth is'),
        ('away/epoch_2.pth\n', None),
        (None, None),
    ],
)
def test_a_pointer_that_is_wrong(
    tmp_path: Path,
    said: list[str],
    content: str | None,
    says: str | None,
):
    for number in (1, 2):
        write_checkpoint(tmp_path / f'epoch_{number}.pth', number)
    if content is not None:
        (tmp_path / 'last_checkpoint').write_text(content)
    assert find(tmp_path) == 'epoch_2.pth'
    assert len(said) == (says is not None)
    assert says is None or re.search(says, said[0])


def test_damaged_files_are_passed_over_and_said(tmp_path: Path, said: list[str]):
    whole = write_checkpoint(tmp_path / 'epoch_2.pth', 2)
    (tmp_path / 'epoch_3.pth').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'epoch_4.pth').write_bytes(b'')
    (tmp_path / 'epoch_5.pth').write_text('<html>')
    (tmp_path / 'epoch_6.pth').mkdir()
    (tmp_path / '.epoch_7.pth.0123abcd.part').write_bytes(whole[:99])
    write_checkpoint(tmp_path / 'weights_8.pth', 8, message_hub=None)
    write_checkpoint(tmp_path / 'strange_9.pth', 8, meta={'iter': '9', 'epoch': 1})
    torch.save([1], tmp_path / 'list.pth')
    (tmp_path / 'last_checkpoint').write_text('epoch_5.pth')
    assert find(tmp_path) == 'epoch_2.pth'
    for name in (
        *(f'epoch_{number}.pth' for number in (3, 4, 5, 6)),
        *('.epoch_7.pth.0123abcd.part', 'weights_8.pth', 'strange_9.pth', 'list.pth'),
    ):
        start = f'resume: {tmp_path / name}: passed over: '
        assert sum(line.startswith(start) for line in said) == 1


def test_only_what_is_needed_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder may hold hundreds, of gigabytes each."""
    loaded = []
    load = resuming.load_checkpoint_file
    monkeypatch.setattr(
        resuming,
        'load_checkpoint_file',
        lambda path: loaded.append(path.name) or load(path),
    )
    for number in range(1, 13):
        write_checkpoint(tmp_path / f'epoch_{number}.pth', number)
    write_checkpoint(tmp_path / 'best_coco_bbox_mAP_epoch_11.pth', 11, optimizer=None)
    write_checkpoint(tmp_path / 'epoch_12-0123abcd.pth', 12)
    assert find(tmp_path) == 'epoch_12.pth'
    assert loaded == ['epoch_12.pth']


def test_the_best_weights_are_the_last_choice(tmp_path: Path, said: list[str]):
    write_checkpoint(tmp_path / 'best_acc_epoch_7.pth', 7, optimizer=None)
    write_checkpoint(tmp_path / 'best_acc_epoch_9.pth', 9, optimizer=None)
    (tmp_path / 'epoch_9.pth').write_bytes(b'damaged')
    assert find(tmp_path) == 'best_acc_epoch_9.pth'
    assert said[-1].endswith('best_acc_epoch_9.pth: has no optimizer: it starts anew')
    write_checkpoint(tmp_path / 'epoch_3.pth', 3)
    assert find(tmp_path) == 'epoch_3.pth'


def test_other_folders_and_storages(tmp_path: Path):
    work, out = tmp_path / 'work', tmp_path / 'out'
    work.mkdir()
    out.mkdir()
    write_checkpoint(out / 'epoch_3.pth', 3)
    assert find(work, str(out)) == '../out/epoch_3.pth'
    (work / 'last_checkpoint').write_text(str(out / 'epoch_3.pth'))
    assert find(work) == '../out/epoch_3.pth'
    (work / 'last_checkpoint').write_text('s3://bucket/epoch_4.pth')
    assert find_resumable(str(work)) == 's3://bucket/epoch_4.pth'
    (work / 'last_checkpoint').write_text(str(out))  # as of DeepSpeed
    assert find_resumable(str(work)) == str(out)


@pytest.mark.parametrize('content', [None, 'gone.pth'])
def test_nothing_loads(tmp_path: Path, content: str | None):
    if content is None:
        (tmp_path / 'epoch_1.pth').write_bytes(b'damaged')
    else:
        (tmp_path / 'last_checkpoint').write_text(content)
    with pytest.raises(ResumeError, match=rf'^{tmp_path}: no checkpoint here can be'):
        find(tmp_path)


def test_parts_alone_are_a_new_start(tmp_path: Path):
    """The first checkpoint of a run was being written."""
    (tmp_path / '.epoch_1.pth.0123abcd.part').write_bytes(b'half')
    assert find(tmp_path) is None
