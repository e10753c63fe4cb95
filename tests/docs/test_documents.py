# SPDX-License-Identifier: Apache-2.0
"""What the documents name is there: links, commands, files, configs, names, figures."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from tests.paths import ROOT

FOLDERS = ('.', 'docs', 'configs/*', 'projects', 'projects/*', 'tools/benchmarks')
DOCUMENTS = sorted(path for folder in FOLDERS for path in ROOT.glob(f'{folder}/*.md'))
FILES = [
    path.relative_to(ROOT)
    for top in ROOT.iterdir()
    if top.is_dir() and top.name not in ('.git', '.venv', 'build', 'data', 'work_dirs')
    for path in top.rglob('*')
]
MODELS = [
    model
    for file in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    for model in yaml.safe_load((ROOT / file).read_text())['Models']
]
CONFIGS = {Path(model['Config']).name for model in MODELS}
OURS = ('internimage', 'ops_dcnv3')
SOURCES = {'.cpp', '.cu', '.cuh', '.h', '.md', '.py', '.toml', '.txt', '.yml'}

every_document = pytest.mark.parametrize(
    'path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def blocks(path: Path, language: str = r'\w*') -> list[str]:
    """Return the blocks of a language, by default of all."""
    return re.findall(rf'^```{language}\n(.*?)^```', path.read_text(), re.M | re.S)


def prose(path: Path) -> str:
    """Return a document less its blocks."""
    return re.sub(r'^```\w*\n.*?^```', '', path.read_text(), flags=re.M | re.S)


def inline(path: Path) -> list[str]:
    """Return what stands in backticks."""
    return [' '.join(text.split()) for text in re.findall(r'`([^`]+)`', prose(path))]


def commands(path: Path) -> Iterator[str]:
    """Yield each line that may be a command."""
    indented = re.findall(r'^    (\S.*)', prose(path), re.M)
    for text in (*blocks(path), '\n'.join(indented), *inline(path)):
        yield from map(str.strip, text.replace('\\\n', ' ').splitlines())


def anchors(path: Path) -> set[str]:
    """Return the names that GitHub gives to a document's headings."""
    headings = re.findall(r'^#+ (.*)', prose(path), re.M)
    return {re.sub(r'[^\w -]', '', text).lower().replace(' ', '-') for text in headings}


@every_document
def test_links_lead_somewhere(path: Path):
    targets = re.findall(r'\[[^\]]*\]\(([^)\s]+)\)', re.sub('`[^`]*`', '', prose(path)))
    for target in targets:
        if target.startswith(('http://', 'https://')):
            continue
        place, _, anchor = target.partition('#')
        linked = (path.parent / place).resolve() if place else path
        assert linked.exists(), target
        if anchor:
            page = linked / 'README.md' if linked.is_dir() else linked
            assert anchor in anchors(page), target


@every_document
def test_make_verbs_and_their_variables_exist(path: Path):
    makefile = (ROOT / 'Makefile').read_text()
    verbs = re.findall(r'^([a-z-]+):', makefile, re.M)
    for line in commands(path):
        if match := re.match(r'make ([a-z][a-z-]*)(.*)', line):
            assert match[1] in verbs, line
            used = match[2].split('#')[0]
        elif re.fullmatch(r'[A-Z]+=', line) and 'make' in prose(path):
            used = line
        else:
            continue
        for variable in re.findall(r'\b([A-Z]+)=', used):
            assert re.search(rf'\$\(.*\b{variable}\)|^{variable} \?=', makefile, re.M)


@every_document
def test_files_in_backticks_exist(path: Path):
    tops = {file.name for file in ROOT.iterdir()} - {'.venv', 'data', 'work_dirs'}
    for text in inline(path):
        name = re.sub(r'<[^>]*>', '*', text)
        if not re.fullmatch(r'[\w.*/-]*\w[\w.*/-]*', name):
            continue
        if Path(name).parts[0] not in tops and Path(name).suffix not in SOURCES:
            continue
        if re.fullmatch(r'my_\w+\.py|(data|work_dirs)/.*', name):
            continue  # the reader's
        if name == 'classification/config.py':
            continue  # of the published code
        near = [*ROOT.glob(name), *path.parent.glob(name)]
        assert near or any(file.match(name) for file in FILES), text


@every_document
def test_configs_of_mim_are_in_the_index(path: Path):
    values = {}
    for line in commands(path):
        if match := re.fullmatch(r'([A-Z]+)=(\S+)', line):
            values[match[1]] = match[2]
        if not re.match(r'mim \w+ internimage ', line):
            continue
        line = re.sub(r'\$([A-Z]+)', lambda match: values[match[1]], line)
        words = shlex.split(line, comments=True)
        for option, word in zip(['', *words], words, strict=False):
            name = f'{word}.py' if option == '--config' else word
            of_reader = 'internimage' not in name or name.startswith('work_dirs/')
            if not name.endswith('.py') or of_reader:
                continue
            assert Path(name).name in CONFIGS, line
            assert '/' not in name or (ROOT / name).is_file(), line


@every_document
def test_python_names_can_be_imported(path: Path):
    for block in blocks(path, 'python'):
        modules = {}
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert resolve_name(f'{node.module}.{alias.name}') is not None
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    modules[alias.asname or alias.name] = import_module(alias.name)
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id)
                assert module is None or hasattr(module, node.attr), node.attr
    for text in inline(path):
        if match := re.fullmatch(rf'((?:{"|".join(OURS)})(?:\.\w+)+)(?:\(.*\))?', text):
            assert resolve_name(match[1]) is not None


