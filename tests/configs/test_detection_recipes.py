# SPDX-License-Identifier: Apache-2.0
"""Each config has the settings, the parameters and the keys of its published one.

``tests/data/recipes.json`` and ``zoo.json.gz`` hold the resolved settings and the state
dicts of configs of OpenGVLab/InternImage@31c962d, as mmdet 2.28.1 reads them. The
metafile says which is whose, by ``Converted From: Code``.
"""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from internimage.backbone import Architecture, InternImage
from internimage.checkpoint import convert_published

ROOT = Path(__file__).parents[2]
DATA = ROOT / 'tests' / 'data'
RECIPES = json.loads((DATA / 'recipes.json').read_text())
ZOO = json.loads(gzip.decompress((DATA / 'zoo.json.gz').read_bytes()))

# Setting -> (published value, our value), with the reason.
INTENDED = {
    # In mmdet 2 that was the box AP. With classwise, mmdet 3 reports the AP of each
    # class before it, and 'auto' takes the first.
    'default_hooks.checkpoint.save_best': ('auto', 'coco/bbox_mAP'),
}

# Settings that the published recipes lack because mmdet 2 had no such choice: they
# state what it did, or what changes no result.
NOT_IN_MMDET_2 = re.compile(
    r'(.*\.)?_scope_'
    r'|default_hooks\.(?!checkpoint\.).*'
    r'|.*\.backend_args'
    r'|.*\.pipeline\.\d+\.meta_keys'
    r'|(train|test)_dataloader\.(sampler|batch_sampler)\..*'
    r'|(train|test)_dataloader\.(persistent_workers|drop_last|dataset\.test_mode)'
    r'|train_dataloader\.dataset\.filter_cfg\..*'
    r'|test_dataloader\.(batch_size|num_workers)'
    r'|(val|test)_evaluator\.(ann_file|format_only)'
)


def published_configs() -> dict[str, str]:
    """Return our config -> its published config, from the metafile."""
    metafile = ROOT / 'configs' / 'detection' / 'metafile.yml'
    return {
        model['Config']: re.fullmatch(r'.*/blob/\w+/(.*)', origin['Code'])[1]
        for model in yaml.safe_load(metafile.read_text())['Models']
        if (origin := model.get('Converted From'))
    }


PAIRS = published_configs()
every_pair = pytest.mark.parametrize(
    ('ours', 'published'), PAIRS.items(), ids=[Path(path).stem for path in PAIRS]
)


@cache
def load(path: str) -> Config:
    """Read a config, or skip the test where its codebase is not installed."""
    config = Config.fromfile(ROOT / path)
    pytest.importorskip(config.default_scope)
    return config


