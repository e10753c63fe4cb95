# SPDX-License-Identifier: Apache-2.0
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

import internimage  # noqa: F401  (registers the loaders)
from internimage.checkpoint import loaders


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Handler(SimpleHTTPRequestHandler):
    requests: list[str] = []

    def log_message(self, _, *args):
        self.requests.append(args[0])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve ``tmp_path / 'www'``; keep downloads in ``tmp_path / 'hub'``."""
    (tmp_path / 'www').mkdir()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    handler = partial(Handler, directory=str(tmp_path / 'www'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_http(tmp_path, server, monkeypatch):
    torch.save({'x': torch.ones(2)}, tmp_path / 'www' / 'good.pth')
    Handler.requests.clear()
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint(f'{server}/good.pth?download=true')
        assert loaded['x'].tolist() == [1, 1]
    assert len(Handler.requests) == 1
    assert (tmp_path / 'hub' / 'checkpoints' / 'good.pth').is_file()

    torch.save(Payload(tmp_path / 'it_ran'), tmp_path / 'www' / 'bad.pth')
    monkeypatch.setattr(
        loaders,
        'get_torchvision_models',
        lambda: {'bad': f'{server}/bad.pth', 'good': f'{server}/good.pth'},
    )
    for name in (f'{server}/bad.pth', 'torchvision://bad'):
        with pytest.raises(pickle.UnpicklingError, match=r'bad.pth: not loaded'):
            CheckpointLoader.load_checkpoint(name)
    assert CheckpointLoader.load_checkpoint('torchvision://good').keys() == {'x'}
    assert not (tmp_path / 'it_ran').exists()
