# SPDX-License-Identifier: Apache-2.0
"""The model of iNaturalist 2018: its encoders, its data set, its config and its use.

Compared with OpenGVLab/InternImage@31c962d: ``tests/data`` has the names and shapes of
its model and the defaults of its settings; ``PUBLISHED`` is what its file
``classification/configs/inaturalist2018/internimage_h_22ktoinat18_384.yaml`` changes.
"""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from internimage.checkpoint import convert_published
from tests.golden import fill, read_json
from tests.our_configs import build_on_meta
from tests.paths import DATA, ROOT
from tests.tools.test_train_test import run

mmpretrain = pytest.importorskip('mmpretrain')

PROJECT = ROOT / 'projects' / 'inaturalist2018'
NAME = 'internimage-h_32xb16_inat2018-384px'
CONFIG = PROJECT / 'configs' / f'{NAME}.py'
CODE = 'classification/configs/inaturalist2018/internimage_h_22ktoinat18_384.yaml'
SOURCE = Config.fromfile(CONFIG)  # and finds the package

import inaturalist2018  # noqa: E402

PUBLISHED = {
    'DATA': {'IMG_SIZE': 384},
    'AUG': {'MIXUP': 0.0, 'CUTMIX': 0.0, 'REPROB': 0.0},
    'MODEL': {
        'NUM_CLASSES': 8142,
        'DROP_PATH_RATE': 0.6,
        'LABEL_SMOOTHING': 0.3,
        'INTERN_IMAGE': {
            'DEPTHS': [6, 6, 32, 6],
            'GROUPS': [10, 20, 40, 80],
            'CHANNELS': 320,
            'DW_KERNEL_SIZE': 5,
            'RES_POST_NORM': True,
            'LEVEL2_POST_NORM': True,
            'LEVEL2_POST_NORM_BLOCK_IDS': [5, 11, 17, 23, 29],
            'CENTER_FEATURE_SCALE': True,
            'USE_CLIP_PROJECTOR': True,
        },
        'PRETRAINED': 'pretrained/internimage_h_jointto22k_384.pth',
    },
    'TRAIN': {
        'EPOCHS': 100,
        'WARMUP_EPOCHS': 0,
        'BASE_LR': 2e-5,
        'WARMUP_LR': 0.0,
        'MIN_LR': 0.0,
        'USE_CHECKPOINT': True,
        'RAND_INIT_FT_HEAD': True,
    },
    'AMP_OPT_LEVEL': 'O0',
}

# The published config, small enough for seconds on a CPU.
IDS = [7, 3, 0, 5, 1, 2]  # of the categories, in the order of the labels
NUM_CLASSES = len(IDS)
SMALL = f"""
_base_ = {str(CONFIG)!r}
model = dict(
    init_cfg=None,
    backbone=dict(
        arch=dict(
            _delete_=True, channels=6, depths=(1, 1, 2, 1), groups=(1, 2, 3, 6)
        ),
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=(24, 48), embed_dims=32, num_heads=4, out_channels=20),
    head=dict(in_channels=20, num_classes={NUM_CLASSES}),
)
data_preprocessor = dict(num_classes={NUM_CLASSES})
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].scale = test_pipeline[1].scale = test_pipeline[2].crop_size = 64
small = dict(batch_size=4, num_workers=0)
train_dataloader = dict(small, dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(small, dataset=dict(pipeline=test_pipeline))
train_cfg = dict(max_epochs=1)
"""

# 30 degrees south of the North Pole, and 30 east of Greenwich.
DATE, PLACE = '2017-04-30 08:15:00', (60.0, 30.0)
HALF, LONG = 0.5, math.sqrt(3) / 2
DATE_CODE, PLACE_CODE = [LONG, -HALF, 0, 0], [HALF * LONG, HALF * HALF, LONG]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    """Return a small config, in a folder with a small data set as it wants it."""
    folder = tmp_path_factory.mktemp('inat')
    write_data(folder / 'data' / 'inat2018')
    (folder / 'small.py').write_text(SMALL)
    return folder / 'small.py'


