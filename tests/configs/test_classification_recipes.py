# SPDX-License-Identifier: Apache-2.0
"""Each config has the settings and the keys of its published one.

``tests/data/classification_recipes.json`` holds, of OpenGVLab/InternImage@31c962d, the
defaults in ``classification/config.py``, what the files in ``classification/configs``
change of them, and GPUs and images per GPU from the README's commands. ``table_7`` is
what the paper says of the step that has no published file: training on ImageNet-22K.
The metafile says which is whose, by ``Converted From: Code``.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, TRANSFORMS, DefaultScope

from internimage.backbone import InternImage
from internimage.checkpoint import convert_published
from tests.configs.comparison import find_differences, flatten, with_defaults
from tests.configs.published_classification import merge, modern_recipe
from tests.golden import read_json
from tests.our_configs import build_on_meta, read_config
from tests.paths import DATA, ROOT

PUBLISHED = json.loads((DATA / 'classification_recipes.json').read_text())
BACKBONES = read_json('zoo_backbones.json.gz')['backbones']
ZOO = read_json('zoo_classification.json.gz')
METAFILE = yaml.safe_load((ROOT / 'configs/classification/metafile.yml').read_text())

# Setting -> (published value, our value), with the reason.
INTENDED = {
    # LinearLR multiplies the learning rate: it cannot start at 0.
    'param_scheduler.0.start_factor': (0.0, 1e-6),
    # Gives each GPU the same images in all epochs, to keep them in memory.
    'train_dataloader.sampler.type': ('NodeDistributedSampler', 'DefaultSampler'),
    # On the command line (--amp), so that a config trains on a CPU too.
    'optim_wrapper.type': ('AmpOptimWrapper', None),
    # Changes memory, no result, and only works in a distributed job.
    'optim_wrapper.optimizer.type': ('ZeroRedundancyOptimizer', 'AdamW'),
    # H at 384 px has layer decay in the only file published at that size. The paper's
    # results come from files without (`without_lr_decay`), and so does our recipe.
    'optim_wrapper.paramwise_cfg.layer_decay_rate': (0.9, 1.0),
    'optim_wrapper.paramwise_cfg.dcn_lr_mult': (0.1, None),
}

# Settings that the published code has not: they change no result.
NOT_PUBLISHED = re.compile(
    r'(.*\.)?_scope_'
    r'|default_hooks\.(?!checkpoint\.).*'
    r'|env_cfg\.(mp_cfg|dist_cfg)\..*'
    r'|randomness\.deterministic'
    r'|(val|test)_dataloader\.sampler\.shuffle'
)


def published_settings() -> dict[str, dict]:
    """Return our config -> the published settings, from the metafile."""
    settings = {}
    for model in METAFILE['Models']:
        path, origin = model['Config'], model.get('Converted From')
        if origin is None:
            changes = {'NUM_GPUS': 32, **PUBLISHED['table_7'][path]}
        else:
            code = re.fullmatch(r'.*/blob/\w+/(.*)', origin['Code'])[1]
            gpus, batch_size = PUBLISHED['launch'][code]
            launch = {
                'CODE': code,
                'NUM_GPUS': gpus,
                'DATA': {'BATCH_SIZE': batch_size},
            }
            changes = merge(PUBLISHED['configs'][code], launch)
        settings[path] = merge(PUBLISHED['defaults'], changes)
    return settings


PAIRS = published_settings()
every_pair = pytest.mark.parametrize(
    ('ours', 'published'), PAIRS.items(), ids=[Path(path).stem for path in PAIRS]
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def our_recipe(config: Config) -> dict:
    """Return our settings with those that only published recipes spell out."""
    recipe = config.to_dict()
    backbone = recipe['model']['backbone']
    arch = InternImage.arch_settings[backbone.pop('arch')]
    recipe['model']['backbone'] = with_defaults({**arch, **backbone})
    return recipe


@every_pair
def test_settings_are_the_published_ones(ours: str, published: dict):
    recipe = modern_recipe(published)
    expected = dict(flatten(recipe))
    differences = find_differences(recipe, our_recipe(read_config(ours)), NOT_PUBLISHED)
    assert differences == {
        name: values
        for name, values in INTENDED.items()
        if expected.get(name) == values[0]
    }


@every_pair
def test_name_and_command_say_how_it_is_trained(ours: str, published: dict):
    config = read_config(ours)
    size = published['DATA']['IMG_SIZE']
    name = re.fullmatch(
        r'internimage-\w+_(?P<gpus>\d+)xb(?P<batch_size>\d+)_in(1k|21k)(-(?P<px>\d+)px)?',
        Path(ours).stem,
    )
    assert int(name['batch_size']) == config.train_dataloader.batch_size
    batch_size = int(name['gpus']) * int(name['batch_size'])
    assert batch_size == config.auto_scale_lr.base_batch_size
    assert int(name['px'] or 224) == size
    command = (ROOT / ours).read_text().splitlines()[2]
    assert f' -G {name["gpus"]} ' in command
    assert ('--amp' in command) == (published['AMP_OPT_LEVEL'] != 'O0')


@every_pair
def test_parameters_are_the_published_ones(ours: str, published: dict):
    model = build_on_meta(read_config(ours).model)
    num_params = sum(p.numel() for p in model.parameters())
    (metadata,) = (m['Metadata'] for m in METAFILE['Models'] if m['Config'] == ours)
    assert num_params == metadata['Parameters']
    code = published.get('CODE')
    if code not in ZOO:
        return  # the released files have one size of H, and no 22K classifier of 192 px
    (backbone,) = (entry for entry in BACKBONES if code in entry['configs'])
    shapes = {**backbone['shapes'], **ZOO[code]['other_shapes']}
    weights = {name: torch.empty(s, device='meta') for name, s in shapes.items()}
    expected = {name: t.shape for name, t in convert_published(weights).items()}
    assert {name: t.shape for name, t in model.state_dict().items()} == expected
    assert num_params == ZOO[code]['params']


@every_pair
def test_weight_decay_is_that_of_the_published_rule(ours: str, published: dict):
    """It spares what has one dimension, and biases."""
    config = read_config(ours)
    model = build_on_meta(config.model)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    of_param = {param: group for group in groups for param in group['params']}
    for name, param in model.named_parameters():
        decays = param.ndim > 1 and not name.endswith('.bias')
        group = of_param.pop(param)
        assert group['weight_decay'] == (0.05 if decays else 0), name
        assert group['lr'] == config.optim_wrapper.optimizer.lr, name
    assert not of_param


def published_learning_rates(train: dict, epoch_length: int) -> list[float]:
    """Return timm's learning rate, over the initial one, of each iteration.

    The cosine starts with the first iteration, but shows only after the warm-up.
    """
    warm_up = train['WARMUP_EPOCHS'] * epoch_length
    total = train['EPOCHS'] * epoch_length
    first, last = (train[key] / train['BASE_LR'] for key in ('WARMUP_LR', 'MIN_LR'))
    return [
        first + (1 - first) * t / warm_up
        if t < warm_up
        else last + (1 - last) * (1 + math.cos(math.pi * t / total)) / 2
        for t in range(total)
    ]


@every_pair
def test_learning_rate_is_the_published_one(ours: str, published: dict):
    config, epoch_length = read_config(ours), 50
    base_lr = config.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.empty(1))], base_lr)
    end = config.train_cfg.max_epochs
    schedulers = [
        PARAM_SCHEDULERS.build(
            {'end': end, **scheduler},
            default_args={'optimizer': optimizer, 'epoch_length': epoch_length},
        )
        for scheduler in config.param_scheduler
    ]
    actual = []
    for _ in range(end * epoch_length):
        actual.append(optimizer.param_groups[0]['lr'] / base_lr)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    expected = published_learning_rates(published['TRAIN'], epoch_length)
    warm_up = published['TRAIN']['WARMUP_EPOCHS'] * epoch_length
    # In the warm-up ours is lower by what the cosine has come down.
    np.testing.assert_allclose(actual[:warm_up], expected[:warm_up], atol=0.02)
    np.testing.assert_allclose(actual[warm_up:], expected[warm_up:], rtol=3e-4)


@pytest.mark.parametrize('size', [(333, 500), (501, 400), (90, 70)], ids=str)
@every_pair
def test_evaluation_sees_the_published_pixels(
    ours: str, published: dict, size: tuple[int, int], tmp_path: Path
):
    loader = read_config(ours).test_dataloader
    if loader is None:
        pytest.skip('training on ImageNet-22K is not evaluated')
    transforms = pytest.importorskip('torchvision.transforms')
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = pytest.importorskip('PIL.Image').fromarray(pixels)
    image.save(tmp_path / 'image.png')
    results = {'img_path': str(tmp_path / 'image.png')}
    for step in loader.dataset.pipeline[:-1]:
        results = TRANSFORMS.build(step)(results)
    side, bicubic = published['DATA']['IMG_SIZE'], transforms.InterpolationMode.BICUBIC
    resized = transforms.Resize(side, interpolation=bicubic)(image)
    expected = np.asarray(transforms.CenterCrop(side)(resized))
    np.testing.assert_array_equal(results['img'][..., ::-1], expected)
