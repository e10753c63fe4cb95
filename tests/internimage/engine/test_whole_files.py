# SPDX-License-Identifier: Apache-2.0
"""Files are whole or not there, whatever happens while they are written."""

import errno
import os
import resource
import signal
import stat
import subprocess
from pathlib import Path

import mmengine
import pytest
from mmengine.fileio import FileClient, get_file_backend

from internimage.engine import SaveError, WholeFileBackend, find_leftovers, write_whole
from tests.internimage.engine.toy import in_child

OLD, NEW = b'old content', b'new' * 1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / 'file.pth'
    path.write_bytes(OLD)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_writes_and_replaces(file: Path):
    write_whole(file, NEW)
    assert file.read_bytes() == NEW
    write_whole(file.with_name('other.pth'), b'')
    assert names(file.parent) == ['file.pth', 'other.pth']


def test_a_link_and_a_mode_stay(file: Path):
    link = file.with_name('link')
    link.symlink_to(file)
    file.chmod(0o640)
    write_whole(link, NEW)
    assert link.is_symlink()
    assert file.read_bytes() == NEW
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_device_is_written_to(tmp_path: Path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, OLD)
    assert os.read(reader, 99) == OLD
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_long_name_fits(tmp_path: Path):
    path = tmp_path / ('\N{GREEK SMALL LETTER OMEGA}' * 127)  # 254 bytes of 255
    write_whole(path, NEW)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize('moment', ['fsync', 'replace'])
def test_a_kill_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    monkeypatch.setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert in_child(write_whole, file, NEW) == -signal.SIGKILL
    assert file.read_bytes() == OLD
    (leftover,) = find_leftovers(file.parent)
    assert names(file.parent) == [leftover.name, 'file.pth']


def test_ctrl_c_leaves_the_old_file_alone(file: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, NEW)
    assert file.read_bytes() == OLD
    assert names(file.parent) == ['file.pth']


@pytest.mark.parametrize(
    ('code', 'says'),
    [
        (
            'ENOSPC',
            r'the disk is full \(0.0 MB are needed, [\d,.]+ MB are free\);',
        ),
        ('EDQUOT', r'your disk quota is used up \(0.0 MB are needed\); make room'),
        ('EROFS', 'its disk is read-only; make it writable'),
        ('EACCES', 'its folder is not yours to write to; change its permissions'),
        ('EIO', 'Input/output error; mend that'),
    ],
)
@pytest.mark.parametrize('moment', ['fsync', 'replace'])
def test_an_error_is_one_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, moment: str, code: str, says: str
):
    number = getattr(errno, code)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, moment, fail)
    says = rf'^{file}: not saved: {says}.* and go on, what was saved before is whole$'
    with pytest.raises(SaveError, match=says) as caught:
        write_whole(file, NEW)
    assert caught.value.errno == number
    assert '\n' not in str(caught.value)
    assert file.read_bytes() == OLD
    assert names(file.parent) == ['file.pth']


def test_a_vanished_folder(tmp_path: Path):
    with pytest.raises(SaveError, match='its folder has vanished; make it again'):
        write_whole(tmp_path / 'gone' / 'file.pth', NEW)
    # mmengine makes folders before it writes.
    get_file_backend('x').put(NEW, tmp_path / 'gone' / 'file.pth')
    assert (tmp_path / 'gone' / 'file.pth').read_bytes() == NEW
    with pytest.raises(SaveError, match='not saved: '):
        get_file_backend('x').put(NEW, tmp_path / 'gone' / 'file.pth' / 'file.pth')


def write_with_a_limit(file: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with pytest.raises(SaveError, match=r'files may not be so large here \(0.0 MB'):
        write_whole(file, NEW)


def test_a_limit_of_the_system(file: Path):
    """The write itself fails, after a part."""
    assert in_child(write_with_a_limit, file) == 0
    assert file.read_bytes() == OLD
    assert names(file.parent) == ['file.pth']


def test_a_disk_that_is_full(tmp_path: Path):
    """On a real one, where the machine lets us make one; else as above."""
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        return
    try:
        write_whole(tmp_path / 'file.pth', OLD)
        with pytest.raises(SaveError, match=r'disk is full \(0\.2 MB are needed, 0'):
            write_whole(tmp_path / 'file.pth', b'x' * 200_000)
        assert (tmp_path / 'file.pth').read_bytes() == OLD
        assert names(tmp_path) == ['file.pth']
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)


def test_mmengine_writes_whole_files(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Checkpoints, dumped predictions, text; by its new and its old interface."""
    assert type(get_file_backend(str(file))) is WholeFileBackend
    assert type(FileClient(backend='disk').client) is WholeFileBackend
    mmengine.dump({'a': 'ä\n'}, file.with_name('a.json'), ensure_ascii=False)
    assert mmengine.load(file.with_name('a.json')) == {'a': 'ä\n'}

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, 'full')

    monkeypatch.setattr(os, 'fsync', fail)
    for name in ('a.json', 'file.pth.pkl'):
        with pytest.raises(SaveError, match='the disk is full'):
            mmengine.dump({'b': 1}, file.with_name(name))
    assert names(file.parent) == ['a.json', 'file.pth']
