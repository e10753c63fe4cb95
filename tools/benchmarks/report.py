# SPDX-License-Identifier: Apache-2.0
"""Make the tables of README.md from the JSON files: none of them is typed.

``--write`` replaces what is between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import OURS, RESULTS, load_results
from timing import say

README = Path(__file__).parent / 'README.md'
MARKED = re.compile(
    r'(?P<start><!-- bench:(?P<name>[\w-]+) -->\n).*?(?P<end><!-- /bench -->)',
    re.DOTALL,
)


def make_tables(results: Sequence[dict[str, Any]], name: str) -> str:
    """Return the tables of a benchmark, one for each result file."""
    chosen = [result for result in results if result['benchmark'] == name]
    if not chosen:
        return 'Not measured yet.\n'
    return '\n'.join(make_table(result) for result in chosen)


def make_table(result: dict[str, Any]) -> str:
    """Return a heading that says where and when, and a table of all rows."""
    machine, settings = result['machine'], result['settings']
    parts = [machine['device'], settings['dtype'], f'{machine["threads"]} threads']
    if settings['device'] != 'cpu':
        parts[2] = f'driver {machine["driver"]}'
    parts += [f'PyTorch {machine["torch"]}', f'commit {machine["commit"]}']
    parts += [machine['date'][:10]]
    if 'copy_gb_per_s' in machine:
        parts.append(f'copy {machine["copy_gb_per_s"]} GB/s')
    lines = [f'{", ".join(parts)}:', '']
    columns = _columns(result['rows'])
    lines += [
        '| ' + ' | '.join(columns) + ' |',
        '|---' * 4 + '|--:' * (len(columns) - 4),
    ]
    lines[-1] += '|'
    for row in result['rows']:
        # Who could not run is said by the benchmark and is in its JSON.
        if 'median_s' in row:
            lines.append(f'| {" | ".join(_cells(row, columns))} |')
    return '\n'.join(lines) + '\n'


_ALWAYS = ['case', 'batch', 'pass', 'participant', 'time, ms', 'quartiles', 'ratio']
_OPTIONAL = {
    'gb_per_s': 'GB/s',
    'floor_ratio': 'of floor',
    'ns_per_pixel': 'ns/pixel',
    'images_per_s': 'images/s',
    'peak_bytes': 'peak MiB',
    'error': 'error',
}


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the heads of the columns that some row fills."""
    more = [
        head
        for key, head in _OPTIONAL.items()
        if any(row.get(key) is not None for row in rows)
    ]
    return _ALWAYS + more


def _cells(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    case = row['case']
    if 'size' in row:
        height, width, channels, groups = row['size']
        case = f'{case}: {height}x{width}x{channels}, G{groups}'
    ours = row['participant'] == OURS
    texts = {
        'case': case,
        'batch': str(row['batch']),
        'pass': row['pass'],
        'participant': f'**{OURS}**' if ours else row['participant'],
        'time, ms': _digits(row['median_s'] * 1e3),
        'quartiles': f'{_digits(row["q1_s"] * 1e3)} ... {_digits(row["q3_s"] * 1e3)}',
        'ratio': '' if row['ratio'] is None else f'{row["ratio"]:.2f}',
    }
    scale = {'peak_bytes': 2.0**-20}
    for key, head in _OPTIONAL.items():
        value = row.get(key)
        if value is None:
            texts[head] = ''
        elif key == 'error':
            texts[head] = f'{value:.0e}'
        else:
            texts[head] = _digits(value * scale.get(key, 1.0))
    return [texts[column] for column in columns]


def _digits(value: float) -> str:
    """Return a number with three digits, without an exponent."""
    if abs(value) >= 100:
        return f'{value:.0f}'
    return f'{value:.3g}' if abs(value) >= 0.001 else '0'


def fill(text: str, results: Sequence[dict[str, Any]]) -> str:
    """Return a document with its marked parts replaced."""
    return MARKED.sub(
        lambda match: (
            f'{match["start"]}{make_tables(results, match["name"])}{match["end"]}'
        ),
        text,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description='Make the README tables from JSON.')
    parser.add_argument(
        'files', nargs='*', type=Path, default=[RESULTS], help='JSON files, or folders'
    )
    parser.add_argument(
        '--write', action='store_true', help='replace the marked parts of the README'
    )
    parser.add_argument('--readme', type=Path, default=README, help='which README')
    args = parser.parse_args(argv)
    results = load_results(args.files)
    if args.write:
        args.readme.write_text(fill(args.readme.read_text(), results))
        return
    for name in dict.fromkeys(result['benchmark'] for result in results):
        say(f'## {name}\n\n{make_tables(results, name)}')


if __name__ == '__main__':
    main()
