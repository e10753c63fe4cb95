# SPDX-License-Identifier: Apache-2.0
"""Write a published checkpoint with the names that our models use.

Published files also load as they are, wherever mmengine loads a checkpoint. A converted
one is for programs that do not import internimage, and to see what goes where. A file
with parts missing is refused, unless ``--allow-missing`` says that it may.
"""

import argparse
import io
import json
import pickle
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from internimage import InternImage
from internimage.checkpoint import convert_published, load_checkpoint_file
from internimage.checkpoint.completeness import find_gaps
from internimage.checkpoint.key_maps import ANCHOR, innermost, is_known, shorten
from internimage.checkpoint.reading import SAFETENSORS_META, errors_of
from internimage.engine import write_whole

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
    with errors_of(path):
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


def find_missing(weights: Mapping[str, Tensor], config: Path | None) -> list[str]:
    """Name what is missing from converted weights.

    Args:
        weights: As :func:`convert` returns them.
        config: Of the model that they are for: it knows all names. None to know them
            by their like (:func:`find_gaps`), and by the size of the backbone.
    """
    if config is not None:
        return sorted(
            name
            for name in _names_of_model(config).difference(weights)
            if not name.endswith('.num_batches_tracked')
        )
    missing = find_gaps(weights)
    starts = {n[: m.start()] for n in weights if (m := re.search(r'levels\.\d+\.', n))}
    starts |= {n.removesuffix(ANCHOR) for n in weights if n.endswith(ANCHOR)}
    expected = [f'{start}{n}' for start in starts for n in _backbone(weights, start)]
    missing += [
        name
        for name in expected
        if name not in weights
        # A layer scale that starts at 1 changes nothing; a batch norm may count anew.
        and not name.endswith(('.gamma1', '.gamma2', '.num_batches_tracked'))
        and not any(name.startswith(f'{part}.') for part in missing)
    ]
    return sorted(set(missing))


def _backbone(weights: Mapping[str, Tensor], start: str) -> list[str]:
    """Name the weights of the InternImage that some weights are of.

    One of a published size has the published depths, at least.
    """
    names = {n.removeprefix(start) for n in weights if n.startswith(start)}
    depths: dict[int, int] = defaultdict(int)
    for name in names:
        if match := re.match(r'levels\.(\d+)\.blocks\.(\d+)\.', name):
            level, block = map(int, match.groups())
            depths[level] = max(depths[level], block + 1)
    found = [depths[level] or 1 for level in range(max(depths, default=0) + 1)]
    published = {arch['channels']: arch for arch in InternImage.arch_settings.values()}
    stem = weights.get(f'{start}patch_embed.conv2.weight')
    arch = published.get(len(stem), {}) if stem is not None else {}
    known = arch.get('depths', ())
    is_larger = len(found) > len(known) or any(
        a > b for a, b in zip(found, known, strict=False)
    )
    if is_larger or not arch:
        first = 'levels.0.blocks.0.'
        blocks = [n.split('.')[3] for n in names if '.post_norms.' in n]
        arch = {
            'channels': 4,
            'depths': found,
            'groups': [1] * len(found),
            'post_norm': 'levels.0.norm.0.weight' not in names,
            'res_post_norm': f'{first}res_post_norm1.0.weight' in names,
            'center_feature_scale': f'{first}dcn.center_feature_scale_proj_weight'
            in names,
            'level2_post_norm': bool(blocks),
            'level2_post_norm_block_ids': sorted({int(b) for b in blocks}) or None,
        }
    with torch.device('meta'):
        expected = list(InternImage(arch).state_dict())
    # Of a composite backbone, the first has the stem for all.
    has_stem = not re.search(r'cb_modules\.[1-9]\d*\.$', start)
    return [n for n in expected if has_stem or not n.startswith('patch_embed.')]


def _names_of_model(path: Path) -> set[str]:
    config = Config.fromfile(path)
    init_default_scope(config.get('default_scope', 'mmengine'))
    return set(MODELS.build(config.model).state_dict())


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
    """Write weights in the format that the suffix names, the whole file or none."""
    if path.suffix == '.safetensors':
        from safetensors.torch import save

        # The format knows no views, and no memory in common.
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        said = {'format': 'pt', SAFETENSORS_META: json.dumps(_plain(meta))}
        content = save(copies, said)
    else:
        buffer = io.BytesIO()
        torch.save({'state_dict': tensors, 'meta': meta}, buffer)
        content = buffer.getvalue()
    write_whole(path, content)


def _plain(value: object) -> object:
    """Turn what JSON does not know into what is nearest; drop a config's text."""
    if isinstance(value, dict):
        items = ((k, v) for k, v in value.items() if k not in ('cfg', 'config'))
        return {str(key): _plain(item) for key, item in items}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return _plain(value.tolist()) if hasattr(value, 'tolist') else str(value)


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
    parser.add_argument(
        '--config', type=Path, help="the model's config: none of its weights may miss"
    )
    parser.add_argument(
        '--allow-missing', action='store_true', help='convert what is there'
    )
    args = parser.parse_args(argv)
    if args.target.suffix not in ('.pth', '.safetensors'):
        parser.error(f'OUT: expected .pth or .safetensors, got {args.target}')
    if args.target.exists():
        parser.error(f'OUT: {args.target} exists')
    try:
        tensors, meta, table = convert(args.source)
        missing = find_missing(tensors, args.config)
        if missing and not args.allow_missing:
            raise ValueError(
                f'{args.source}: {len(missing)} parts or weights are missing: '
                f'{shorten(missing, 12)}; --allow-missing converts the rest'
            )
        save(tensors, meta, args.target)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        parser.error(str(error))
    print(table)
    if missing:
        print(f'missing: {shorten(missing, 12)}')
    print(f'{args.target}: written')


if __name__ == '__main__':
    main()
