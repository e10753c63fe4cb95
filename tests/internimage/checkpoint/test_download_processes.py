# SPDX-License-Identifier: Apache-2.0
"""Several processes that want one file: side by side, killed, as ranks."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from internimage.checkpoint import downloads
from internimage.checkpoint.downloads import DownloadError, cached_path, download
from tests.internimage.checkpoint.misbehaving_server import (
    WEIGHTS,
    in_parts,
    status,
    whole,
)

# Processes that import PyTorch once for all of them, and have none of our threads.
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload([__name__])
TIMEOUT_S = 60


def in_process(hub: Path, url: str, is_waiting: Path | None = None) -> Path:
    """Download in a process of its own; say when it waits for another."""
    os.environ['no_proxy'] = '127.0.0.1'
    torch.hub.set_dir(hub)

    def note(text: str, **_: object) -> None:
        if is_waiting and 'waiting for another process' in text:
            is_waiting.touch()

    downloads.print_log = note
    return download(url)


def as_rank(
    rank: int, local_rank: int | None, meeting: Path, hub: Path, url: str
) -> tuple[Path | None, str]:
    """Download as a rank; return the path, or None and why not."""
    # What ranks bear from each other in training.
    patience_s = 2 if url.endswith('late.pth') else TIMEOUT_S
    distributed.init_process_group(
        'gloo',
        init_method=f'file://{meeting}',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=patience_s),
    )
    if local_rank is not None:
        os.environ['LOCAL_RANK'] = str(local_rank)
    try:
        return in_process(hub, url), ''
    except DownloadError as error:
        return None, str(error)
    finally:
        distributed.destroy_process_group()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_downloads_the_other_waits(server, tmp_path):
    server.answers['/x.pth'] = in_parts(WEIGHTS, pause_s=0.3)
    with ProcessPoolExecutor(2, CONTEXT) as pool:
        waits = [
            pool.submit(in_process, tmp_path, f'{server.url}/x.pth') for _ in range(2)
        ]
        first, second = (wait.result(TIMEOUT_S) for wait in waits)
    assert first == second
    assert first.read_bytes() == WEIGHTS
    assert len(server.requests) == 1


def test_killed_one_holds_nobody_up(server, tmp_path, monkeypatch):
    """Who waits goes on with what a killed process has got."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    url = f'{server.url}/x.pth'
    path = cached_path(url)
    part = path.with_name('x.pth.part')
    waiting = tmp_path / 'waiting'
    server.answers['/x.pth'] = in_parts(WEIGHTS, pause_s=TIMEOUT_S, ETag='"1"')
    killed = CONTEXT.Process(target=in_process, args=(tmp_path, url))
    heir = CONTEXT.Process(target=in_process, args=(tmp_path, url, waiting))
    killed.start()
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    heir.start()
    wait_for(waiting.exists)
    server.answers['/x.pth'] = in_parts(WEIGHTS, ETag='"1"')
    os.kill(killed.pid, signal.SIGKILL)
    heir.join(TIMEOUT_S)
    assert heir.exitcode == 0
    assert path.read_bytes() == WEIGHTS
    ranges = [headers.get('Range') for _, headers in server.requests]
    assert ranges[0] is None
    assert 0 < int(ranges[1].removeprefix('bytes=').removesuffix('-')) < len(WEIGHTS)
    killed.join(TIMEOUT_S)


@pytest.mark.parametrize(
    ('local_ranks', 'hubs', 'requests'),
    [((0, 1), 'aa', 1), ((0, 0), 'ab', 2), ((0, 0), 'aa', 1), ((None, None), 'ab', 2)],
    ids=['one machine', 'two machines', 'two machines, one disk', 'not known'],
)
def test_ranks(server, tmp_path, local_ranks, hubs, requests):
    server.answers['/x.pth'] = whole(WEIGHTS)
    server.answers['/late.pth'] = in_parts(WEIGHTS, pause_s=2.5)
    server.answers['/none.pth'] = status(404)
    names = ['x', 'none', 'late'] if local_ranks == (0, 1) else ['x', 'none']
    with ProcessPoolExecutor(2, CONTEXT) as pool:
        for name in names:
            server.requests.clear()
            meeting, url = tmp_path / f'meeting_{name}', f'{server.url}/{name}.pth'
            calls = [
                pool.submit(as_rank, rank, local_ranks[rank], meeting, hub, url)
                for rank, hub in enumerate(tmp_path / name for name in hubs)
            ]
            (path, error), (other_path, other_error) = (
                call.result(TIMEOUT_S) for call in calls
            )
            assert error == other_error
            if name == 'none':
                assert path is other_path is None
                assert f'{url}: the server answered 404' in error
            else:
                assert path.read_bytes() == other_path.read_bytes() == WEIGHTS
                assert len(server.requests) == requests
