# SPDX-License-Identifier: Apache-2.0
"""Files at URLs, kept whole in a folder of this machine.

A file lies under its final name only after it was found to be whole: its length is the
one that the server named, its SHA-256 the one that the caller, the URL or the server
gives, and an archive ends where its format says. Until then it has the ending
``.part``, and the next run goes on from there.
"""

import errno
import hashlib
import json
import os
import platform
import re
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urldefrag, urlsplit

import torch
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from torch import distributed

from .transfers import WRONG_ADDRESS, Transfer, TransferError, megabytes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HUGGING_FACE = 'https://huggingface.co/'
HEADER = 100 << 20  # bytes that safetensors allows
#: How long ranks wait for each other. A rank that dies ends the wait at once.
PATIENCE = timedelta(days=7)


class DownloadError(OSError):
    """A file at a URL cannot be had; the text says why and what to do."""


def download(url: str, sha256: str | None = None) -> Path:
    """Return the local copy of a file at a URL, downloaded once.

    It is kept in PyTorch's hub folder, which ``TORCH_HOME`` moves. Of several processes
    one downloads and the others wait. In distributed training all ranks call this
    together; the first rank of each machine downloads.

    ``HF_ENDPOINT`` names a mirror of huggingface.co, ``https_proxy`` a proxy.

    Args:
        url: Address, http or https.
        sha256: What the digest of the file starts with, 8 to 64 hexadecimal digits.
            Where it is None, digits at the end of the name count, as OpenMMLab and
            torchvision write them (``resnet50-0676ba61.pth``).

    Returns:
        The path, the same for every call with this URL; the name is the URL's.

    Raises:
        DownloadError: The file cannot be had, on this or another rank.
        ValueError: This is no such URL or digest.
    """
    sha256 = sha256 and sha256.lower()
    _check_arguments(url, sha256)
    path = cached_path(url)
    if get_dist_info()[1] == 1:
        _provide(url, path, sha256)
    else:
        _provide_to_all_ranks(url, path, sha256)
    return path


def cached_path(url: str) -> Path:
    """Return where the file at a URL is kept; another URL has another folder.

    >>> cached_path('https://host.org/a/b.pth?download=true')  # doctest: +SKIP
    .../hub/checkpoints/host.org-9f2b0e8d3c1a7745/b.pth
    """
    url = urldefrag(url).url
    parts = urlsplit(url)
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    host = re.sub('[^A-Za-z0-9.-]', '_', parts.netloc)[:60]
    name = re.sub('[^A-Za-z0-9._+-]', '_', PurePosixPath(parts.path).name)
    name = name.lstrip('.')[-120:] or 'file'
    return Path(torch.hub.get_dir(), 'checkpoints', f'{host}-{digest}', name)


def _check_arguments(url: str, sha256: str | None) -> None:
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in ('http', 'https') and parts.hostname and parts.port != 0
        )
    except ValueError:  # a port of letters, an address of seven parts
        usable = False
    if not usable:
        raise ValueError(f'url: expected http(s)://<host>/<path>, got {url!r}')
    if '@' in parts.netloc:
        raise ValueError(
            f'url: a password or token in the URL (of {parts.hostname}) would end in '
            'logs; get the file by other means and give its path'
        )
    if sha256 is not None and not re.fullmatch('[0-9a-f]{8,64}', sha256):
        raise ValueError(f'sha256: expected 8 to 64 digits of 0-9a-f, got {sha256!r}')


def _provide_to_all_ranks(url: str, path: Path, sha256: str | None) -> None:
    """Provide the file on each machine; where that fails on one, fail on all."""
    rank, world_size = get_dist_info()
    leads = int(os.environ.get('LOCAL_RANK', rank)) == 0
    # Not NCCL: it ends ranks that wait for minutes.
    group = distributed.new_group(backend='gloo', timeout=PATIENCE)
    try:
        # First the leaders, then whoever does not see a leader's file.
        for is_mine in (leads, not leads):
            error = None
            if is_mine:
                try:
                    _provide(url, path, sha256)
                except DownloadError as caught:
                    error = str(caught)
            errors: list[str | None] = [None] * world_size
            distributed.all_gather_object(errors, error, group=group)
            failures = list(filter(None, errors))
            if failures:
                raise DownloadError(failures[0])
    finally:
        distributed.destroy_process_group(group)


