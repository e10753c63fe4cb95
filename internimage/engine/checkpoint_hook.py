# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of which there is always a whole one."""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from .whole_files import find_leftovers, write_whole


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """Save checkpoints so that a kill at any moment leaves one to go on from.

    mmengine's hook deletes the oldest checkpoint before it writes the new one, and so
    the best one: with ``max_keep_ckpts=1`` there is none meanwhile. Here the old ones
    go when the new one is whole and ``last_checkpoint`` names it (for a while both need
    room on the disk). That files appear whole is the work of
    :class:`internimage.engine.WholeFileBackend`, which ``import internimage`` puts in
    the place of mmengine's backend for local files; other storages keep their ways.

    When training starts, what an earlier kill left is removed: temporary files, and
    old checkpoints that it came in time to keep. Nothing else is: a checkpoint tells
    which older ones to delete, and a path outside its own folder is not believed.

    Args:
        *args: As for mmengine's ``CheckpointHook``.
        **kwargs: As for mmengine's ``CheckpointHook``.
    """

    file_backend: Any
    keep_ckpt_ids: deque

    def before_train(self, runner: Any) -> None:
        info = runner.message_hub.runtime_info
        if 'keep_ckpt_ids' in info:  # read from a file; they become names to delete
            steps = [step for step in info['keep_ckpt_ids'] if isinstance(step, int)]
            runner.message_hub.update_info('keep_ckpt_ids', steps)
        super().before_train(runner)
        self.file_backend = _PatientBackend(self.file_backend, str(self.out_dir))
        if not is_main_process():
            return
        self._finish_saving(runner, info.get('outdated_ckpt_ids', []))
        if isinstance(self.file_backend.backend, LocalBackend):
            # `last_checkpoint` is in the work folder, wherever checkpoints go.
            for folder in {str(self.out_dir), str(runner.work_dir)}:
                for path in find_leftovers(folder):
                    path.unlink(missing_ok=True)
                    runner.logger.info(f'{path}: removed, a killed run left it half')

    def _finish_saving(self, runner: Any, outdated: list[Any]) -> None:
        """Do what a kill right after the checkpoint was whole has left undone."""
        steps = getattr(self, 'keep_ckpt_ids', None)
        if not steps or not self.file_backend.isfile(self._path(steps[-1])):
            return  # not resumed, or from a checkpoint of another folder
        _write_pointer(runner, self._path(steps[-1]))
        for step in outdated:
            if isinstance(step, int) and step not in steps:
                self._remove_checkpoint(step)
        self.file_backend.remove_now(keep=[])

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(
            self.out_dir, self.filename_tmpl.format(step)
        )

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        """Save a checkpoint, name it in ``last_checkpoint``, then delete old ones.

        mmengine's method of this name deletes first, and writes ``last_checkpoint``
        with ``open``, which a kill leaves empty.
        """
        hub = runner.message_hub
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            outdated = []
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            # For who resumes from the new one after a kill before these are deleted.
            hub.update_info('outdated_ckpt_ids', outdated)
            for old_step in outdated:
                self._remove_checkpoint(old_step)

        self.last_ckpt = self._path(step)
        hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            _write_pointer(runner, self.last_ckpt)
        self.file_backend.remove_now(keep=self._current())

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_now(keep=self._current())

    def _remove_checkpoint(self, step: int) -> None:
        """Remove the checkpoint of a step, when the backend comes to it."""
        if not is_main_process():
            return
        path = self._path(step)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's
            self.file_backend.rmtree(path)

    def _current(self) -> list[str | None]:
        """Return the paths that stand for a checkpoint now."""
        best = getattr(self, 'best_ckpt_path_dict', None) or {}
        return [self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best.values()]


class _PatientBackend:
    """A file backend that removes when it is told that the time has come.

    Args:
        backend: What does the work.
        folder: Where it may remove something.
    """

    def __init__(self, backend: Any, folder: str) -> None:
        self.backend = backend
        self._folder = folder
        self._waiting: list[tuple[Callable[[str], None], str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Remove a file, later."""
        self._waiting.append((self.backend.remove, path))

    def rmtree(self, path: str) -> None:
        """Remove a folder, later."""
        self._waiting.append((self.backend.rmtree, path))

    def remove_now(self, keep: list[str | None]) -> None:
        """Remove what waits, but for paths that stand for something new by now."""
        kept = {os.path.realpath(path) for path in keep if path}
        waiting, self._waiting = self._waiting, []
        for remove, path in waiting:
            place = os.path.realpath(path)
            if os.path.dirname(place) != os.path.realpath(self._folder):
                print_log(
                    f'{path}: not removed, though a checkpoint calls it an older one: '
                    f'it is not in {self._folder}',
                    logger='current',
                    level=logging.WARNING,
                )
            elif place not in kept:
                with contextlib.suppress(FileNotFoundError):
                    remove(path)


def _write_pointer(runner: Any, path: str) -> None:
    write_whole(os.path.join(runner.work_dir, 'last_checkpoint'), os.fsencode(path))
