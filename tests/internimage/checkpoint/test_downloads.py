# SPDX-License-Identifier: Apache-2.0
import errno
import hashlib
import io
import json
import os
import pickle
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

import internimage  # noqa: F401  (registers the loaders)
from internimage.checkpoint import downloads, loaders, transfers
from internimage.checkpoint.downloads import DownloadError, cached_path, download
from tests.internimage.checkpoint.misbehaving_server import (
    OLD_FORMAT,
    SHA256,
    WEIGHTS,
    chunked,
    cut,
    endless,
    fails,
    in_turn,
    saved,
    slow_head,
    status,
    whole,
    without_length,
)

HTML = b'<!DOCTYPE html><html><title>Log in</title></html>'
TENSOR = {'dtype': 'U8', 'shape': [9], 'data_offsets': [0, 9]}
HEADER = json.dumps({'__metadata__': {}, 'x': TENSOR}).encode()
SAFETENSORS = len(HEADER).to_bytes(8, 'little') + HEADER + bytes(9)


@pytest.fixture
def messages(monkeypatch):
    said = []
    monkeypatch.setattr(downloads, 'print_log', lambda text, **_: said.append(text))
    return said


BROKEN = {
    'cut': (cut(WEIGHTS, 5000), f'after 5000 of {len(WEIGHTS)} bytes'),
    'nothing': (cut(WEIGHTS, 0), f'after 0 of {len(WEIGHTS)} bytes'),
    'length too long': (whole(WEIGHTS, Content_Length=99999), 'of 99999 bytes'),
    'length too short': (whole(WEIGHTS, Content_Length=9000), 'only the first 9000'),
    'length below 0': (without_length(WEIGHTS[:9000], Content_Length=-1), 'only the'),
    'absurd length': (whole(WEIGHTS, Content_Length=2**60), '1152921504607 MB are to'),
    'no length, cut': (without_length(WEIGHTS[:9000]), 'only the first 9000 bytes'),
    'no length, old': (without_length(OLD_FORMAT), 'does not say how long'),
    'chunks, cut': (chunked(WEIGHTS, end=b''), 'broke off'),
    'chunks, bad': (chunked(WEIGHTS, end=b'what?'), 'broke off'),
    'stalls': (endless(WEIGHTS, 5000, every_s=9), 'after 5000 of'),
    'trickles': (endless(WEIGHTS, 5000, every_s=0.05), 'given up as too slow'),
    'slow head': (slow_head, 'cannot be reached (no answer in 2 s)'),
    'no HTTP': (lambda h: h.wfile.write(b'SSH-2.0\r\n\r\n'), 'cannot be reached'),
    'hangs up': (lambda h: None, 'cannot be reached (Remote end closed'),
    'empty': (whole(b''), 'an empty file came'),
    'page': (whole(HTML, Content_Type='text/html; charset=utf-8'), 'a web page came'),
    'page as file': (whole(HTML), 'text came and not a file of weights ("<!DOCTYPE'),
    'JSON': (whole(b'{"error": "no"}'), 'text came and not a file'),
    'pointer': (whole(b'version https://git-lfs.github.com/spec/v1\n'), '/resolve/'),
    'compressed': (whole(WEIGHTS, Content_Encoding='gzip'), 'compressed (gzip)'),
    'no content': (status(204), 'answered 204 No Content'),
    'unasked part': (status(206), 'the server sent a part, and not'),
    '403': (status(403), 'answered 403 Forbidden: it wants a login'),
    '404': (status(404), 'answered 404 Not Found: check the address'),
    '429': (status(429, Retry_After=9), '429 Too Many Requests, after 2 tries'),
    '503': (status(503), 'answered 503 Service Unavailable, after 2 tries'),
    'to a file': (status(302, Location='file:///etc/passwd'), 'redirects where we do'),
    'to FTP': (status(302, Location='ftp://127.0.0.1/x.pth'), 'from http to ftp'),
    'to nowhere': (status(302, Location='http://[/'), 'sends us on to, is not valid'),
    'to no port': (status(302, Location='http://127.0.0.1:99999/'), 'check the '),
    'circle': (status(302, Location='/x.pth'), 'in a circle'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_only_whole_files_get_the_name(server, case, monkeypatch):
    answer, text = BROKEN[case]
    server.answers['/x.pth'] = answer
    url = f'{server.url}/x.pth'
    with monkeypatch.context() as patch:
        if case in ('stalls', 'trickles', 'slow head'):
            hasty = transfers.Limits(tries=1, stall_s=1, slow_s=0.5)
            patch.setattr(transfers, 'LIMITS', hasty)
        fails(url, text, 'by other means', str(cached_path(url)))
    server.answers['/x.pth'] = whole(WEIGHTS)  # no failure stays
    assert download(url).read_bytes() == WEIGHTS


def test_whole_files(server):
    for name, answer in {
        'length.pth': whole(WEIGHTS),
        'old.pth': whole(OLD_FORMAT),
        'chunks.pth': chunked(OLD_FORMAT),
        'archive.pth': without_length(WEIGHTS),
        'a.safetensors': without_length(SAFETENSORS),
        'later.pth': in_turn(status(503, Retry_After=0), whole(WEIGHTS)),
        'sent%20on.pth': status(302, Location='length.pth'),
    }.items():
        server.answers[f'/{name}'] = answer
        server.requests.clear()
        for _ in range(2):
            path = download(f'{server.url}/{name}')
            asked = len(server.requests)
        assert asked == {'later.pth': 2, 'sent%20on.pth': 2}.get(name, 1)
        assert path.read_bytes() in (WEIGHTS, OLD_FORMAT, SAFETENSORS)
        assert path.suffix == Path(name).suffix
        # Nothing else is left, and the mode is that of any file.
        assert {p.name for p in path.parent.iterdir()} == {
            path.name,
            f'{path.name}.lock',
        }
        (path.parent / 'plain').touch()
        assert path.stat().st_mode == (path.parent / 'plain').stat().st_mode
    server.answers['/b.safetensors'] = whole(SAFETENSORS + b'.')
    fails(f'{server.url}/b.safetensors', 'only the first')


def test_key_is_the_whole_url(server):
    """Another host, folder, query or scheme is another file; a fragment is not."""
    for number, path in enumerate(('/a/x.pth', '/b/x.pth', '/a/x.pth?v=2')):
        server.answers[path] = whole(saved(number))
    for number, path in enumerate(('/a/x.pth', '/b/x.pth', '/a/x.pth?v=2')):
        local = download(f'{server.url}{path}#fragment')
        assert torch.load(local) == number
        assert local.name == 'x.pth'
    names = ('https://h/x', 'http://h/x', 'https://h:8/x', 'https://h/..', 'https://h')
    paths = {cached_path(name) for name in names}
    assert len(paths) == 5
    assert {path.name for path in paths} == {'x', 'file'}
    long = cached_path(f'https://h/{"y" * 999}.pth')
    assert len(long.name) < 200
    assert long.suffix == '.pth'


@pytest.mark.parametrize(
    'url',
    [
        'ftp://h/x.pth',
        'x.pth',
        'https:///x.pth',
        'http://h:x/y.pth',
        'http://h:99999/y',
    ],
)
def test_no_url(url):
    with pytest.raises(ValueError, match=r'^url: expected http\(s\)://<host>/<path>'):
        download(url)


def test_password_is_not_repeated():
    with pytest.raises(ValueError, match='a password or token in the URL') as error:
        download('https://me:secret@h/x.pth')
    assert 'secret' not in str(error.value)


def test_digests(server):
    other = 'a' + 'b' * 63
    for name in (
        f'x-{SHA256[:8]}.pth',
        f'x-{other[:8]}.pth',
        'x-20240131.pth',
        'x.pth',
        'hub.pth',
    ):
        server.answers[f'/{name}'] = whole(WEIGHTS)
    download(f'{server.url}/x-{SHA256[:8]}.pth')
    fails(f'{server.url}/x-{other[:8]}.pth', SHA256, other[:8])
    download(f'{server.url}/x-20240131.pth')  # a date
    fails(f'{server.url}/x.pth', SHA256, other, sha256=other)
    kept = download(f'{server.url}/x.pth', sha256=SHA256.upper())
    with pytest.raises(DownloadError, match=f'{kept}.*delete that file'):
        download(f'{server.url}/x.pth', sha256=other)
    with pytest.raises(ValueError, match='sha256: expected 8 to 64 digits'):
        download(f'{server.url}/x.pth', sha256='sha256:' + SHA256)

    # huggingface.co announces the digest where it sends on to another server.
    for announced, name in ((SHA256, 'good.pth'), (other, 'bad.pth')):
        server.answers[f'/{name}'] = status(
            302, Location='/hub.pth', X_Linked_ETag=f'"{announced}"'
        )
    download(f'{server.url}/good.pth')
    fails(f'{server.url}/bad.pth', SHA256, 'announced by the server')
    # A digest also shows that a file of no length is whole.
    server.answers['/none.pth'] = without_length(OLD_FORMAT)
    download(f'{server.url}/none.pth', sha256=hashlib.sha256(OLD_FORMAT).hexdigest())


def test_spaces_and_letters_of_the_world(server):
    server.answers['/my%20%C3%A9t%C3%A9.pth'] = whole(WEIGHTS)
    for name in ('my été.pth', 'my%20%C3%A9t%C3%A9.pth'):
        assert download(f'{server.url}/{name}').read_bytes() == WEIGHTS


def test_no_room(server, monkeypatch):
    url = f'{server.url}/x.pth'
    server.answers['/x.pth'] = whole(WEIGHTS)
    usage = namedtuple('usage', 'free')
    with monkeypatch.context() as patch:
        patch.setattr(transfers.shutil, 'disk_usage', lambda _: usage(9000))
        fails(url, '0.0 MB are to come', 'make room, or set the variable TORCH_HOME')

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        fails(url, '.part cannot be written (No space left on device)', 'TORCH_HOME')
    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, '_hub_dir', '/dev/null')
        fails(url, 'cannot be used (Not a directory): set the variable TORCH_HOME')


def test_file_system_without_locks(server, monkeypatch, messages):
    url = f'{server.url}/x.pth'

    def flock(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(downloads.fcntl, 'flock', flock)
    server.answers['/x.pth'] = cut(WEIGHTS, 9000, ETag='"1"')
    fails(url)
    path = cached_path(url)
    assert [p.name for p in path.parent.iterdir()] == ['x.pth.lock']
    server.answers['/x.pth'] = whole(WEIGHTS)
    assert download(url).read_bytes() == WEIGHTS
    assert 'has no locks (No locks available)' in ''.join(messages)


def test_files_under_plain_names(server, tmp_path, messages):
    """PyTorch's own place for a file counts where a digest shows that it is the one."""
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    for name in ('x.pth', f'x-{SHA256[:8]}.pth'):
        (folder / name).write_bytes(WEIGHTS)
        server.answers[f'/{name}'] = whole(OLD_FORMAT)
    url = f'{server.url}/x-{SHA256[:8]}.pth'
    assert download(url).read_bytes() == WEIGHTS
    assert not server.requests
    url = f'{server.url}/x.pth'
    assert download(url).read_bytes() == OLD_FORMAT
    said = ''.join(messages)
    assert f'{folder / "x.pth"} is not taken for it' in said
    assert f'if it is this one, move it to {cached_path(url)}' in said


@pytest.mark.parametrize('is_terminal', [True, False])
def test_progress(monkeypatch, messages, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(downloads.sys, 'stderr', stream)
    show = downloads._Progress('x.pth')
    show(1, 2)
    assert not stream.getvalue()
    show.shown_at -= 60
    show(3_000_000, 20_000_000)
    text = 'x.pth: 3.0 of 20 MB'
    shown = stream.getvalue() if is_terminal else ''.join(messages)
    assert text in shown
    assert ('\r' in shown) == is_terminal
    show.end()
    assert '\n' not in stream.getvalue()


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_loaders(tmp_path, server, monkeypatch):
    server.answers['/good.pth?download=true'] = whole(saved({'x': torch.ones(2)}))
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint(
            f'{server.url}/good.pth?download=true'
        )
        assert loaded['x'].tolist() == [1, 1]
    assert len(server.requests) == 1

    server.answers['/good.pth'] = whole(saved({'x': torch.ones(2)}))
    server.answers['/bad.pth'] = whole(saved(Payload(tmp_path / 'it_ran')))
    monkeypatch.setattr(
        loaders,
        'get_torchvision_models',
        lambda: {'bad': f'{server.url}/bad.pth', 'good': f'{server.url}/good.pth'},
    )
    for name in (f'{server.url}/bad.pth', 'torchvision://bad'):
        with pytest.raises(pickle.UnpicklingError, match=r'bad.pth: not loaded'):
            CheckpointLoader.load_checkpoint(name)
    assert CheckpointLoader.load_checkpoint('torchvision://good').keys() == {'x'}
    assert not (tmp_path / 'it_ran').exists()