def _provide(url: str, path: Path, sha256: str | None) -> None:
    """See to it that the file lies whole at ``path``."""
    try:
        if path.is_file():
            _check_kept(path, sha256)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(url, path.with_name(f'{path.name}.lock')) as is_locked:
            if path.is_file():  # another process was here first
                _check_kept(path, sha256)
            elif not _adopt(url, path, sha256):
                _bring(url, path, sha256, is_locked)
    except TransferError as error:
        raise DownloadError(
            f'{url}: {error}; {_other_ways(url, path)}'
        ) from error.__cause__
    except OSError as error:
        raise DownloadError(
            f'{url}: {path.parent} cannot be used ({error.strerror or error}): set the '
            'variable TORCH_HOME to a folder of yours, or give the path of a local '
            'file instead of the URL'
        ) from error


def _other_ways(url: str, path: Path) -> str:
    mirror = ''
    if url.startswith(HUGGING_FACE):
        used = os.environ.get('HF_ENDPOINT')
        mirror = 'set the variable HF_ENDPOINT to a mirror, or '
        if used:
            mirror = f'the variable HF_ENDPOINT names the mirror {used}: unset it, or '
    return (
        f'{mirror or "or "}get the file by other means, and give its path instead of '
        f'the URL or put it at {path}'
    )


def _check_kept(path: Path, sha256: str | None) -> None:
    """Hold a file that is here against what the caller expects."""
    if sha256 and not (digest := _digest(path)).startswith(sha256):
        raise TransferError(
            f'the SHA-256 of {path}, which is here since an earlier run, is {digest} '
            f'and not {sha256}: delete that file, and run again'
        )


def _adopt(url: str, path: Path, sha256: str | None) -> bool:
    """Take a file that somebody put into the hub folder under the plain name.

    PyTorch keeps its files so. A file of another URL may have that name too: only a
    digest tells.
    """
    plain = path.parents[1] / path.name
    expected = sha256 or _digest_in(url)
    if not plain.is_file():
        return False
    if expected is None:
        print_log(
            f'{url}: {plain} is not taken for it, as a name alone does not say where a '
            f'file is from; if it is this one, move it to {path}',
            logger='current',
        )
        return False
    if not _digest(plain).startswith(expected):
        return False
    try:
        os.link(plain, path)
    except OSError:  # not every file system can, nor may everybody
        return False
    return True


def _bring(url: str, path: Path, sha256: str | None, is_locked: bool) -> None:
    """Download the file, and give it its name when it is whole."""
    source = _mirrored(url)
    print_log(f'{source}: downloading to {path}', logger='current')
    own = '' if is_locked else f'.{platform.node()}-{os.getpid()}'
    show = _Progress(path.name)
    transfer = Transfer(source, path.with_name(f'{path.name}{own}.part'), show)
    while True:
        try:
            transfer.run()
        except TransferError:
            if not is_locked:
                transfer.forget()  # nobody could go on with it
            raise
        finally:
            show.end()
        problem = _find_problem(transfer, path.suffix, sha256 or _digest_in(url))
        if not problem:
            break
        transfer.forget()
        if not transfer.resumed:
            raise TransferError(problem)
        print_log(f'{source}: {problem}; once more from its start', logger='current')
    os.replace(transfer.part, path)
    transfer.forget()
    if os.name != 'nt':
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the name outlives a power cut too
        finally:
            os.close(folder)


