# SPDX-License-Identifier: Apache-2.0
"""What generators of data sets share: a marker of what is complete, and a program."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from internimage.engine import write_whole

logger = logging.getLogger(__name__)


def write_once(
    root: Path,
    marker_name: str,
    parameters: dict[str, Any],
    paths: Sequence[Path],
    draw: Callable[[], None],
) -> bool:
    """Write a data set, unless the same one is there already and complete.

    Args:
        root: Folder to write to.
        marker_name: File in it that says which data set it holds.
        parameters: What determines the data set, as JSON can hold it.
        paths: All its files. Others in their folders, left over from a larger set, are
            deleted.
        draw: Writes the files; their folders exist.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: The folders hold files that no such generator wrote.
    """
    marker = root / marker_name
    tops = {root / path.relative_to(root).parts[0] for path in paths}
    found = {file for top in tops for file in top.rglob('*.*')}
    if marker.exists():
        if json.loads(marker.read_text()) == parameters and found == set(paths):
            return False
    elif found:
        raise ValueError(
            f'{root}: expected a folder written by this generator, with {marker_name}, '
            'found another data set; choose another folder'
        )
    root.mkdir(parents=True, exist_ok=True)
    # Written first with no content: an interrupted run is known for what it is.
    write_whole(marker, b'{}\n')
    for path in found - set(paths):
        path.unlink()
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    draw()
    write_whole(marker, f'{json.dumps(parameters)}\n'.encode())
    return True


def write_config(path: Path, template: str, **values: Any) -> None:
    """Fill in a config and write it so that it can be read back.

    Its text is UTF-8 in any locale. A path that the locale cannot decode has surrogates
    in place of its bytes: as escapes they mean the same path.

    Args:
        path: Where to write it; the template may name it in its docstring.
        template: The text, for ``str.format``.
        **values: What to fill in.
    """
    text = template.format(path=path, **values)
    path.write_bytes(text.encode(errors='backslashreplace'))


def generate_from_command_line(
    title: str,
    generate: Callable[..., bool],
    num_images: tuple[int, int],
    argv: Sequence[str] | None,
) -> None:
    """Be the program of a generator.

    Args:
        title: What it does.
        generate: Writes the data set to a folder; says whether it had to.
        num_images: How many for training and validation, unless told otherwise.
        argv: Arguments; those of the process if None.
    """
    num_train, num_val = num_images
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument('root', type=Path, help='folder to write the data set to')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--num-train', type=int, default=num_train, metavar='N')
    parser.add_argument('--num-val', type=int, default=num_val, metavar='N')
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        is_new = generate(
            args.root, seed=args.seed, num_train=args.num_train, num_val=args.num_val
        )
    except ValueError as error:
        parser.error(str(error))
    logger.info('%s: %s', args.root, 'written' if is_new else 'already complete')
