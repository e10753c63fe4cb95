# SPDX-License-Identifier: Apache-2.0
"""The quickstart's classification part: data generator, config, table, picture."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from internimage.data import check_datasets
from tests.paths import CONFIGS, QUICKSTART, ROOT
from tests.tools.learning_rates import check_rise_and_fall, learning_rates

sys.path.insert(0, str(QUICKSTART))  # its files are programs, which Python runs by path
scenes = importlib.import_module('scenes')
shape_crops = importlib.import_module('shape_crops')
classification = importlib.import_module('classification')
demo = importlib.import_module('demo')
sys.path.remove(str(QUICKSTART))

SETTINGS = {'seed': 3, 'num_train': 10, 'num_val': 7}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp('shape_crops')
    assert shape_crops.generate(path, **SETTINGS)
    return path


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob('*.*')}


class TestGenerate:
    def test_same_seed_gives_the_same_bytes(self, root, tmp_path):
        shape_crops.generate(tmp_path, **SETTINGS)
        assert contents(tmp_path) == contents(root)

    def test_more_images_leave_the_others_as_they_are(self, root, tmp_path):
        shape_crops.generate(tmp_path, **{**SETTINGS, 'num_val': 8})
        marker = Path(shape_crops.MARKER)
        old, new = contents(root), contents(tmp_path)
        assert len(new) == len(old) + 1
        assert all(new[path] == old[path] for path in old if path != marker)

    def test_classes_share_the_images(self, root):
        for split, numbers in (('train', [2, 2, 2, 2, 2]), ('val', [2, 2, 1, 1, 1])):
            folders = sorted((root / split).iterdir())
            assert tuple(folder.name for folder in folders) == shape_crops.CLASSES
            assert [len(list(folder.iterdir())) for folder in folders] == numbers

    def test_images_have_the_size(self, root):
        for path in root.rglob('*.jpg'):
            assert cv2.imread(str(path)).shape == (*shape_crops.SIZE, 3)

    def test_complete_set_is_kept_and_incomplete_one_is_written_again(
        self, root, tmp_path
    ):
        copy = tmp_path / 'copy'
        shutil.copytree(root, copy)
        assert not shape_crops.generate(copy, **SETTINGS)
        next((copy / 'val').rglob('*.jpg')).unlink()
        assert shape_crops.generate(copy, **SETTINGS)
        assert contents(copy) == contents(root)

    def test_smaller_set_leaves_no_image_behind(self, root, tmp_path):
        copy = tmp_path / 'copy'
        shutil.copytree(root, copy)
        assert shape_crops.generate(copy, **{**SETTINGS, 'num_train': 5})
        assert len(list((copy / 'train').rglob('*.jpg'))) == 5

    def test_foreign_data_set_is_not_overwritten(self, tmp_path):
        path = tmp_path / 'train' / 'cat' / '1.jpg'
        path.parent.mkdir(parents=True)
        path.write_text('precious')
        with pytest.raises(ValueError, match='found another data set'):
            shape_crops.generate(tmp_path)
        assert path.read_text() == 'precious'

    def test_every_class_has_an_image(self, tmp_path):
        with pytest.raises(ValueError, match=r'num_val: expected at least 5 .* got 4'):
            shape_crops.generate(tmp_path, num_val=4)


@pytest.mark.parametrize('category', shape_crops.CLASSES)
def test_the_shape_near_the_centre_is_of_the_class_and_visible(category):
    view = shape_crops.sample_crop(category, np.random.default_rng(0))
    center = np.array(shape_crops.SIZE) / 2
    index = scenes.index_map(view)
    assert any(
        shape.category == category
        and np.abs(np.array(shape.center) - center).max() <= shape_crops.MAX_SHIFT
        and np.count_nonzero(index == number) / scenes.OVERSAMPLING**2
        >= shape_crops.MIN_VISIBLE_RATE * scenes.full_area(shape)
        for number, shape in enumerate(view.shapes, start=1)
    )


def test_config_trains_tests_and_predicts(root, tmp_path):
    config = Config.fromfile(classification.CONFIG)
    assert tuple(config.metainfo.classes) == shape_crops.CLASSES
    demo.set_iterations(config, 1)
    config.data_root = str(root)
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.dataset.data_root = str(root)
        loader.num_workers, loader.persistent_workers = 0, False
        loader.batch_size = 4
    config.work_dir = str(tmp_path)
    config.experiment_name = 'quickstart_classification_test'
    runner = Runner.from_cfg(config)
    runner.train()
    header, values = classification.table(runner.test()).splitlines()
    assert header.split() == ['classes', 'top-1', 'precision', 'recall']
    assert [float(value) >= 0 for value in values.split()] == [True] * 4

    picture = tmp_path / 'predictions.png'
    # One row: the smallest class has one image.
    num_drawn = classification.draw_predictions(
        config, str(tmp_path / 'iter_1.pth'), picture
    )
    assert num_drawn == 5
    assert cv2.imread(str(picture)).std() > 0


def test_demo_reads_folders_for_detection_only(root, capsys):
    with pytest.raises(SystemExit):
        demo.parse_args(['--task', 'classification', '--data', str(root)])
    assert '--data: expected the task detection' in capsys.readouterr().err


README_BLOCKS = [
    (
        QUICKSTART / 'README.md',
        ('# my_classifier.py', '# at the end of my_classifier.py'),
    ),
    (
        CONFIGS / 'classification' / 'README.md',
        ('# my_classifier.py',),
    ),
]


@pytest.mark.parametrize(('readme', 'titles'), README_BLOCKS)
def test_config_for_own_folders(root, tmp_path, readme, titles):
    """The READMEs' configs read two folders, and their rates fit few images."""
    for split in scenes.SPLITS:
        for number, name in enumerate(('apple', 'pear')):
            source = root / split / shape_crops.CLASSES[number]
            shutil.copytree(source, tmp_path / 'fruit' / split / name)
    blocks = re.findall(r'```python\n(.*?)```', readme.read_text(), re.DOTALL)
    text = ''.join(
        next(block for block in blocks if block.startswith(title)) for title in titles
    )
    here = str(ROOT)
    for old, new in {
        '<here>': here,
        "'configs/": f"'{here}/configs/",
        '/data/fruit/': f'{tmp_path}/fruit/',
    }.items():
        text = text.replace(old, new)
    path = tmp_path / 'my_classifier.py'
    path.write_text(text)
    config = Config.fromfile(path)
    train, val = check_datasets(config)
    assert train.counts == val.counts == {'apple': 2, 'pear': 2}
    check_rise_and_fall(learning_rates(config, epoch_length=3))
    assert config.model.head.num_classes == 2
    config.train_dataloader.num_workers = 0
    config.train_dataloader.persistent_workers = False
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(config.train_dataloader)
    assert len(next(iter(loader))['inputs']) in (4, 16)
