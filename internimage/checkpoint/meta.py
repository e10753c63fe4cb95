# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says beside its weights, made harmless before mmengine gets it.

mmengine runs texts of a checkpoint as a config: ``meta['config']`` when it resumes, and
``meta['cfg']`` or that of the message hub in an inferencer without a config. A config
is Python. Even one of plain literals is code: its ``type`` can be the name of any class
of any module, and ``custom_imports`` any module. So no text leaves this module.

And mmengine deletes what a checkpoint names: the best checkpoint before the new one
(a folder with all that is in it), and those beyond the number to keep.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from mmengine.logging import MessageHub, print_log

from .key_maps import shorten

_BEST = re.compile(r'best_.+\.pth')


_KINDS: dict[str, type | tuple[type, ...]] = {
    'state_dict': dict,
    'meta': dict,
    'message_hub': dict,
    'optimizer': dict,
    'param_schedulers': (list, dict),
}
_HUB_KINDS = dict.fromkeys(('log_scalars', 'runtime_info', 'resumed_keys'), dict)
_META_KINDS = dict.fromkeys(('epoch', 'iter'), int)

_NO_RUN = (
    'a run cannot be resumed from it (`load_from` starts from its weights), and '
    "inferencers need the model's config file beside it"
)
_NO_CONFIG = (
    'expected a config beside these weights, got none. One in a checkpoint is not '
    "used, because a config is code: give the model's config file"
)


def without_code(content: dict[str, Any], filename: str) -> dict[str, Any]:
    """Take out what mmengine would run, or delete files by.

    The config in the file is compared with that of the present runner, as a text. A
    difference is logged.

    Args:
        content: What was read.
        filename: What to call the file in messages.

    Returns:
        A copy of ``content`` without them, as deep as it has to be.

    Raises:
        ValueError: What mmengine looks into is of another type than it writes.
    """
    content = {k: v for k, v in content.items() if v is not None or k not in _KINDS}
    _check_kinds(content, _KINDS, filename)
    texts = []
    if 'meta' in content:
        meta = dict(content['meta'])
        texts += [meta.pop(key, None) for key in ('cfg', 'config')]
        _check_kinds(meta, _META_KINDS, filename)
        content['meta'] = meta
    if 'message_hub' in content:
        hub = dict(content['message_hub'])
        _check_kinds(hub, _HUB_KINDS, filename)
        if 'runtime_info' in hub:
            info = _Entries(hub['runtime_info'], filename, {'cfg': _NO_CONFIG})
            texts.append(info.pop('cfg', None))
            _forget_foreign_files(info, filename)
            hub['runtime_info'] = info
        content['message_hub'] = hub
    _compare(texts, filename)
    return content


def named_after(content: Any, filename: str) -> Any:
    """Let what is missing from a checkpoint be told with the name of its file.

    Args:
        content: What mmengine gets.
        filename: What to call the file.
    """
    if not isinstance(content, dict):
        return content
    if isinstance(content.get('meta'), dict):
        reasons = {key: f'it says of no {key}: {_NO_RUN}' for key in _META_KINDS}
        content = {**content, 'meta': _Entries(content['meta'], filename, reasons)}
    reasons = {key: f'it has no {key}: {_NO_RUN}' for key in ('meta', 'message_hub')}
    return _Entries(content, filename, reasons)


class _Entries(dict):
    """Entries of a checkpoint; of some it says why they are not there."""

    def __init__(
        self, entries: dict[str, Any], filename: str, reasons: dict[str, str]
    ) -> None:
        super().__init__(entries)
        self._filename = filename
        self._reasons = reasons

    def __missing__(self, key: str) -> Any:
        if key in self._reasons:
            raise ValueError(f'{self._filename}: {self._reasons[key]}')
        raise KeyError(key)

    def __reduce__(self) -> Any:
        # Who saves it writes no class of ours into a file.
        return OrderedDict, (), None, None, iter(self.items())


def _check_kinds(
    entries: dict[str, Any], kinds: Mapping[str, Any], filename: str
) -> None:
    for key, kind in kinds.items():
        if key in entries and not isinstance(entries[key], kind):
            expected = {int: 'an int', dict: 'a dict'}.get(kind, 'a list')
            raise ValueError(
                f'{filename}: expected {expected} as {key!r}, got an object of type '
                f'{type(entries[key]).__name__!r}'
            )


def _forget_foreign_files(info: dict[str, Any], filename: str) -> None:
    """Drop names of files that no checkpoint hook gave, before one deletes them."""
    dropped = [
        key
        for key, value in info.items()
        if (key == 'best_ckpt' or str(key).startswith('best_ckpt_'))
        and not (isinstance(value, str) and _BEST.fullmatch(PurePath(value).name))
    ]
    kept = info.get('keep_ckpt_ids', [])
    if not (isinstance(kept, list) and all(type(step) is int for step in kept)):
        dropped.append('keep_ckpt_ids')
    for key in dropped:
        del info[key]
    if dropped:
        print_log(
            f'{filename}: left out {shorten(dropped)}, by which files are deleted that '
            'are no checkpoints',
            'current',
        )


def _compare(texts: list[Any], filename: str) -> None:
    """Log how the config of the present runner differs from a saved one."""
    present = MessageHub.get_current_instance().runtime_info.get('cfg')
    others = (text for text in texts if isinstance(text, str) and text != present)
    saved = next(others, None)
    if saved is None or not isinstance(present, str):
        return
    print_log(
        f'{filename}: written with another config than the present one. Only in its '
        f'config: {_lines_without(saved, present)}. Only in the present one: '
        f'{_lines_without(present, saved)}',
        'current',
    )


def _lines_without(text: str, other: str) -> str:
    others = {line.strip() for line in other.splitlines()}
    lines = [line.strip() for line in text.splitlines()]
    return shorten([line[:60] for line in lines if line not in others], 3) or 'nothing'
