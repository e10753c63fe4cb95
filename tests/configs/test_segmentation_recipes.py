# SPDX-License-Identifier: Apache-2.0
"""Each config has the settings, the parameters and the keys of its published one.

``tests/data/{recipes,zoo}_segmentation.json.gz`` hold the resolved settings and the
state dicts of configs of OpenGVLab/InternImage@31c962d, as mmseg 0.30.0 reads them. The
metafile says which is whose, by ``Converted From: Code``.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, PolyLR
from mmengine.registry import DATASETS
from torch import nn

from internimage.backbone import InternImage
from internimage.checkpoint import convert_published
from tests.configs.comparison import find_differences, with_defaults
from tests.configs.published_layer_decay import our_groups, published_groups
from tests.configs.published_segmentation import modern_recipe
from tests.golden import read_json
from tests.our_configs import build_on_meta, index, published_config, read_config

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')  # for Mask2Former
import mmseg.datasets  # noqa: F401

FOLDER = 'configs/segmentation'
RECIPES = read_json('recipes_segmentation.json.gz')
ZOO = read_json('zoo_segmentation.json.gz')
MODELS_BY_NAME = {
    name: model
    for name, model in index().items()
    if (published_config(model) or '').startswith('segmentation/')
}

HF = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main'
PARTS = {0: 'training', 1: 'validation'}

# Setting -> (published value, our value), with the reason.
INTENDED = {
    # mmseg 1 has it there.
    'train_dataloader.dataset.data_root': (
        'data/ADEChallengeData2016',
        'data/ade/ADEChallengeData2016',
    ),
    # Left over from a ResNet. The published InternImage does not read it.
    'model.pretrained': ('open-mmlab://resnet50_v1c', None),
    # `num_classes` says how many there are.
    'model.decode_head.num_things_classes': (100, None),
    'model.decode_head.num_stuff_classes': (50, None),
    # For detectors. The published segmentor reads `mode` alone.
    'model.test_cfg.panoptic_on': (True, None),
    'model.test_cfg.semantic_on': (False, None),
    'model.test_cfg.instance_on': (True, None),
    'model.test_cfg.max_per_image': (100, None),
    'model.test_cfg.iou_thr': (0.8, None),
    'model.test_cfg.filter_low_score': (True, None),
}
INTENDED['test_dataloader.dataset.data_root'] = INTENDED[
    'train_dataloader.dataset.data_root'
]
for part, split in PARTS.items():
    # mmseg 1 has them there, and so has the download.
    INTENDED[f'train_dataloader.dataset.datasets.{part}.data_root'] = (
        'data/Mapillary/',
        'data/mapillary/',
    )
    INTENDED[f'train_dataloader.dataset.datasets.{part}.data_prefix.seg_map_path'] = (
        f'{split}/labels',
        f'{split}/v1.2/labels',
    )
# The published labels need no conversion.
INTENDED |= {
    'train_dataloader.dataset.datasets.1.type': (
        'CityscapesDataset',
        'CityscapesRefinedLabels',
    ),
    'train_dataloader.dataset.ignore_keys': (None, ['label_map']),
}
# The published files of UperNet name the weights with SegFormer's head.
WRONG_WEIGHTS = {
    f'upernet_internimage_{variant}_512x1024_160k_mapillary2cityscapes': (
        f'{HF}/segformer_internimage_{variant}_512x1024_80k_mapillary.pth',
        f'{HF}/upernet_internimage_{variant}_512x1024_80k_mapillary.pth',
    )
    for variant in ('l', 'xl')
}

# Settings that the published recipes lack because mmseg 0 had no such choice: they
# state what it did, or what changes no result.
NOT_IN_MMSEG_0 = re.compile(
    r'default_hooks\.(?!checkpoint\.).*'
    r'|test_dataloader\.(sampler\..*|batch_size|num_workers)'
    r'|(train|test)_dataloader\.persistent_workers'
)


# Of two names of one config, one is for its test-time augmentation.
PAIRS = {published_config(model): model['Config'] for model in MODELS_BY_NAME.values()}
every_pair = pytest.mark.parametrize(
    ('published', 'ours'), PAIRS.items(), ids=[Path(path).stem for path in PAIRS]
)


def test_every_published_config_has_ours():
    assert sorted(PAIRS) == sorted(RECIPES) == sorted(ZOO)
    assert len(PAIRS) == len(MODELS_BY_NAME)


def is_reduced_by_default(dataset_type: str) -> bool:
    """Whether label 0 of a data set is no class, as its class says."""
    for owner in inspect.getmro(DATASETS.get(f'mmseg.{dataset_type}')):
        parameters = inspect.signature(owner.__init__).parameters
        if 'reduce_zero_label' in parameters:
            return parameters['reduce_zero_label'].default
    raise AssertionError(dataset_type)


def our_recipe(config: Config) -> dict:
    """Return our settings with those that only published recipes spell out."""
    recipe = config.to_dict()
    backbone = recipe['model']['backbone']
    arch = InternImage.arch_settings[backbone.pop('arch')]
    recipe['model']['backbone'] = with_defaults({**arch, **backbone})
    recipe['optim_wrapper']['paramwise_cfg'].setdefault('offset_lr_scale', 1.0)
    for name in ('train_dataloader', 'test_dataloader'):
        dataset = recipe[name]['dataset']
        for part in dataset.get('datasets', [dataset]):
            default = is_reduced_by_default(part['type'])
            part.setdefault('reduce_zero_label', default)
    return recipe


def differences(published: str, ours: str) -> dict[str, tuple]:
    """Return setting -> (published value, our value), where they differ."""
    recipe = modern_recipe(RECIPES[published])
    return find_differences(recipe, our_recipe(read_config(ours)), NOT_IN_MMSEG_0)


@every_pair
def test_settings_are_the_published_ones(published: str, ours: str):
    config = read_config(ours)
    assert config.val_dataloader == config.test_dataloader
    found = differences(published, ours)
    wrong = WRONG_WEIGHTS.get(Path(published).stem)
    assert found.pop('load_from', None) == wrong
    assert found == {name: INTENDED[name] for name in INTENDED if name in found}


def test_every_intended_difference_exists():
    found = [name for pair in PAIRS.items() for name in differences(*pair)]
    assert set(found) == {*INTENDED, 'load_from'}


@pytest.mark.parametrize('ours', sorted(set(PAIRS.values())))
def test_learning_rate_is_the_published_one(ours: str):
    """The polynomial falls from the start; mmcv 1 multiplies it by the warm-up."""
    config = read_config(ours)
    max_iters = config.train_cfg.max_iters
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=config.optim_wrapper.optimizer.lr)
    kinds = {'LinearLR': LinearLR, 'PolyLR': PolyLR}
    schedulers = [
        kinds[settings.type](
            optimizer, **{k: settings[k] for k in settings if k != 'type'}
        )
        for settings in config.param_scheduler
    ]
    for i in range(4000):
        warm_up = 1 - (1 - min(i / 1500, 1)) * (1 - 1e-6)
        expected = config.optim_wrapper.optimizer.lr * (1 - i / max_iters) * warm_up
        # mmengine reaches the ends of both one iteration earlier.
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected, rel=1e-3)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


@every_pair
def test_parameters_are_the_published_ones(published: str, ours: str):
    model = build_on_meta(read_config(ours).model, 'mmseg')
    weights = {
        name: torch.empty(shape, device='meta')
        for name, shape in ZOO[published]['keys']
    }
    expected = {name: t.shape for name, t in convert_published(weights).items()}
    assert {name: t.shape for name, t in model.state_dict().items()} == expected
    count = sum(p.numel() for p in model.parameters())
    assert count == ZOO[published]['params']
    for entry in MODELS_BY_NAME.values():
        if entry['Config'] == ours:
            assert entry['Metadata']['Parameters'] == count


@every_pair
def test_groups_of_parameters_are_the_published_ones(published: str, ours: str):
    """As for the rate by depth, and for the decay of weights."""
    rule = RECIPES[published]['optimizer']['paramwise_cfg']
    expected = published_groups(ZOO[published]['keys'], rule, is_segmentor=True)
    config = read_config(ours)
    groups = our_groups(config, build_on_meta(config.model, 'mmseg'))
    assert len(groups) > 700
    for name, group in groups.items():
        assert group == pytest.approx(expected[name]), name


@pytest.mark.parametrize('name', MODELS_BY_NAME)
def test_learning_rate_is_for_the_published_batch(name: str):
    entry = MODELS_BY_NAME[name]
    config = read_config(entry['Config'])
    num_gpus, per_gpu = map(int, re.search(r'_(\d+)xb(\d+)-', name).groups())
    assert config.train_dataloader.batch_size == per_gpu
    assert config.auto_scale_lr == {'enable': False, 'base_batch_size': 16}
    assert num_gpus * per_gpu == 16
    metadata = entry['Metadata']
    assert metadata['Training Resources'] == f'{num_gpus} GPUs'
    assert metadata['Batch Size'] == 16
    assert metadata['Iterations'] == config.train_cfg.max_iters


def test_mask2former_starts_from_the_other_one():
    """The same model, but for the classes."""
    first, second = (
        read_config(f'{FOLDER}/mask2former_internimage-h_16xb1-80k_{data}-896x896.py')
        for data in ('coco-stuff164k', 'ade20k')
    )
    entry = MODELS_BY_NAME['mask2former_internimage-h_16xb1-80k_coco-stuff164k-896x896']
    assert second.load_from == entry['Weights']
    models = [config.model.to_dict() for config in (first, second)]
    for model, num_classes in zip(models, (171, 150), strict=True):
        assert model['decode_head'].pop('num_classes') == num_classes
        weights = model['decode_head']['loss_cls'].pop('class_weight')
        assert weights == [1.0] * num_classes + [0.1]
        model['backbone'].pop('init_cfg')
    assert models[0] == models[1]