def _find_problem(transfer: Transfer, suffix: str, sha256: str | None) -> str:
    """Say what is wrong with a file that has arrived; empty where nothing is.

    Without a length or digest, only a format that says where it ends can show that a
    file is whole. The old format of PyTorch does not.
    """
    part = transfer.part
    again = 'try again, and if it stays so, ask who runs the server'
    with part.open('rb') as file:
        head = file.read(200)
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n')
    if not text:
        return f'an empty file came: {WRONG_ADDRESS}'
    if b'\0' not in head and text.startswith((b'<', b'{', b'[', b'version https://')):
        start = text[:40].decode('ascii', 'replace').splitlines()[0]
        return f'text came and not a file of weights ("{start}..."): {WRONG_ADDRESS}'
    starts = {'expected': sha256, 'announced by the server': transfer.sha256}
    digest = _digest(part) if any(starts.values()) else ''
    for source, digits in starts.items():
        if not digest.startswith(digits or ''):
            return f'its SHA-256 is {digest}, and {digits} was {source}: {again}'
    if suffix == '.safetensors':
        is_whole = _is_whole_safetensors(part)
    elif head.startswith(b'PK'):
        is_whole = zipfile.is_zipfile(part)
    elif transfer.has_end or digest:
        return ''
    else:
        return (
            'the server does not say how long the file is, and neither a digest nor '
            'its format shows whether all of it came: take another server'
        )
    size = part.stat().st_size
    return '' if is_whole else f'only the first {size} bytes of the file came: {again}'


def _is_whole_safetensors(path: Path) -> bool:
    """Compare a file's length with what its header says."""
    size = path.stat().st_size
    try:
        with path.open('rb') as file:
            start = 8 + int.from_bytes(file.read(8), 'little')
            if start > min(size, HEADER):
                return False
            header = json.loads(file.read(start - 8))
        ends = [
            entry['data_offsets'][1]
            for name, entry in header.items()
            if name != '__metadata__'
        ]
        return bool(start + max(ends, default=0) == size)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _digest_in(url: str) -> str | None:
    """Return the digits of a digest that a file's name ends with.

    Digits without a letter may be a date or a number of steps.
    """
    found = re.search(r'-([0-9a-f]{8})\.\w+$', urlsplit(url).path)
    return found[1] if found and not found[1].isdecimal() else None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _mirrored(url: str) -> str:
    """Return the URL to ask: with a mirror's address, and no character to mend."""
    mirror = os.environ.get('HF_ENDPOINT', '').rstrip('/')
    if mirror and url.startswith(HUGGING_FACE):
        if not re.match('https?://.', mirror):
            raise TransferError(
                f'the variable HF_ENDPOINT is {mirror!r} and not http(s)://<host>'
            )
        url = f'{mirror}/{url.removeprefix(HUGGING_FACE)}'
    return quote(urldefrag(url).url, safe="%/:=&?~#+!$,;'@()*[]")


@contextmanager
def _lock(url: str, path: Path) -> Iterator[bool]:
    """Hold other processes off; the system frees the lock of one that is killed.

    Yields:
        Whether they are held off; not every file system can.
    """
    with path.open('a') as file:
        is_locked = True
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_log(
                f'{url}: waiting for another process, which downloads it and holds '
                f'{path}',
                logger='current',
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            is_locked = False
            print_log(
                f'{url}: the file system of {path} has no locks ({error.strerror}), so '
                'each process downloads its own copy',
                logger='current',
            )
        yield is_locked


class _Progress:
    """Says now and then how much of a file is here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.on_terminal = sys.stderr.isatty() and get_dist_info()[0] == 0
        self.interval_s = 0.2 if self.on_terminal else 60
        self.shown_at = time.monotonic()

    def __call__(self, have: int, length: int | None) -> None:
        now = time.monotonic()
        if now - self.shown_at < self.interval_s:
            return
        self.shown_at = now
        of = '' if length is None else f' of {megabytes(length)}'
        text = f'{self.name}: {megabytes(have)}{of} MB'
        if self.on_terminal:
            sys.stderr.write(f'\r\x1b[K{text}')
            sys.stderr.flush()
        else:
            print_log(text, logger='current')

    def end(self) -> None:
        """Wipe the line that changes."""
        if self.on_terminal:
            sys.stderr.write('\r\x1b[K')
