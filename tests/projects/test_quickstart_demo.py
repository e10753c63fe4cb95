# SPDX-License-Identifier: Apache-2.0
"""How the demo starts and ends: a look at the data, Ctrl-C, a terminal of ASCII."""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from mmengine.config import Config

from tests.paths import QUICKSTART

sys.path.insert(0, str(QUICKSTART))  # its files are programs, which Python runs by path
scenes = importlib.import_module('scenes')
demo = importlib.import_module('demo')
data_set = importlib.import_module('data_set')
sys.path.remove(str(QUICKSTART))


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    path = tmp_path_factory.mktemp('shapes')
    scenes.generate(path, seed=3, num_train=3, num_val=2)
    return path


@pytest.fixture
def folder(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / 'folder')


@pytest.fixture
def stop_at_training(monkeypatch):
    """End the demo where it would begin to train."""

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, 'train_and_test', stop)


def edit(folder, change, splits=scenes.SPLITS):
    for split in splits:
        path = folder / 'annotations' / f'instances_{split}.json'
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            change(annotation)
        path.write_text(json.dumps(content))


def run(folder, tmp_path, *options):
    return demo.main(
        ['--data', str(folder), '--work-dir', str(tmp_path / 'out'), *options]
    )


@pytest.mark.usefixtures('stop_at_training')
def test_demo_says_what_is_in_a_folder(folder, tmp_path, capsys):
    assert run(folder, tmp_path) == demo.INTERRUPTED
    output = capsys.readouterr().out
    assert f'train {folder}/annotations/instances_train.json\n' in output
    assert f'val   {folder}/annotations/instances_val.json\n' in output
    assert ' objects: ellipse 1, triangle ' in output
    assert 'left out: images without an object' in output


@pytest.mark.usefixtures('stop_at_training')
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda a: a.update(area=0), 'area 0 or less'),
        (lambda a: a.update(bbox=[float('nan'), 0, 9, 9]), '4 finite numbers'),
        (lambda a: a.pop('area'), 'an area for each annotation'),
        (lambda a: a.pop('iscrowd'), 'iscrowd for each annotation'),
        (lambda a: a.update(category_id=str(a['category_id'])), 'that are integers'),
        (lambda a: a.update(category_id=3), "annotations of the file's categories"),
        (lambda a: a.update(segmentation=[[1, 2, 3, 4]]), 'polygon of 3 points'),
        (lambda a: a.update(segmentation=[[]]), 'polygon of 3 points'),
    ],
)
def test_demo_refuses_what_trains_on_nothing(folder, tmp_path, capsys, change, message):
    edit(folder, change)
    assert run(folder, tmp_path) == 2
    captured = capsys.readouterr()
    for line in captured.err.removeprefix('error: ').splitlines():
        assert line.startswith(f'{folder}/annotations/instances_')
        assert message in line
    assert captured.out == ''


def interrupt(args, say):
    raise KeyboardInterrupt


def test_ctrl_c_ends_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'run', interrupt)
    assert demo.main(['--work-dir', str(tmp_path)]) == 130
    assert capsys.readouterr().err == (
        f'stopped by Ctrl-C; the log is {tmp_path}/demo.log\n'
    )


def run_with_cv2(folder, text, **environment):
    """Run the demo as a program, with a module in the place of the first library."""
    folder.mkdir()
    (folder / 'cv2.py').write_text(text)
    return subprocess.run(
        [sys.executable, QUICKSTART / 'demo.py'],
        env={**os.environ, 'PYTHONPATH': str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_ctrl_c_may_come_while_the_libraries_do(tmp_path):
    done = run_with_cv2(tmp_path / 'fake', 'raise KeyboardInterrupt')
    assert done.returncode == 130
    assert done.stderr == 'stopped before it began\n'


@pytest.mark.parametrize('encoding', ['C', 'C.UTF-8'])
def test_libraries_run_in_utf8_in_any_locale(tmp_path, encoding):
    done = run_with_cv2(
        tmp_path / 'fake',
        'import locale, sys\nprint(locale.getpreferredencoding(False), sys.argv[1:])\n'
        'raise SystemExit',
        LC_ALL=encoding,
        PYTHONUTF8='0',
        PYTHONCOERCECLOCALE='0',
    )
    assert done.stdout.lower() == 'utf-8 []\n'
    assert done.stderr == ''


def test_a_terminal_of_ascii_gets_escapes(tmp_path, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', output)

    def tell(args, say):
        say('früchte')
        sys.stdout.write('früchte\n')  # as a library does

    monkeypatch.setattr(demo, 'run', tell)
    assert demo.main(['--work-dir', str(tmp_path)]) == 0
    assert output.buffer.getvalue().startswith(b'fr\\xfcchte\n')
    assert (tmp_path / 'demo.log').read_text(encoding='utf-8') == 'früchte\n'


@pytest.mark.parametrize('name', ['früchte', os.fsdecode(b'fr\xfcchte'), 'a"b\'c'])
def test_a_config_can_be_read_back(tmp_path, name):
    path = tmp_path / 'config.py'
    template = '"""Of {path}."""\ndata_root = {root!a}\nclasses = {classes!r}\n'
    data_set.write_config(path, template, root=name, classes=('pêche', '梨'))
    config = Config.fromfile(path)
    assert os.fsencode(config.data_root) == os.fsencode(name)
    assert config.classes == ('pêche', '梨')