def test_number_of_configs():
    said = re.search(
        r'There are (\d+) configs', (ROOT / 'docs/supported.md').read_text()
    )
    leaves = [p for p in ROOT.glob('configs/*/*.py') if p.parent.name != '_base_']
    assert int(said[1]) == len(leaves)


def test_table_of_published_files_is_the_index():
    """One row for each file, with its config and all results that were published."""
    row = re.compile(r'\| \[(.*)\]\((.*)\) \| \[(.*)\]\(\.\./(.*)\) \| (.*) \|')
    text = (ROOT / 'docs/published_weights.md').read_text()
    rows = {}
    for name, url, title, config, results in row.findall(text):
        assert (name, title) == (Path(url).name, Path(config).name)
        assert url not in rows
        rows[url] = config, {float(n) for n in re.findall(r'\d+\.\d+', results)}
    configs: dict[str, set[str]] = {}
    figures: dict[str, set[float]] = {}
    for model in MODELS:
        if url := model.get('Weights'):
            configs.setdefault(url, set()).add(model['Config'])
            results = model.get('Results', [])
            values = [v for result in results for v in result['Metrics'].values()]
            figures.setdefault(url, set()).update(map(float, values))
    assert {url: found for url, (_, found) in rows.items()} == figures
    for url, (config, _) in rows.items():
        assert config in configs[url]


def test_benchmark_tables_are_those_of_the_results(tmp_path: Path):
    folder = ROOT / 'tools' / 'benchmarks'
    copy = shutil.copy(folder / 'README.md', tmp_path)
    command = [sys.executable, folder / 'report.py', '--write', '--readme', copy]
    subprocess.run(command, check=True)
    assert Path(copy).read_text() == (folder / 'README.md').read_text()


# Row of docs/speed.md -> case of a benchmark.
SPEED = {
    'InternImage-T, one image of 224 x 224': (
        'cpu',
        'backbone',
        'InternImage-T 224x224',
        1,
        'forward',
    ),
    'InternImage-T, eight images': (
        'cpu',
        'backbone',
        'InternImage-T 224x224',
        8,
        'forward',
    ),
    'InternImage-B, one image of 224 x 224': (
        'cpu',
        'backbone',
        'InternImage-B 224x224',
        1,
        'forward',
    ),
    "A detector's InternImage-T, one image of 800 x 1216": (
        'cpu',
        'backbone',
        'InternImage-T with layer scale 800x1216',
        1,
        'forward',
    ),
    'Mask R-CNN T, a training step of 480 x 640': (
        'cpu',
        'detector',
        'Mask R-CNN 480x640',
        1,
        'training step',
    ),
    'The operator, 56 x 56 x 64': ('cpu', 'operator', 't1', 1, 'forward'),
    'The operator with gradients': ('cpu', 'operator', 't1', 1, 'forward+backward'),
    '64 maps of 56 x 56 x 64': ('cuda', 'operator-softmax', 't1', 64, 'forward'),
    '64 maps with gradients': (
        'cuda',
        'operator-softmax',
        't1',
        64,
        'forward+backward',
    ),
    '64 images, InternImage-T': (
        'cuda',
        'backbone',
        'InternImage-T 224x224',
        64,
        'forward',
    ),
    '64 images, InternImage-B': (
        'cuda',
        'backbone',
        'InternImage-B 224x224',
        64,
        'forward',
    ),
}


def test_figures_of_speed_are_those_of_the_results():
    seconds: dict[tuple, dict[str, float]] = {}
    for path in sorted(ROOT.glob('tools/benchmarks/results/*.json')):
        result = json.loads(path.read_text())
        for row in result['rows']:
            case = (
                result['settings']['device'],
                result['benchmark'],
                *(row[key] for key in ('case', 'batch', 'pass')),
            )
            if 'median_s' in row:
                seconds.setdefault(case, {})[row['participant']] = row['median_s']
    figure = r'([\d.]+) (m?s)'
    rows = re.findall(
        rf'^\| (.*) \| {figure} \| (.*) \| {figure} \|$',
        (ROOT / 'docs/speed.md').read_text(),
        re.M,
    )
    assert [row[0] for row in rows] == list(SPEED)
    for title, ours, unit, against, theirs, their_unit in rows:
        times = seconds[SPEED[title]]
        (peer,) = (name for name in times if name in against)
        for said, said_unit, who in (
            (ours, unit, 'internimage'),
            (theirs, their_unit, peer),
        ):
            measured = times[who] * (1000 if said_unit == 'ms' else 1)
            digits = len(said.partition('.')[2])
            assert float(said) == round(measured, digits), f'{title}: {measured}'


@pytest.mark.parametrize(
    'message',
    [
        'no compiled kernels for',
        'the much slower PyTorch reference is used',
        'expected the backbone of this model; ',
        'check its arch and layer_scale',
        'not loaded, because reading it could run code from the file',
    ],
)
def test_messages_of_ours_are_in_the_code(message: str):
    assert message in (ROOT / 'docs/troubleshooting.md').read_text()
    # Of a long one, literals on several lines.
    code = ''.join(
        path.read_text() for name in OURS for path in (ROOT / name).rglob('*.py')
    )
    assert message in re.sub(r"'\n\s*f?'", '', code)
