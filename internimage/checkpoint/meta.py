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
from pathlib import PurePath
from typing import Any

from mmengine.logging import MessageHub, print_log

from .key_maps import shorten

_BEST = re.compile(r'best_.+\.pth')


def without_code(content: dict[str, Any], filename: str) -> dict[str, Any]:
    """Take out what mmengine would run, or delete files by.

    The config in the file is compared with that of the present runner, as a text. A
    difference is logged.

    Args:
        content: What was read.
        filename: What to call the file in messages.

    Returns:
        A copy of ``content`` without them, as deep as it has to be.
    """
    content = dict(content)
    texts = []
    if isinstance(content.get('meta'), dict):
        meta = dict(content['meta'])
        texts += [meta.pop(key, None) for key in ('cfg', 'config')]
        content['meta'] = meta
    hub = content.get('message_hub')
    if isinstance(hub, dict) and isinstance(hub.get('runtime_info'), dict):
        info = _RuntimeInfo(hub['runtime_info'])
        info.filename = filename
        texts.append(info.pop('cfg', None))
        content['message_hub'] = {**hub, 'runtime_info': info}
        _forget_foreign_files(info, filename)
    _compare(texts, filename)
    return content


class _RuntimeInfo(dict):
    """What the message hub kept. mmengine's inferencers look for a config in it."""

    filename = 'checkpoint'

    def __missing__(self, key: str) -> Any:
        if key == 'cfg':
            raise ValueError(
                f'{self.filename}: expected a config beside these weights, got none. '
                'One in a checkpoint is not used, because a config is code: give the '
                "model's config file"
            )
        raise KeyError(key)


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
