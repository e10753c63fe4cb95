# SPDX-License-Identifier: Apache-2.0
"""Write a published checkpoint with the names that our models use.

Published files also load as they are, wherever mmengine loads a checkpoint. A converted
one is for programs that do not import internimage, and to see what goes where.
"""

import argparse
import pickle
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from internimage.checkpoint import convert_published, load_checkpoint_file
from internimage.checkpoint.key_maps import innermost, is_known, shorten

# mmcv 1 kept the weights before averaging among the model's own, as buffers named
# after them: `ema_backbone_...`. The other weights of such a file are the averages.
NOT_AVERAGED = 'ema_'
LEFT_OUT = '(left out: before averaging)'
JOINED = '(joined with its other pieces)'


def convert(path: Path) -> tuple[dict[str, Tensor], dict, str]:
    """Read and convert a checkpoint.

    Returns:
        The converted weights, what the file says of them (``meta``: the names of the
        classes, say), and a table of what went where.

    Raises:
        ValueError: The file holds no weights, or weights that are in none of our
            models.
    """
    content = load_checkpoint_file(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected named tensors, got a {type(content)}')
    converted = convert_published(content)
    unknown = [n for n in converted if not (is_known(n) or n.startswith(NOT_AVERAGED))]
    if unknown:
        raise ValueError(
            f'{path}: {len(unknown)} of {len(converted)} tensors are in none of our '
            f'models: {shorten(unknown)}'
        )
    kept = {n: t for n, t in converted.items() if not n.startswith(NOT_AVERAGED)}
    # What got another name is the same tensor still.
    new_names = {id(t): n if n in kept else LEFT_OUT for n, t in converted.items()}
    rows = [
        (old, new_names.get(id(tensor), JOINED), tensor)
        for old, tensor in innermost(content).items()
    ]
    meta = content.get('meta')
    return kept, meta if isinstance(meta, dict) else {}, format_table(rows)


def format_table(rows: Iterable[tuple[str, str, Tensor]]) -> str:
    """Sum up old names, new names and tensors by the parts that they belong to."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for old, new, tensor in rows:
        for key in ((part_of(old), part_of(new)), ('total', '')):
            counts[key][0] += 1
            counts[key][1] += tensor.numel()
    total = counts.pop(('total', ''))
    lines = [('published', 'ours', 'tensors', 'values')]
    for parts, count in [*counts.items(), (('total', ''), total)]:
        lines.append((*parts, *(f'{value:,}' for value in count)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}'
        for a, b, c, d in lines
    )


def part_of(name: str) -> str:
    """Return a name up to its first number, without the parameter's own name."""
    return re.sub(r'\.\d+\..*|\.(weight|bias)$', '', name)


def save(tensors: dict[str, Tensor], meta: dict, path: Path) -> None:
    """Write weights in the format that the suffix names; .safetensors has no meta."""
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        # The format knows no views, and no memory in common.
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    else:
        torch.save({'state_dict': tensors, 'meta': meta}, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert as the command line says."""
    parser = argparse.ArgumentParser(
        description='Give the weights of a published checkpoint the names that our '
        'models use, and print what went where.'
    )
    parser.add_argument(
        'source', type=Path, metavar='IN', help='.pth, .bin or .safetensors to read'
    )
    parser.add_argument(
        'target', type=Path, metavar='OUT', help='.pth or .safetensors to write'
    )
    args = parser.parse_args(argv)
    if args.target.suffix not in ('.pth', '.safetensors'):
        parser.error(f'OUT: expected .pth or .safetensors, got {args.target}')
    if args.target.exists():
        parser.error(f'OUT: {args.target} exists')
    try:
        tensors, meta, table = convert(args.source)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        parser.error(str(error))
    save(tensors, meta, args.target)
    print(table)
    print(f'{args.target}: written')


if __name__ == '__main__':
    main()
