# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all.

mmengine opens a file under its final name and writes: who is killed meanwhile, or meets
a full disk, leaves half a file there, and the one that was there before is gone.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from pathlib import Path

from mmengine.fileio import FileClient, LocalBackend, register_backend

# What `_temporary_name` makes. Nobody else's files look so.
_LEFTOVER = re.compile(r'\..+\.[0-9a-f]{8}\.part')


class SaveError(OSError):
    """A file could not be saved. Its place is as it was: no half of it, no loss."""

    def __str__(self) -> str:  # OSError would begin with the number, `[Errno 28]`
        return str(self.strerror)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that its name never stands for a part of it.

    The content goes to a temporary file in the same folder and onto the disk, and only
    then takes the name: a process that is killed, or a machine that loses its power,
    leaves the old file or the new one. For a while both need room.

    Args:
        path: Where to write. A link keeps pointing where it does; its target changes.
        content: What to write.

    Raises:
        SaveError: It cannot be written; one sentence says which file and why.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a device, a pipe: nothing to keep
        with open(target, 'wb') as file:
            file.write(content)
        return
    temporary = target.with_name(_temporary_name(target.name))
    try:
        with open(temporary, 'xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        _remove(temporary)
        raise _explained(error, path, len(content)) from error
    except BaseException:  # interrupted from the keyboard
        _remove(temporary)
        raise


def find_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the temporary files that a killed process left in a folder."""
    if not os.path.isdir(folder):
        return []
    names = sorted(name for name in os.listdir(folder) if _LEFTOVER.fullmatch(name))
    return [Path(folder, name) for name in names]


class WholeFileBackend(LocalBackend):
    """mmengine's backend for local files, whose files are whole or not there."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file; see :func:`write_whole`."""
        try:
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explained(error, filepath, len(obj)) from error
        write_whole(filepath, bytes(obj) if isinstance(obj, memoryview) else obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write a text to a file; see :func:`write_whole`."""
        self.put(obj.replace('\n', os.linesep).encode(encoding), filepath)


def register_whole_file_backend() -> None:
    """Write whatever mmengine writes to local files whole, for the process.

    Checkpoints, those that it publishes, dumped predictions and results.
    """
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    FileClient.register_backend('disk', WholeFileBackend, force=True)


def _temporary_name(name: str) -> str:
    # Hidden, and not ending as a checkpoint does: nothing takes it for one. Cut,
    # because file systems allow 255 bytes, and a letter takes up to 4.
    return f'.{name[:60]}.{secrets.token_hex(4)}.part'


def _sync_folder(folder: Path) -> None:
    """Put the new name onto the disk; some file systems (and Windows) cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _explained(
    error: OSError, path: str | os.PathLike[str], num_bytes: int
) -> SaveError:
    """Return the error that says it in one sentence."""
    needed = f'{num_bytes / 1e6:,.1f} MB are needed'
    reasons = {
        errno.ENOSPC: f'the disk is full ({needed}{_free(path)}); make room',
        errno.EDQUOT: f'your disk quota is used up ({needed}); make room',
        errno.EFBIG: f'files may not be so large here ({needed}); see `ulimit -f`',
        errno.ENOENT: 'its folder has vanished; make it again',
        errno.EROFS: 'its disk is read-only; make it writable',
        errno.EACCES: 'its folder is not yours to write to; change its permissions',
    }
    reason = reasons.get(error.errno or 0, f'{error.strerror or error}; mend that')
    return SaveError(
        error.errno,
        f'{os.fspath(path)}: not saved: {reason} and go on, what was saved before is '
        'whole',
    )


def _free(path: str | os.PathLike[str]) -> str:
    try:
        free = shutil.disk_usage(Path(path).parent).free
    except OSError:
        return ''
    return f', {free / 1e6:,.1f} MB are free'
