# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint of a folder a run goes on from."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.dist import (
    broadcast_object_list,
    init_dist,
    is_distributed,
    is_main_process,
)
from mmengine.logging import print_log
from mmengine.utils.dl_utils import set_multi_processing

from internimage.checkpoint import load_checkpoint_file

from .whole_files import find_leftovers

_SUFFIXES = {'.pth', '.pt', '.ckpt'}
_NUMBER = re.compile(r'\d+(?=\D*$)')
# What lacks the state of the optimizer by design: the best one, and what is published.
_WEIGHTS_ONLY = re.compile(r'best_.*|.*-[0-9a-f]{8}\.pth')


class ResumeError(RuntimeError):
    """A folder has checkpoints, and none of them can be resumed."""


class _Candidate(NamedTuple):
    """A checkpoint that loads; the larger one is further in its training."""

    iteration: int
    has_optimizer: bool
    path: Path


def choose_resumable(config: Config) -> str | None:
    """Return the checkpoint that all processes of a job go on from.

    The first process chooses, as files may change while others look.

    Args:
        config: Of the run, with ``work_dir`` and ``launcher``. A distributed job is
            initialised, as the runner would do later.

    Returns:
        See :func:`find_resumable`.
    """
    if config.launcher != 'none' and not is_distributed():
        environment = config.get('env_cfg', {})
        set_multi_processing(**environment.get('mp_cfg', {}), distributed=True)
        init_dist(config.launcher, **environment.get('dist_cfg', {}))
    chosen: list[str | None] = [None]
    if is_main_process():
        hook = config.get('default_hooks', {}).get('checkpoint') or {}
        name = os.path.basename(config.work_dir.rstrip(os.sep))
        out_dir = hook.get('out_dir')
        folders = [os.path.join(out_dir, name)] if out_dir else []
        chosen = [find_resumable(config.work_dir, folders)]
    broadcast_object_list(chosen)
    return chosen[0]


def find_resumable(work_dir: str, more_folders: Iterable[str] = ()) -> str | None:
    """Return the checkpoint to go on from: the newest that loads, by its iteration.

    A file that cannot be loaded, or is no state of a training, is passed over, and said
    to be, and so is a ``last_checkpoint`` that names none or not the newest. Files are
    loaded from the highest number in their name downwards until one is whole, so mostly
    it is one. Those of the best weights come last: they have no optimizer.

    Args:
        work_dir: Folder of the run, with its ``last_checkpoint``.
        more_folders: Where its checkpoints are kept, if not there.

    Returns:
        Path or address of the checkpoint, or None where a run has left none.

    Raises:
        ResumeError: There are files, and none is whole: to start anew would bury that.
    """
    named = _read_pointer(Path(work_dir))
    pointed = _locate(named, Path(work_dir)) if named else None
    if pointed is not None and ('://' in pointed or os.path.isdir(pointed)):
        return pointed  # in a storage, or a folder of shards: not ours to look into
    folders = [Path(work_dir), *map(Path, more_folders)]
    if pointed is not None:
        folders.append(Path(pointed).parent)
    files = _list_checkpoints(folders)
    found = max(_whole_checkpoints(files), default=None)
    if found is None:
        if not named and not files:
            return None
        raise ResumeError(
            f'{work_dir}: no checkpoint here can be resumed; name another with '
            '--resume, or empty the folder to start anew'
        )
    if pointed is not None and Path(pointed).name != found.path.name:
        _say(f'last_checkpoint names {pointed}, but {found.path} is newer or whole')
    if not found.has_optimizer:
        _say(f'{found.path}: has no optimizer: it starts anew')
    return str(found.path)


def _read_pointer(folder: Path) -> str:
    """Return what ``last_checkpoint`` says, '' if there is none."""
    file = folder / 'last_checkpoint'
    if not file.is_file():
        return ''
    named = os.fsdecode(file.read_bytes()).strip()
    if not named:
        _say(f'{file}: passed over: empty')
    return named


def _locate(named: str, folder: Path) -> str | None:
    """Return where the checkpoint of a name is, or None."""
    # A run is not always resumed from where it was started, nor in the same place.
    for path in (named, str(folder / os.path.basename(named))):
        if '://' in path or os.path.exists(path):
            return path
    _say(f'last_checkpoint in {folder}: passed over: no such file: {named}')
    return None


def _list_checkpoints(folders: list[Path]) -> list[Path]:
    """Return the files that may be checkpoints, and tell of parts of such."""
    files = []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        for leftover in find_leftovers(folder):
            _say(f'{leftover}: passed over: a killed run left it half')
        if folder.is_dir():
            files += [path for path in folder.iterdir() if path.suffix in _SUFFIXES]
    return sorted(files)


def _whole_checkpoints(files: list[Path]) -> Iterator[_Candidate]:
    """Yield of each kind of file name (``epoch_*.pth``) the newest that loads."""
    families: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    last_choice = []
    for path in files:
        if _WEIGHTS_ONLY.fullmatch(path.name):
            last_choice.append(path)
        else:
            families[path.parent, _NUMBER.sub('{}', path.name)].append(path)
    found = False
    for paths in families.values():
        for path in sorted(paths, key=_number, reverse=True):
            candidate = _load(path)
            if candidate is not None:
                found = True
                yield candidate
                break
    if not found:
        yield from filter(None, map(_load, last_choice))


def _number(path: Path) -> int:
    number = _NUMBER.search(path.name)
    return int(number[0]) if number else -1


def _load(path: Path) -> _Candidate | None:
    """Load a checkpoint to see whether it is whole and the state of a training."""
    try:
        checkpoint = load_checkpoint_file(path)
    except Exception as error:  # a damaged file may make a reader do anything
        _say(f'{path}: passed over: {str(error).removeprefix(f"{path}: ")}')
        return None
    iteration = _iteration(checkpoint)
    if iteration is None:
        _say(f'{path}: passed over: it is no state of a training')
        return None
    return _Candidate(iteration, 'optimizer' in checkpoint, path)


def _iteration(checkpoint: Any) -> int | None:
    """Return how far the training of a checkpoint is, or None if it is not of one."""
    if not isinstance(checkpoint, dict):
        return None
    if not {'meta', 'state_dict', 'message_hub'} <= checkpoint.keys():
        return None
    meta = checkpoint['meta']
    if not isinstance(meta, dict) or not isinstance(meta.get('epoch'), int):
        return None
    iteration = meta.get('iter')
    return iteration if isinstance(iteration, int) else None


def _say(what: str) -> None:
    print_log(f'resume: {what}', logger='current', level=logging.WARNING)
