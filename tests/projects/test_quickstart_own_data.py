# SPDX-License-Identifier: Apache-2.0
"""The README's config for one's own data trains every family of published detectors."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from internimage.data import check_datasets
from tests.paths import QUICKSTART, ROOT
from tests.tools import small_models
from tests.tools.learning_rates import check_rise_and_fall, learning_rates

sys.path.insert(0, str(QUICKSTART))
scenes = importlib.import_module('scenes')
sys.path.remove(str(QUICKSTART))

README = (QUICKSTART / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
(CONFIG,) = (block for block in BLOCKS if block.startswith('# my_config.py'))
(SMALL_SET,) = (block for block in BLOCKS if block.startswith('# at the end of my_con'))
(BY_ITERATIONS,) = (block for block in BLOCKS if 'set, by iterations' in block)
# Name -> the lines that say where its number of classes is.
MODELS = {
    match[1]: block
    for block in BLOCKS
    if (match := re.match(r'# ((?:\w+ )*(?:R-CNN|DINO))\b', block))
}
# Config -> the README's name of its family, what makes it small.
CASES = {
    'faster-rcnn_internimage-t_fpn_1x_coco': ('Faster R-CNN', small_models.FASTER_RCNN),
    'mask-rcnn_internimage-t_fpn_1x_coco': ('Mask R-CNN', small_models.MASK_RCNN),
    'cascade-mask-rcnn_internimage-l_fpn_1x_coco': (
        'Cascade Mask R-CNN',
        small_models.CASCADE_MASK_RCNN,
    ),
    'dino-4scale_internimage-t_8xb2-layer-decay-12e_coco': ('DINO', small_models.DINO),
    'dino-4scale_cb-internimage-h_16xb1-20k_o365-to-coco': (
        'DINO',
        small_models.LARGE_DINO,
    ),
}


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('shapes')
    scenes.generate(path, seed=3, num_train=4, num_val=2)
    return path


def write_config(folder: Path, data: Path, config: str, family: str) -> Path:
    """Write the README's config, with its names in place of the example's."""
    lines = re.search(r'^model = .*$', MODELS[family], re.DOTALL | re.MULTILINE)[0]
    before = MODELS[family].split('model = ')[0]
    text = CONFIG
    changes = {
        r'<here>.*\.py': f'{ROOT}/configs/detection/{config}.py',
        r'/data/fruit/': f'{data}/',
        r"\('apple', 'pear'\)": str(tuple(scenes.CATEGORY_IDS)),
        r'model = .*\n': before + lines,
        r'load_from = .*\n': '',
    }
    for pattern, new in changes.items():
        text, count = re.subn(pattern, lambda _, new=new: new, text)
        assert count == 1, pattern
    path = folder / 'my_config.py'
    path.write_text(text)
    return path


def write_small_set_config(folder: Path, data: Path, name: str) -> Path:
    """Write the config with the README's lines for a small set at its end."""
    path = write_config(folder, data, name, CASES[name][0])
    lines = SMALL_SET
    if '20k' in name:
        start, end = lines.index('max_epochs ='), lines.index('custom_hooks')
        lines = lines[:start] + BY_ITERATIONS + lines[end:]
    path.write_text(path.read_text() + lines)
    return path


def test_config_is_short():
    lines = [line for line in CONFIG.splitlines() if line and line[0] != '#']
    assert len(lines) <= 15


@pytest.mark.parametrize('name', CASES)
def test_own_data(data: Path, tmp_path: Path, name: str):
    family, small = CASES[name]
    if family == 'Faster R-CNN':  # with the lines for a small set
        path = write_small_set_config(tmp_path, data, name)
    else:
        path = write_config(tmp_path, data, name, family)
    config = Config.fromfile(path)
    config.merge_from_dict(small)
    if config.train_cfg.type == 'EpochBasedTrainLoop':
        config.train_cfg.max_epochs = 1
    else:
        config.train_cfg.update(max_iters=2, val_interval=2)
    pipeline = config.train_dataloader.dataset.pipeline
    for number, step in enumerate(pipeline):
        if step.type == 'RandomChoice':  # many sizes, all larger than a test needs
            pipeline[number] = dict(type='Resize', scale=(128, 96), keep_ratio=True)
    config.work_dir = str(tmp_path)
    config.experiment_name = f'own_data_{name}'
    runner = Runner.from_cfg(config)
    runner.train()
    dataset = runner.train_dataloader.dataset
    assert dataset.metainfo['classes'] == tuple(scenes.CATEGORY_IDS)
    for split in ('val', 'test'):
        assert config[f'{split}_dataloader'].dataset.ann_file.endswith('val.json')
        assert config[f'{split}_evaluator'].ann_file.startswith(str(data))
    kind = 'segm' if 'Mask' in family else 'bbox'
    assert runner.message_hub.get_scalar(f'val/coco/{kind}_mAP').current() >= 0


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('num_images', [4, 83])
def test_the_rate_of_a_small_set_rises_and_falls(
    data: Path, tmp_path: Path, name: str, num_images: int
):
    config = Config.fromfile(write_small_set_config(tmp_path, data, name))
    check_rise_and_fall(learning_rates(config, epoch_length=num_images // 2))
    check_datasets(config)  # all steps of the pipelines can be built
    for split, number in (('train', 2), ('val', 1), ('test', 1)):
        pipeline = config[f'{split}_dataloader'].dataset.pipeline
        assert pipeline[number].scale == (800, 480)


@pytest.mark.parametrize('name', list(CASES)[:3])
def test_the_rate_of_the_recipe_does_not(data: Path, tmp_path: Path, name: str):
    config = Config.fromfile(write_config(tmp_path, data, name, CASES[name][0]))
    assert max(learning_rates(config, epoch_length=2)) < 0.1
