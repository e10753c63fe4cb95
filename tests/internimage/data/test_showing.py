# SPDX-License-Identifier: Apache-2.0
"""What a command line shows of its data, and how it ends where they are refused."""

import pytest

from internimage.data import show_datasets


def test_what_is_found_is_shown(coco_folder, capsys):
    show_datasets(coco_folder.config())
    captured = capsys.readouterr()
    assert captured.out.startswith(f'train {coco_folder.path("train")}\n      4 images')
    assert f'\nval   {coco_folder.path("val")}\n      2 images' in captured.out
    assert captured.err == ''


def test_what_is_wrong_ends_the_program(coco_folder, capsys):
    coco_folder.write('train', {})
    with pytest.raises(SystemExit) as caught:
        show_datasets(coco_folder.config())
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(
        f'error: {coco_folder.path("train")}: expected a list'
    )
    assert captured.out == ''


@pytest.mark.parametrize('name', ['RANK', 'SLURM_PROCID'])
def test_one_process_of_a_job_looks(coco_folder, capsys, monkeypatch, name):
    config = coco_folder.config(launcher='pytorch')
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setenv(name, '1')
    show_datasets(config)
    assert capsys.readouterr().out == ''
    monkeypatch.setenv(name, '0')
    show_datasets(config, ('val',))
    assert capsys.readouterr().out.startswith('val ')
