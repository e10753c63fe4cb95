# SPDX-License-Identifier: Apache-2.0
"""Every config loads, fits its model, is named by the rules, and is in the index."""

import ast
import gzip
import importlib
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config, ConfigDict

from internimage import CBInternImage, InternImage
from tests.golden import read_json
from tests.our_configs import (
    LEAVES,
    METAFILES,
    build_on_meta,
    index,
    published_config,
    read_config,
)
from tests.paths import CONFIGS, DATA, ROOT

ARCHS = InternImage.arch_aliases

PART = '[a-z0-9]+(-[a-z0-9]+)*'
NAME = re.compile(rf'({PART}_)*(cb-)?internimage-(?P<variant>{PART})(_{PART})+')

every_leaf = pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)


@every_leaf
def test_training_is_saved_whole_resumed_exactly_and_stopped_at_nan(path: Path):
    hooks = read_config(path).default_hooks
    assert hooks.checkpoint.type == 'WholeCheckpointHook'
    assert hooks.random_streams == {'type': 'RandomStreamHook'}
    assert hooks.finite_loss == {'type': 'FiniteLossHook'}


@every_leaf
def test_backbone_and_neck_fit(path: Path):
    config = read_config(path)
    backbone = build_on_meta(config.model.backbone, config.default_scope)
    assert config.channels == list(backbone.arch.level_channels)
    if 'neck' not in config.model:
        return
    neck = build_on_meta(config.model.neck, config.default_scope)
    levels = backbone.out_indices
    is_composite = isinstance(backbone, CBInternImage)
    if is_composite:
        levels = levels[1]  # what the first branch returns too
    features = tuple(
        torch.empty(2, config.channels[i], 64 >> i, 96 >> i, device='meta')
        for i in levels
    )
    neck((features, features) if is_composite else features)


@every_leaf
def test_name_says_what_it_is(path: Path):
    match = NAME.fullmatch(path.stem)
    assert match, f'{path.name}: expected <method>_internimage-<variant>_<schedule>_...'
    assert read_config(path).backbone.arch == ARCHS[match['variant']]


@every_leaf
def test_docstring_has_result_and_command(path: Path):
    metrics = [
        value
        for result in index()[path.stem].get('Results', [])
        for value in result['Metrics'].values()
    ]
    expectation, command = ast.get_docstring(ast.parse(path.read_text())).splitlines()
    for value in metrics:
        assert str(value) in expectation
    # mim finds a name in configs/ alone.
    name = path.name if CONFIGS in path.parents else '<path of this file>'
    assert command.startswith(f'mim train internimage {name} ')


@every_leaf
def test_mim_takes_the_command(path: Path, monkeypatch: pytest.MonkeyPatch):
    testing = pytest.importorskip('click.testing')
    try:
        for distribution in ('internimage', 'onedl-mim'):
            metadata.distribution(distribution)
    except metadata.PackageNotFoundError as missing:
        pytest.skip(f'{missing}')
    started = []
    monkeypatch.setattr(
        subprocess, 'check_call', lambda command, env: started.append(command) or 0
    )
    command = ast.get_docstring(ast.parse(path.read_text())).splitlines()[1]
    command = command.replace('<path of this file>', path.name).split()
    options = command[4:]
    # By path, as in a checkout mim finds a name more than once.
    arguments = ['internimage', str(path), *options]
    result = testing.CliRunner().invoke(
        importlib.import_module('mim.commands.train').cli, arguments
    )
    assert result.exit_code == 0, f'{result.output}{result.exception}'
    (called,) = started
    start = called.index(str(ROOT / 'tools' / 'train.py'))
    launcher = options[options.index('-l') + 1]
    assert called[start + 1 : start + 4] == [str(path), '--launcher', launcher]


@pytest.mark.parametrize('variant', ARCHS)
def test_variant_file_states_its_own_facts(variant: str):
    config = Config.fromfile(CONFIGS / '_base_' / f'internimage_{variant}.py')
    facts = {'custom_imports', 'backbone', 'channels'}
    # Huge and giant have no released classifier with a pooling neck.
    if variant in 'hg':
        assert set(config.to_dict()) == facts
    else:
        assert set(config.to_dict()) == facts | {'conv_pool_channels'}
        # Source: `cls_scale` of the published classifier is 1.5.
        assert config.conv_pool_channels == config.channels[-1] * 3 // 2
    assert config.backbone.arch == ARCHS[variant]
    assert f'internimage_{variant}_' in config.backbone.init_cfg.checkpoint
    settings = ConfigDict(config.backbone)
    settings.pop('_delete_')
    backbone = build_on_meta(settings)
    assert list(backbone.arch.level_channels) == config.channels


def literal_dicts(path: Path, num_lines: int) -> Iterator[str]:
    """Yield the text of each dict in a file that spans ``num_lines`` or more."""
    for node in ast.walk(ast.parse(path.read_text())):
        is_call = isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict'
        if not is_call and not isinstance(node, ast.Dict):
            continue
        if node.end_lineno - node.lineno + 1 >= num_lines:
            yield ast.unparse(node)


