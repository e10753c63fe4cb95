# SPDX-License-Identifier: Apache-2.0
"""There is always a whole checkpoint, and nothing else is deleted."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from internimage.checkpoint import load_checkpoint_file
from internimage.engine import SaveError, find_leftovers, find_resumable
from tests.internimage.engine.toy import config, in_child, train, validation


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def train_and_die(settings: dict, function: str, count: int, **arguments: Any) -> None:
    """Train, and kill the process at some call of a function of ``os``."""
    original, calls = getattr(os, function), []

    def counted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(os, function, counted)
    train(settings, **arguments)


# Of each save: the file, its folder, `last_checkpoint`, its folder. A save after each
# epoch, one of the best weights, and another, as mmengine keeps the best score there.
@pytest.mark.parametrize(
    ('function', 'count'),
    [
        *(('fsync', count) for count in (1, 5, 11, 15)),
        *(('replace', count) for count in (2, 6, 7)),
        *(('remove', count) for count in (1, 2)),
    ],
)
def test_a_kill_while_saving_leaves_a_whole_checkpoint(
    tmp_path: Path, function: str, count: int
):
    """With ``max_keep_ckpts=1``: mmengine deletes it first."""
    settings = config(
        tmp_path,
        default_hooks__checkpoint__max_keep_ckpts=1,
        default_hooks__checkpoint__save_best='toy/acc',
        **validation(),
    )
    settings['train_cfg']['max_epochs'] = 2
    code = in_child(train_and_die, settings, function, count)
    assert code == -signal.SIGKILL
    for name in names(tmp_path):
        load_checkpoint_file(tmp_path / name)
    found = find_resumable(str(tmp_path))
    assert (found is None) == (count == 1 and function != 'remove')
    settings['load_from'] = found
    assert in_child(train, settings, resume=found is not None) == 0
    assert [n for n in names(tmp_path) if 'best' not in n] == ['epoch_2.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('/epoch_2.pth')
    assert find_leftovers(tmp_path) == []


def test_keeps_what_it_is_told_to(tmp_path: Path):
    settings = config(
        tmp_path,
        default_hooks__checkpoint__max_keep_ckpts=2,
        default_hooks__checkpoint__save_best='toy/acc',
        default_hooks__checkpoint__published_keys=['meta', 'state_dict'],
        **validation(),
    )
    assert in_child(train, settings) == 0
    published = [name for name in names(tmp_path) if '-' in name]
    assert len(published) == 2
    assert sorted({*names(tmp_path)} - {*published}) == [
        'best_toy_acc_epoch_3.pth',
        'epoch_2.pth',
        'epoch_3.pth',
    ]
    pointed = (tmp_path / 'last_checkpoint').read_text()
    assert pointed == str(tmp_path / 'epoch_3.pth')


def test_another_folder_and_a_metric_for_each_of_two(tmp_path: Path):
    settings = config(
        tmp_path / 'work',
        default_hooks__checkpoint__out_dir=str(tmp_path / 'out'),
        default_hooks__checkpoint__save_best=['a/acc', 'b/acc'],
        default_hooks__checkpoint__max_keep_ckpts=1,
        **validation(a_acc=[1.0, 2.0, 3.0], b_acc=[3.0, 2.0, 1.0]),
    )
    assert in_child(train, settings) == 0
    assert names(tmp_path / 'work') == []
    assert names(tmp_path / 'out' / 'work') == [
        'best_a_acc_epoch_3.pth',
        'best_b_acc_epoch_1.pth',
        'epoch_3.pth',
    ]
    pointed = (tmp_path / 'work' / 'last_checkpoint').read_text()
    assert pointed == str(tmp_path / 'out' / 'work' / 'epoch_3.pth')


def test_a_checkpoint_cannot_have_other_files_deleted(tmp_path: Path):
    """Paths and numbers in a file that somebody gave us are not to be believed."""
    folder, victim = tmp_path / 'work', tmp_path / 'victim.pth'
    victim.write_text('mine')
    settings = config(
        folder,
        default_hooks__checkpoint__save_best='toy/acc',
        default_hooks__checkpoint__max_keep_ckpts=1,
        **validation(),
    )
    settings['train_cfg']['max_epochs'] = 1
    assert in_child(train, settings) == 0
    hostile = torch.load(folder / 'epoch_1.pth', weights_only=False)
    up = '/../../victim'
    (folder / 'epoch_').mkdir()
    hostile['message_hub']['runtime_info'] |= {
        'best_ckpt': str(victim),
        'best_score': -1.0,
        'keep_ckpt_ids': [up, up, 1],
        'outdated_ckpt_ids': [up],
    }
    hostile['message_hub']['resumed_keys'] |= {'outdated_ckpt_ids': True}
    torch.save(hostile, tmp_path / 'hostile.pth')
    settings['train_cfg']['max_epochs'] = 2
    settings['load_from'] = str(tmp_path / 'hostile.pth')
    assert in_child(train, settings, resume=True) == 0
    assert victim.read_text() == 'mine'


def test_what_is_kept_is_not_outdated(tmp_path: Path):
    """Though a checkpoint says both. One that is gone is not missed, nor one twice."""
    settings = config(tmp_path, default_hooks__checkpoint__max_keep_ckpts=2)
    settings['train_cfg']['max_epochs'] = 1
    assert in_child(train, settings) == 0
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    checkpoint['message_hub']['runtime_info'] |= {'outdated_ckpt_ids': [7, 1, 3, 3]}
    checkpoint['message_hub']['resumed_keys'] |= {'outdated_ckpt_ids': True}
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    (tmp_path / 'epoch_3.pth').touch()
    settings['train_cfg']['max_epochs'] = 2
    settings['load_from'] = str(tmp_path / 'epoch_1.pth')
    assert in_child(train, settings, resume=True) == 0
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']


def fill_the_disk(settings: dict) -> None:
    original, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:  # file and folder of one checkpoint and `last_checkpoint`
            raise OSError(errno.ENOSPC, 'full')
        original(descriptor)

    os.fsync = full
    with pytest.raises(SaveError, match=r'epoch_2.pth: not saved: the disk is full'):
        train(settings)


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path):
    settings = config(tmp_path, default_hooks__checkpoint__max_keep_ckpts=1)
    assert in_child(fill_the_disk, settings) == 0
    assert names(tmp_path) == ['epoch_1.pth']
    assert find_leftovers(tmp_path) == []
    assert find_resumable(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')
