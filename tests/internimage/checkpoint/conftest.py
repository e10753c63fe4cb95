# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from internimage.checkpoint import transfers
from tests.internimage.checkpoint.misbehaving_server import serve


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve on this machine; keep downloads in ``tmp_path / 'hub'``; try twice."""
    limits = transfers.Limits(tries=2, pause_s=0.01, longest_pause_s=0.05)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setattr(transfers, 'LIMITS', limits)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.delenv('HF_ENDPOINT', raising=False)
    with serve() as server:
        yield server