def test_no_dict_is_repeated_in_three_leaves():
    places = defaultdict(set)
    for path in LEAVES:
        for text in literal_dicts(path, num_lines=6):
            places[text].add(path.name)
    assert not {text: files for text, files in places.items() if len(files) >= 3}


def test_index_lists_every_config():
    models = index()
    stems = {path.stem for path in LEAVES}
    on_disk = {*CONFIGS.glob('*/*.py'), *ROOT.glob('projects/*/configs/*.py')}
    quickstart = set(ROOT.glob('projects/quickstart/configs/*.py'))
    assert on_disk - quickstart - set(CONFIGS.glob('_base_/*')) == set(LEAVES)
    for name, model in models.items():
        assert (ROOT / model['Config']).is_file()
        # Two published configs may be one of ours, which then has two names.
        stem = name if name in stems else name.removesuffix('_ms')
        assert Path(model['Config']).stem == stem
    configs = {model['Config'] for model in models.values()}
    assert {str(path.relative_to(ROOT)) for path in LEAVES} <= configs
    assert stems <= set(models)
    imports = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert imports == [str(path.relative_to(ROOT)) for path in METAFILES]


def test_index_counts_every_published_model():
    """As a program does that knows the published configs and follows the index."""
    published = set()
    for name in ('zoo_classification', 'zoo', 'zoo_segmentation'):
        published |= set(read_json(f'{name}.json.gz'))
    root = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    converted = [
        model['Converted From']
        for path in root['Import']
        for model in yaml.safe_load((ROOT / path).read_text())['Models']
        if 'Converted From' in model
    ]
    ours = {of['Code'].split('/blob/')[1].split('/', 1)[1]: of for of in converted}
    assert len(published) == 58
    assert not published - set(ours)
    classifiers = [ours[name] for name in published if 'classification/' in name]
    assert len({of['Weights'] for of in classifiers}) == 8


# Published config -> name of its weights, where one is for several configs or ends
# otherwise.
WEIGHTS = {
    'dino_4scale_internimage_t_1x_coco_layer_wise_lr': (
        'dino_4scale_internimage_t_1x_coco'
    ),
    **{
        f'dino_4scale_cbinternimage_h_objects365_{name}': (
            f'dino_4scale_cbinternimage_h_objects365_{data}'
        )
        for name, data in (
            *(('lvis_minival_ss', 'lvis'), ('lvis_val_ss', 'lvis')),
            *(('voc07', 'voc0712'), ('voc12', 'voc0712')),
        )
    },
}
FOLDER_OF_WEIGHTS = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main'


@pytest.mark.parametrize('name', [n for n, m in index().items() if 'Weights' in m])
def test_weights_have_the_published_name(name: str):
    """A file is called as the config that made it; at one scale or at several."""
    model = index()[name]
    code = published_config(model)
    if code is None:  # tested elsewhere too
        others = [m for m in index().values() if m.get('Weights') == model['Weights']]
        assert any(published_config(other) for other in others)
        return
    stem = Path(code).stem
    expected = WEIGHTS.get(stem, re.sub('_[sm]s$', '', stem))
    assert model['Weights'] == f'{FOLDER_OF_WEIGHTS}/{expected}.pth'
    assert model['Converted From']['Weights'] == model['Weights']


def test_every_address_of_weights_is_one_of_these():
    """In all configs and documents: of the index, or of what a recipe starts from."""
    known = {model['Weights'] for model in index().values() if 'Weights' in model}
    for recipes in ('recipes.json', 'recipes_segmentation.json.gz'):
        known |= set(re.findall(rf'{FOLDER_OF_WEIGHTS}/[\w.-]+', read_text(recipes)))
    files = [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')]
    for folder in ('configs', 'projects'):
        files += [p for p in (ROOT / folder).rglob('*') if p.suffix in ('.md', '.py')]
    for path in files:
        text = path.read_text().replace('$HF', FOLDER_OF_WEIGHTS)
        for address in re.findall(rf'{FOLDER_OF_WEIGHTS}/[\w.-]+\w', text):
            assert address in known, f'{path}: {address}'


def read_text(name: str) -> str:
    """Return a file of ``tests/data``, as it is before it was compressed."""
    content = (DATA / name).read_bytes()
    return (gzip.decompress(content) if name.endswith('.gz') else content).decode()


@pytest.mark.parametrize('path', METAFILES, ids=lambda path: path.parent.name)
def test_readme_agrees_with_metafile(path: Path):
    content = yaml.safe_load(path.read_text())
    for collection in content['Collections']:
        assert collection['README'] == str(
            path.with_name('README.md').relative_to(ROOT)
        )
    lines = path.with_name('README.md').read_text().splitlines()
    for model in content['Models']:
        name = Path(model['Config']).relative_to(path.parent.relative_to(ROOT))
        (row,) = (line for line in lines if f'({name})' in line)
        assert model.get('Weights', '') in row
        for result in model.get('Results', []):
            for value in result['Metrics'].values():
                assert f'| {value} |' in row


def test_mim_reads_the_index():
    search = pytest.importorskip('mim.commands.search')
    table = search.convert2df(search.load(str(ROOT / 'model-index.yml')))
    weights = {name: model.get('Weights') for name, model in index().items()}
    assert table['weight'].where(table['weight'].notna(), None).to_dict() == weights
