# SPDX-License-Identifier: Apache-2.0
"""Places205 and Places365: their data are read, trained on and tested."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope

from tests.our_configs import read_config
from tests.paths import ROOT
from tests.tools.programs import run_tool
from tests.tools.small_models import LOADERS, Options, as_arguments

pytest.importorskip('mmpretrain')
SCENES = ('abbey', 'airport_terminal', 'alley')
NUM_TRAINED, NUM_TESTED = 2, 1  # images of each scene
SMALL: Options = {
    **LOADERS,
    'model.init_cfg': None,
    'model.backbone.arch': {
        '_delete_': True,
        'channels': 8,
        'depths': [1, 1, 1, 1],
        'groups': [1, 2, 4, 8],
    },
    'model.neck.in_channels': [32, 64],
    'model.neck.embed_dims': 16,
    'model.neck.num_heads': 2,
    'model.neck.out_channels': 24,
    'model.head.in_channels': 24,
    'train_cfg.max_epochs': 1,
    'train_dataloader.batch_size': 3,
    'train_dataloader.dataset.pipeline.1.scale': 64,
    **{
        f'{split}_dataloader.dataset.pipeline.{name}': 64
        for split in ('val', 'test')
        for name in ('1.scale', '2.crop_size')
    },
}


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)


def write_places205(data: Path) -> None:
    """Write images, and lists of paths and classes."""
    root = data / 'places205'
    for split, number in (('train', NUM_TRAINED), ('val', NUM_TESTED)):
        lines = []
        for label, scene in enumerate(SCENES):
            for index in range(number):
                name = f'a/{scene}/{split}_{index}.jpg'
                write_image(root / 'images' / name)
                lines.append(f'{name} {label}\n')
        (root / f'{split}_places205.csv').write_text(''.join(lines))


def write_places365(data: Path) -> None:
    """Write a folder for each class."""
    for split, number in (('train', NUM_TRAINED), ('val', NUM_TESTED)):
        for scene in SCENES:
            for index in range(number):
                write_image(
                    data / 'places365_standard' / split / scene / f'{index}.jpg'
                )


DATA: dict[str, Callable[[Path], None]] = {
    'places205': write_places205,
    'places365': write_places365,
}


def config_of(name: str) -> str:
    return f'projects/places/configs/internimage-h_32xb16_{name}-384px.py'


@pytest.mark.parametrize('name', DATA)
def test_records_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    DATA[name](tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    config = read_config(config_of(name))
    assert config.model.head.num_classes == int(name.removeprefix('places'))
    for split, number in (('train', NUM_TRAINED), ('val', NUM_TESTED)):
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            dataset = DATASETS.build(config[f'{split}_dataloader'].dataset)
        assert len(dataset) == len(SCENES) * number
        for index in range(len(dataset)):
            record = dataset.get_data_info(index)
            assert SCENES[record['gt_label']] == Path(record['img_path']).parent.name
            assert Path(record['img_path']).is_file()


def test_it_is_the_recipe_of_imagenet_without_warm_up():
    """As the paper says in section C.1, of table 7."""
    recipe = read_config('configs/classification/internimage-h_32xb16_in1k-384px.py')
    for name in DATA:
        config = read_config(config_of(name))
        for part in ('train_pipeline', 'test_pipeline', 'optim_wrapper', 'train_cfg'):
            assert config[part] == recipe[part]
        assert config.param_scheduler == recipe.param_scheduler[1:]
        model, expected = config.model.to_dict(), recipe.model.to_dict()
        for settings in (model, expected):
            del settings['head']['type'], settings['head']['num_classes']
        assert model == expected


@pytest.mark.slow
@pytest.mark.parametrize('name', DATA)
def test_train_and_test(name: str, tmp_path: Path):
    DATA[name](tmp_path / 'data')
    config = str(ROOT / config_of(name))
    options = ['--cfg-options', *as_arguments(SMALL)]
    logged = [*options, 'default_hooks.logger.interval=1']
    output = run_tool('train', config, '--work-dir', 'out', *logged, cwd=tmp_path)
    assert 'Epoch(train) [1][2/2]' in output
    checkpoint = (tmp_path / 'out' / 'last_checkpoint').read_text()
    arguments = ['--work-dir', 'tested', *options]
    output = run_tool('test', config, checkpoint, *arguments, cwd=tmp_path)
    assert 'accuracy/top1: ' in output