def write_data(root: Path) -> None:
    """Write six images for each split, with all files of the competition."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [{'id': i, 'name': f'Species {i}'} for i in sorted(IDS)]
    (root / 'categories.json').write_text(json.dumps(names))
    for split, first in (('train', 100), ('val', 200)):
        images, places, annotations = [], [], []
        for number, category in enumerate(IDS):
            image = rng.integers(0, 256, (70 + 4 * number, 90, 3), dtype=np.uint8)
            file_name = f'train_val2018/Aves/{category}/{split}.jpg'
            (root / file_name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / file_name), image)
            key = first + number
            images.append({'id': key, 'file_name': file_name})
            annotations.append({'id': key, 'image_id': key, 'category_id': category})
            lat, lon = PLACE if number else (None, None)
            date = DATE if number != 1 else None
            places.append({'id': key, 'date': date, 'lat': lat, 'lon': lon})
        content = {
            'images': images[::-1],  # only ids say what belongs together
            'annotations': annotations,
            'categories': [{'id': i, 'name': str(i)} for i in IDS],
        }
        (root / f'{split}2018.json').write_text(json.dumps(content))
        (root / f'{split}2018_locations.json').write_text(
            json.dumps(places[2:] + places[:2])
        )


@pytest.mark.parametrize(
    ('date', 'code'),
    [
        (DATE, DATE_CODE),
        ('2018-01-31', [HALF, LONG, 0, 0]),
        (' 2018-12-01T10:00:00+00:00', [0, 1, 0, 0]),
        (None, [0, 0, 0, 0]),
        ('', [0, 0, 0, 0]),
        ('2018', [0, 0, 0, 0]),
        ('spring 2018-04-01', [0, 0, 0, 0]),
    ],
)
def test_date_is_an_angle(date, code):
    assert inaturalist2018.encode_date(date) == pytest.approx(code)


@pytest.mark.parametrize(
    ('place', 'code'),
    [
        (PLACE, PLACE_CODE),
        ((-60.0, 120.0), [-HALF * HALF, HALF * LONG, -LONG]),
        ((90.0, 10.0), [0, 0, 1]),
        ((None, 10.0), [0, 0, 0]),
        ((10.0, None), [0, 0, 0]),
        ((0.0, 30.0), [0, 0, 0]),  # on the equator, and unknown, as published
        ((51.5, 0.0), [0, 0, 0]),  # on the meridian of Greenwich
    ],
)
def test_place_is_a_point_on_the_sphere(place, code):
    assert inaturalist2018.encode_place(*place) == pytest.approx(code)


def test_data_set_joins_the_official_files(config):
    root = config.parent / 'data' / 'inat2018'
    data = inaturalist2018.INaturalist2018(str(root), 'val')
    assert list(data.CLASSES) == [f'Species {i}' for i in IDS]
    first, second, third, *_ = [data.get_data_info(i) for i in range(len(data))]
    assert first['img_path'] == str(root / 'train_val2018/Aves/7/val.jpg')
    assert [data.get_cat_ids(i) for i in range(6)] == [[i] for i in range(6)]
    assert (first['date'], first['latitude'], first['longitude']) == (DATE, None, None)
    assert second['date'] is None
    assert (third['date'], third['latitude'], third['longitude']) == (DATE, *PLACE)


def drop_last(content: list) -> None:
    content.pop()


@pytest.mark.parametrize(
    ('name', 'damage', 'message'),
    [
        (
            'val2018.json',
            lambda c: c['images'].pop(),
            'image, got none for 1, such as id 200',
        ),
        (
            'val2018.json',
            lambda c: c['categories'].pop(),
            'category, got none for 1, such as id 2',
        ),
        ('val2018_locations.json', drop_last, 'image, got none for 1, such as id 201'),
        ('categories.json', drop_last, 'category, got none for 1, such as id 7'),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, name, damage, message):
    write_data(tmp_path / 'inat')
    file = tmp_path / 'inat' / name
    content = json.loads(file.read_text())
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f'{name}: expected .* {message}'):
        inaturalist2018.INaturalist2018(str(tmp_path / 'inat'), 'val')


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'val2018_locations\.json, .*categ'):
        inaturalist2018.INaturalist2018(str(tmp_path), 'val')
    with pytest.raises(ValueError, match="expected 'train' or 'val', got 'test'"):
        inaturalist2018.INaturalist2018(str(tmp_path), 'test')


def head(num_classes: int = NUM_CLASSES) -> nn.Module:
    settings = dict(type='MetaLinearClsHead', num_classes=num_classes, in_channels=20)
    return fill(MODELS.build(settings)).double()


def test_logits_are_those_of_the_formula():
    model = head()
    w = model.state_dict()
    rng = torch.Generator().manual_seed(0)
    features, metadata = (
        torch.randn(3, size, generator=rng, dtype=torch.double) for size in (20, 7)
    )

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

    def norm(name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
        x = (x - mean) / (var + eps).sqrt()
        return x * w[f'{name}.weight'] + w[f'{name}.bias']

    def encode(name: str, x: Tensor) -> Tensor:
        x = norm(f'{name}.2', linear(f'{name}.0', x).clamp(min=0))
        y = norm(f'{name}.3.norm_fn1', linear(f'{name}.3.w1', x).clamp(min=0))
        return x + norm(f'{name}.3.norm_fn2', linear(f'{name}.3.w2', y).clamp(min=0))

    def logits(metadata: Tensor) -> Tensor:
        date, place = metadata[:, :4], metadata[:, 4:]
        x = torch.cat([encode('meta_head_1', date), encode('meta_head_2', place)], 1)
        x = linear('meta_head', norm('meta_norm', x, eps=1e-6))
        return linear('fc', features) + x

    torch.testing.assert_close(model((features,), metadata), logits(metadata))
    torch.testing.assert_close(model((features,)), logits(metadata * 0))


def test_metadata_that_does_not_reach_the_head():
    samples = [mmpretrain.structures.DataSample().set_gt_label(1) for _ in range(2)]
    features = (torch.zeros(2, 20, dtype=torch.double),)
    for method in (head().loss, head().predict):
        with pytest.raises(ValueError, match='EncodeDateAndPlace before PackInputs'):
            method(features, samples)


@pytest.mark.parametrize(('num_classes', 'params'), [(1000, 0), (8142, 7142 * 898)])
def test_model_is_the_published_one(num_classes, params):
    entry = read_json('zoo_classification.json.gz')[CODE]
    backbones = read_json('zoo_backbones.json.gz')['backbones']
    (backbone,) = (item for item in backbones if CODE in item['configs'])
    assert entry['params'] == 1_089_784_000
    model = Config.fromfile(CONFIG).model
    model.head.num_classes = num_classes
    built = build_on_meta(model)
    with torch.device('meta'):
        published = {
            name: torch.empty(num_classes if shape[0] == 1000 else shape[0], *shape[1:])
            for name, shape in {**backbone['shapes'], **entry['other_shapes']}.items()
        }
    shapes = {name: v.shape for name, v in convert_published(published).items()}
    assert {name: v.shape for name, v in built.state_dict().items()} == shapes
    # The released weights have 8142 classes, where the entry has 1000.
    num_params = sum(param.numel() for param in built.parameters())
    assert num_params == entry['params'] + params


def test_settings_are_the_published_ones():
    from tests.configs.comparison import find_differences
    from tests.configs.published_classification import merge, modern_recipe
    from tests.configs.test_classification_recipes import NOT_PUBLISHED, our_recipe

    defaults = json.loads((DATA / 'classification_recipes.json').read_text())[
        'defaults'
    ]
    # How many GPUs trained it is not published; 512 images are what the rate is for.
    launch = {'NUM_GPUS': 32, 'DATA': {'BATCH_SIZE': 16}}
    recipe = modern_recipe(merge(merge(defaults, PUBLISHED), launch))
    recipe['model']['head']['type'] = 'MetaLinearClsHead'
    # RAND_INIT_FT_HEAD multiplies by 0.001 what starts with 0.02.
    override = {'type': 'TruncNormal', 'name': 'fc', 'std': 2e-5}
    recipe['model']['head']['init_cfg']['override'] = override
    del recipe['param_scheduler'][0]  # of 0 epochs
    for split in ('train', 'val'):  # which test is, too
        data = recipe[f'{split}_dataloader']['dataset']
        data.update(type='INaturalist2018', data_root='data/inat2018')
        data['pipeline'][-1:] = [
            {'type': 'EncodeDateAndPlace'},
            {'type': 'PackInputs', 'algorithm_keys': ['metadata']},
        ]
    ours = our_recipe(Config.fromfile(CONFIG))
    assert not find_differences(recipe, ours, NOT_PUBLISHED)


def test_documents_agree():
    (entry,) = yaml.safe_load((PROJECT / 'metafile.yml').read_text())['Models']
    assert entry['Name'] == NAME
    assert (ROOT / entry['Config']).samefile(CONFIG)
    assert entry['Converted From']['Code'].endswith(CODE)
    model = build_on_meta(Config.fromfile(CONFIG).model)
    params = sum(param.numel() for param in model.parameters())
    assert entry['Metadata']['Parameters'] == params
    readme = (PROJECT / 'README.md').read_text()
    assert f'| {entry["Results"][0]["Metrics"]["Top 1 Accuracy"]} |' in readme
    assert entry['Weights'] in readme
    assert CONFIG.relative_to(PROJECT).as_posix() in readme


def test_fine_tuning_starts_with_an_image_head_of_almost_nothing(config, tmp_path):
    settings = Config.fromfile(config).model
    source = MODELS.build(
        dict(settings, head=dict(settings.head, type='LinearClsHead', num_classes=9))
    )
    weights = {
        name.removeprefix('backbone.').removeprefix('neck.'): value
        for name, value in fill(source).state_dict().items()
    }
    weights = {name.replace('head.fc.', 'head.'): v for name, v in weights.items()}
    torch.save({'model': weights}, tmp_path / 'published.pth')
    settings.init_cfg = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'published.pth')
    )
    model = MODELS.build(settings)
    model.init_weights()
    for name, value in model.neck.state_dict().items():
        assert torch.equal(value, source.neck.state_dict()[name]), name
    assert 0 < model.head.fc.weight.abs().max() < 2e-4
    assert model.head.meta_head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.head.meta_head.bias.any()


@pytest.fixture(scope='module')
def trained(config) -> Runner:
    """Train one iteration and validate; return what did that."""
    settings = Config.fromfile(config)
    for split in ('train', 'val', 'test'):
        root = config.parent / 'data' / 'inat2018'
        settings[f'{split}_dataloader'].dataset.data_root = str(root)
    settings.work_dir = str(config.parent / 'work_dirs')
    settings.experiment_name = 'inaturalist2018'
    runner = Runner.from_cfg(settings)
    runner.train()
    return runner


def test_trains_and_tests(trained):
    assert trained.iter == 1
    assert 'accuracy/top5' in trained.test()
    model = trained.model.train()
    batch = model.data_preprocessor(next(iter(trained.train_dataloader)), True)
    model(**batch, mode='loss')['loss'].backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name


def test_date_and_place_change_a_prediction(trained, config):
    weights = config.parent / 'work_dirs' / 'epoch_1.pth'
    inferencer = mmpretrain.ImageClassificationInferencer(
        str(config), pretrained=str(weights), device='cpu'
    )
    fill(inferencer.model)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (unknown,) = inferencer(image)
    assert unknown['pred_class'] == f'Species {IDS[unknown["pred_label"]]}'

    def scores(**known: object) -> Tensor:
        data = inferencer.pipeline(dict(img=image, **known))
        (result,) = inferencer.model.test_step(pseudo_collate([data]))
        return result.pred_score

    torch.testing.assert_close(scores(), torch.from_numpy(unknown['pred_scores']))
    known = scores(date=DATE, latitude=PLACE[0], longitude=PLACE[1])
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    mean, std = (
        torch.tensor(SOURCE.data_preprocessor[key]).view(3, 1, 1)
        for key in ('mean', 'std')
    )
    features = inferencer.model.extract_feat((rgb - mean) / std)
    logits = inferencer.model.head(features, torch.tensor([DATE_CODE + PLACE_CODE]))
    torch.testing.assert_close(known, F.softmax(logits[0], dim=0))
    assert not torch.allclose(known, scores(), atol=1e-3)


@pytest.mark.slow
def test_mim_finds_the_project(trained, config):
    output = run(
        'test',
        str(config),
        *['--checkpoint', 'work_dirs/epoch_1.pth', '--work-dir', 'tested'],
        cwd=config.parent,
    )
    assert 'accuracy/top1: ' in output
