# SPDX-License-Identifier: Apache-2.0
"""Files at URLs, kept in a folder of this machine."""

import os
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info


def download(url: str) -> Path:
    """Return the local copy of a file at a URL, downloaded once, by rank 0.

    It is kept in PyTorch's hub folder.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    rank, _ = get_dist_info()
    if rank == 0:
        _download(url, path)
    barrier()
    # On another machine, rank 0's file may be out of reach.
    _download(url, path)
    return path


def _download(url: str, path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=os.isatty(0))