def flatten(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each setting."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(v, dict) for v in value):
        items = enumerate(value)
    else:
        yield name, list(value) if isinstance(value, tuple) else value
        return
    for key, item in items:
        yield from flatten(item, f'{name}.{key}' if name else str(key))


def renamed(settings: dict, **names: str) -> dict:
    """Return the settings, those in ``names`` under another name."""
    return {names.get(name, name): value for name, value in settings.items()}


def modern_pipeline(steps: list[dict]) -> list[dict]:
    """Spell a pipeline as mmdet 3 does, less what its models do themselves."""
    modern = []
    for step in steps:
        if step['type'] == 'MultiScaleFlipAug':
            assert not step['flip']
            resize = dict(step['transforms'][0], scale=step['img_scale'])
            # Annotations are read for the metric; they change no prediction.
            labels = {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}
            modern += [resize, labels, {'type': 'PackDetInputs'}]
        elif step['type'] == 'Collect':
            modern.append({'type': 'PackDetInputs'})
        elif step['type'] not in ('Normalize', 'Pad', 'DefaultFormatBundle'):
            modern.append(renamed(step, img_scale='scale', flip_ratio='prob'))
    return modern


def modern_dataset(dataset: dict) -> dict:
    """Spell a data set as mmdet 3 does."""
    root = 'data/coco/'
    return {
        'type': dataset['type'],
        'data_root': root,
        'ann_file': dataset['ann_file'].removeprefix(root),
        'data_prefix': {'img': dataset['img_prefix'].removeprefix(root)},
        'pipeline': modern_pipeline(dataset['pipeline']),
    }


def modern_schedule(lr_config: dict, max_epochs: int) -> list[dict]:
    """Spell a step schedule with linear warm-up as mmengine does."""
    assert (lr_config['policy'], lr_config['warmup']) == ('step', 'linear')
    return [
        {
            'type': 'LinearLR',
            'start_factor': lr_config['warmup_ratio'],
            'begin': 0,
            'end': lr_config['warmup_iters'],
            'by_epoch': False,
        },
        {
            'type': 'MultiStepLR',
            'milestones': lr_config['step'],
            'gamma': 0.1,
            'begin': 0,
            'end': max_epochs,
            'by_epoch': True,
        },
    ]


def modern_model(model: dict, train_pipeline: list[dict]) -> dict:
    """Spell a model as mmdet 3 does: it normalises and pads its images itself."""
    steps = {step['type']: step for step in train_pipeline}
    backbone = {k: v for k, v in model['backbone'].items() if k != 'core_op'}
    return {
        **model,
        'backbone': with_defaults(backbone),
        'data_preprocessor': {
            'type': 'DetDataPreprocessor',
            'mean': steps['Normalize']['mean'],
            'std': steps['Normalize']['std'],
            'bgr_to_rgb': steps['Normalize']['to_rgb'],
            'pad_size_divisor': steps['Pad']['size_divisor'],
            'pad_mask': True,
        },
    }


def modern_recipe(recipe: dict) -> dict:
    """Spell a published detection recipe as mmdet 3 does."""
    data, max_epochs = recipe['data'], recipe['runner']['max_epochs']
    optimizer = dict(recipe['optimizer'])
    paramwise = optimizer.pop('paramwise_cfg')
    assert optimizer.pop('constructor') == 'CustomLayerDecayOptimizerConstructor'
    assert recipe['optimizer_config'] == {'grad_clip': None}
    metrics = {
        'type': 'CocoMetric',
        'metric': recipe['evaluation']['metric'],
        'classwise': recipe['evaluation']['classwise'],
    }
    return {
        'model': modern_model(recipe['model'], data['train']['pipeline']),
        'optim_wrapper': {
            'type': 'OptimWrapper',
            'optimizer': optimizer,
            'constructor': 'LayerDecayOptimWrapperConstructor',
            # Ours asks the model for the depths that stand beside this.
            'paramwise_cfg': {'layer_decay_rate': paramwise['layer_decay_rate']},
        },
        'param_scheduler': modern_schedule(recipe['lr_config'], max_epochs),
        'train_cfg': {
            'type': 'EpochBasedTrainLoop',
            'max_epochs': max_epochs,
            'val_interval': 1,
        },
        'train_dataloader': {
            'batch_size': data['samples_per_gpu'],
            'num_workers': data['workers_per_gpu'],
            'dataset': modern_dataset(data['train']),
        },
        'test_dataloader': {'dataset': modern_dataset(data['test'])},
        'val_evaluator': metrics,
        'test_evaluator': metrics,
        'default_hooks': {
            'checkpoint': {
                'type': 'CheckpointHook',
                'save_best': recipe['evaluation']['save_best'],
                **recipe['checkpoint_config'],
            }
        },
        'custom_hooks': recipe['custom_hooks'],
    }


def with_defaults(backbone: dict) -> dict:
    """Return a backbone's settings with all that it leaves to the constructor."""
    names = {field.name for field in fields(Architecture)}
    arch = Architecture(**{k: v for k, v in backbone.items() if k in names})
    return {'with_cp': False, 'out_indices': (0, 1, 2, 3), **asdict(arch), **backbone}


def our_recipe(config: Config) -> dict:
    """Return our settings with those that only published recipes spell out."""
    recipe = config.to_dict()
    backbone = recipe['model']['backbone']
    arch = InternImage.arch_settings[backbone.pop('arch')]
    recipe['model']['backbone'] = with_defaults({**arch, **backbone})
    recipe['default_hooks']['checkpoint'].setdefault('save_last', True)
    return recipe


@every_pair
def test_settings_are_the_published_ones(ours: str, published: str):
    config = load(ours)
    assert config.val_dataloader == config.test_dataloader
    recipe = modern_recipe(RECIPES[published])
    expected = dict(flatten(recipe))
    actual = {
        name: value
        for name, value in flatten(our_recipe(config))
        if name.split('.')[0] in recipe and not NOT_IN_MMDET_2.fullmatch(name)
    }
    differences = {
        name: (expected.get(name), actual.get(name))
        for name in expected.keys() | actual.keys()
        if expected.get(name) != actual.get(name)
    }
    assert differences == INTENDED


@every_pair
def test_parameters_are_the_published_ones(ours: str, published: str):
    config = load(ours)
    scope = DefaultScope.overwrite_default_scope(config.default_scope)
    with scope, torch.device('meta'):
        model = MODELS.build(config.model)
    weights = {
        name: torch.empty(shape, device='meta')
        for name, shape in ZOO[published]['keys']
    }
    expected = {name: t.shape for name, t in convert_published(weights).items()}
    assert {name: t.shape for name, t in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == ZOO[published]['params']


@every_pair
def test_learning_rate_is_for_the_published_batch(ours: str, published: str):
    """All published models were trained on 8 GPUs."""
    batch_size = 8 * RECIPES[published]['data']['samples_per_gpu']
    assert load(ours).auto_scale_lr == {
        'enable': False,
        'base_batch_size': batch_size,
    }
