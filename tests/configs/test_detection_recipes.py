# SPDX-License-Identifier: Apache-2.0
"""Each config has the settings, the parameters and the keys of its published one.

``tests/data/recipes.json`` and ``zoo.json.gz`` hold the resolved settings and the state
dicts of configs of OpenGVLab/InternImage@31c962d, as mmdet 2.28.1 reads them. The
metafile says which is whose, by ``Converted From: Code``.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from internimage.backbone import InternImage
from internimage.checkpoint import convert_published
from tests.configs.comparison import find_differences, with_defaults
from tests.configs.published_detection import modern_recipe
from tests.configs.published_layer_decay import our_groups, published_groups
from tests.golden import read_json
from tests.our_configs import build_on_meta, index, published_config, read_config
from tests.paths import DATA

FOLDER = 'configs/detection'
RECIPES = json.loads((DATA / 'recipes.json').read_text())
ZOO = read_json('zoo.json.gz')
MODELS_BY_NAME = {
    name: model
    for name, model in index().items()
    if (published_config(model) or model['Config'][8:]).startswith('detection/')
}

# Setting -> (published value, our value), with the reason.
INTENDED = {
    # In mmdet 2 that was the box AP. With classwise, mmdet 3 reports the AP of each
    # class before it, and 'auto' takes the first.
    'default_hooks.checkpoint.save_best': ('auto', 'coco/bbox_mAP'),
    # Less memory, the same result. It worked in G alone, whose FFN is another class,
    # cut in four; that of H and of the composite models has no use for it.
    'model.encoder.layer_cfg.ffn_cfg.use_checkpoint': (True, None),
    'model.decoder.layer_cfg.ffn_cfg.use_checkpoint': (True, None),
    # Nothing in the published code reads it.
    'model.train_cfg.snip_cfg.type': ('v3', None),
    'model.train_cfg.snip_cfg.weight': (0.1, None),
}
# The same of single projects.
INTENDED_BY_PROJECT = {
    'crowd_human': {
        'default_hooks.checkpoint.save_best': ('auto', 'crowd_human/mAP'),
        # The same file, where all others are.
        'model.backbone.init_cfg.checkpoint': (
            'https://github.com/OpenGVLab/InternImage/releases/download/cls_model/'
            'internimage_xl_22k_192to384.pth',
            'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
            'internimage_xl_22k_192to384.pth',
        ),
        # Of masks, which there are none of.
        **{f'model.train_cfg.rcnn.{i}.mask_size': (28, None) for i in range(3)},
        'model.test_cfg.rcnn.mask_thr_binary': (0.5, None),
        # mmdet 3 reads the official files; the published code converted them.
        **{
            f'{split}_dataloader.dataset.{name}': values
            for split, kind in (('train', 'train'), ('test', 'val'))
            for name, values in {
                'ann_file': (
                    f'annotations/annotation_{kind}.json',
                    f'annotation_{kind}.odgt',
                ),
                'data_prefix.img': ('Images', 'Images/'),
            }.items()
        },
    },
    'lvis': {
        # mmdet's needs a package that does not run with NumPy 2.
        'train_dataloader.dataset.dataset.type': ('LVISV1Dataset', 'LVISV1BoxDataset'),
        'test_dataloader.dataset.type': ('LVISV1Dataset', 'LVISV1BoxDataset'),
        # 1203 figures.
        'val_evaluator.classwise': (True, None),
        'test_evaluator.classwise': (True, None),
        # Nothing in the published code reads it.
        'model.train_cfg.fed_loss_cfg.use_fed_loss': (True, None),
        'model.train_cfg.fed_loss_cfg.dataset_names': ('lvis_v1_train', None),
        'model.train_cfg.fed_loss_cfg.fed_loss_num_classes': (50, None),
        'model.train_cfg.fed_loss_cfg.freq_weight_power': (0.5, None),
    },
    'openimages': {
        'default_hooks.checkpoint.save_best': ('auto', 'openimages/mAP'),
        # mmdet 3 has them there.
        'train_dataloader.dataset.data_prefix.img': ('train/', 'OpenImages/train/'),
        'test_dataloader.dataset.data_prefix.img': (
            'validation/',
            'OpenImages/validation/',
        ),
        # mmdet 3 reads sizes there; mmdet 2 opened each image.
        'train_dataloader.dataset.meta_file': (
            None,
            'annotations/train-image-metas.pkl',
        ),
        # The data set lists no image without a box, and mmdet 3's cannot be told to.
        'train_dataloader.dataset.filter_cfg.filter_empty_gt': (True, None),
        'train_dataloader.dataset.filter_cfg.min_size': (32, None),
    },
    'voc': {'default_hooks.checkpoint.save_best': ('auto', 'pascal_voc/mAP')},
}

# Config that starts from Objects365 where the published one starts from nothing, and
# would train random weights -> the config that makes what it starts from.
STARTS_FROM = {
    'dino-4scale_internimage-h_16xb1-20k_o365-to-coco': (
        'dino-4scale_internimage-h_128xb2-26e_objects365'
    ),
    'dino-4scale_internimage-g_16xb1-20k_o365-to-coco': (
        'dino-4scale_internimage-g_128xb2-26e_objects365'
    ),
    'dino-4scale_cb-internimage-g_16xb1-20k_o365-to-coco': (
        'dino-4scale_cb-internimage-g_128xb2-26e_objects365'
    ),
}

# Settings that the published recipes lack because mmdet 2 had no such choice: they
# state what it did, or what changes no result.
NOT_IN_MMDET_2 = re.compile(
    r'(.*\.)?_scope_'
    r'|default_hooks\.(?!checkpoint\.).*'
    r'|.*\.backend_args'
    r'|.*\.pipeline\.\d+\.meta_keys'
    r'|test_dataloader\.(sampler|batch_sampler)\..*'
    r'|(train|test)_dataloader\.(persistent_workers|drop_last|dataset\.test_mode)'
    r'|test_dataloader\.(batch_size|num_workers)'
    r'|(val|test)_evaluator\.(ann_file|format_only)'
)


def published_configs() -> dict[str, str]:
    """Return our config -> its published config, from the metafiles."""
    return {
        model['Config']: published
        for model in MODELS_BY_NAME.values()
        if (published := published_config(model))
    }


PAIRS = published_configs()
every_pair = pytest.mark.parametrize(
    ('ours', 'published'), PAIRS.items(), ids=[Path(path).stem for path in PAIRS]
)


def read_leaf(name: str) -> Config:
    return read_config(f'{FOLDER}/{name}.py')


def test_every_published_config_has_ours():
    assert sorted(PAIRS.values()) == sorted(RECIPES) == sorted(ZOO)


def our_recipe(config: Config) -> dict:
    """Return our settings with those that only published recipes spell out."""
    recipe = config.to_dict()
    backbone = recipe['model']['backbone']
    arch = InternImage.arch_settings[backbone.pop('arch')]
    recipe['model']['backbone'] = with_defaults({**arch, **backbone})
    recipe['default_hooks']['checkpoint'].setdefault('save_last', True)
    recipe['optim_wrapper'].setdefault('constructor', 'DefaultOptimWrapperConstructor')
    return recipe


def differences(ours: str, published: str) -> dict[str, tuple]:
    """Return setting -> (published value, our value), where they differ."""
    recipe = modern_recipe(RECIPES[published])
    return find_differences(recipe, our_recipe(read_config(ours)), NOT_IN_MMDET_2)


@every_pair
def test_settings_are_the_published_ones(ours: str, published: str):
    config = read_config(ours)
    assert config.val_dataloader == config.test_dataloader
    found = differences(ours, published)
    if Path(ours).stem in STARTS_FROM:
        assert found.pop('load_from')[0] is None
    intended = {**INTENDED, **INTENDED_BY_PROJECT.get(project_of(ours), {})}
    assert found == {name: intended[name] for name in intended if name in found}


def project_of(ours: str) -> str:
    return Path(ours).parts[1]


def test_every_intended_difference_exists():
    for project in ('detection', *INTENDED_BY_PROJECT):
        found = {
            name
            for pair in PAIRS.items()
            if project_of(pair[0]) == project
            for name in differences(*pair)
        }
        if project == 'detection':
            assert found == {*INTENDED, 'load_from'}
        else:
            assert found >= INTENDED_BY_PROJECT[project].keys()


@pytest.mark.parametrize(('name', 'first_name'), STARTS_FROM.items())
def test_weights_to_start_from_are_made_here(name: str, first_name: str):
    first, config = read_leaf(first_name), read_leaf(name)
    epochs = first.train_cfg.max_epochs
    assert config.load_from == f'work_dirs/{first_name}/epoch_{epochs}.pth'
    # The same model, but for the classes.
    expected = first.model.to_dict()
    assert expected['bbox_head'].pop('num_classes') == 365
    expected['backbone']['init_cfg'] = None
    actual = config.model.to_dict()
    assert actual['bbox_head'].pop('num_classes') == 80
    assert actual == expected


@pytest.mark.parametrize('name', [n for n in MODELS_BY_NAME if 'objects365' in n])
def test_objects365_is_that_of_mmdet(name: str):
    config = read_leaf(name).to_dict()
    base = "_base_ = 'mmdet::_base_/datasets/objects365v2_detection.py'"
    expected = Config.fromstring(base, '.py').to_dict()
    assert config['val_dataloader'] == config['test_dataloader']
    for loader in ('train_dataloader', 'val_dataloader'):
        for settings in (config, expected):
            del settings[loader]['dataset']['pipeline']
        assert config[loader] == expected[loader]
    expected['val_evaluator']['classwise'] = False
    assert config['val_evaluator'] == config['test_evaluator']
    assert config['val_evaluator'] == expected['val_evaluator']
    datasets = pytest.importorskip('mmdet.datasets')
    dataset = getattr(datasets, config['train_dataloader']['dataset']['type'])
    num_classes = config['model']['bbox_head']['num_classes']
    assert num_classes == len(dataset.METAINFO['classes'])


@pytest.mark.parametrize('name', MODELS_BY_NAME)
def test_metafile_counts_the_parameters(name: str):
    config = read_config(MODELS_BY_NAME[name]['Config'])
    model = build_on_meta(config.model, 'mmdet')
    count = sum(p.numel() for p in model.parameters())
    assert MODELS_BY_NAME[name]['Metadata']['Parameters'] == count


@every_pair
def test_parameters_are_the_published_ones(ours: str, published: str):
    model = build_on_meta(read_config(ours).model, 'mmdet')
    weights = {
        name: torch.empty(shape, device='meta')
        for name, shape in ZOO[published]['keys']
    }
    expected = {name: t.shape for name, t in convert_published(weights).items()}
    assert {name: t.shape for name, t in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == ZOO[published]['params']


@pytest.mark.parametrize(
    'ours', [ours for ours in PAIRS if 'small-backbone-lr' not in ours]
)
def test_groups_of_parameters_are_the_published_ones(ours: str):
    """As for the rate by depth, and for the decay of weights."""
    published = PAIRS[ours]
    rule = RECIPES[published]['optimizer']['paramwise_cfg']
    expected = published_groups(ZOO[published]['keys'], rule, is_segmentor=False)
    config = read_config(ours)
    groups = our_groups(config, build_on_meta(config.model, 'mmdet'))
    assert len(groups) > 600
    for name, group in groups.items():
        assert group == pytest.approx(expected[name]), name


def num_gpus(name: str) -> int:
    """Return how many GPUs a recipe is made for."""
    if match := re.search(r'_(\d+)xb\d+-', name):
        return int(match[1])
    # The published 3x configs of L and XL name 4 nodes and 64 images.
    return 32 if re.match(r'cascade-mask.*_ms-crop-3x_', name) else 8


@pytest.mark.parametrize('name', MODELS_BY_NAME)
def test_learning_rate_is_for_the_published_batch(name: str):
    config = read_config(MODELS_BY_NAME[name]['Config'])
    batch_size = num_gpus(name) * config.train_dataloader.batch_size
    assert config.auto_scale_lr == {'enable': False, 'base_batch_size': batch_size}
    metadata = MODELS_BY_NAME[name]['Metadata']
    assert metadata['Training Resources'] == f'{num_gpus(name)} GPUs'
    assert metadata['Batch Size'] == batch_size
