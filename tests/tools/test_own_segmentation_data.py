# SPDX-License-Identifier: Apache-2.0
"""The config for data of one's own, in configs/segmentation/README.md, and its advice.

It trains and is tested, on generated images, with a small model.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from internimage.data import check_datasets
from tests.paths import CONFIGS, ROOT
from tests.tools.learning_rates import check_rise_and_fall, learning_rates
from tests.tools.programs import run_tool
from tests.tools.small_models import SIX_VIEWS, UPERNET, as_arguments

pytest.importorskip('mmseg')
import mmcv
import mmseg.datasets
import mmseg.models  # noqa: F401

README = CONFIGS / 'segmentation' / 'README.md'
NUM_IMAGES = 2
SMALL = as_arguments(
    {
        **UPERNET,
        **SIX_VIEWS,
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'param_scheduler.1.end': 2,
    }
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images, masks of 0, 1 and 255, and the config."""
    generator = np.random.default_rng(0)
    for split in ('train', 'val'):
        for i in range(NUM_IMAGES):
            image = generator.integers(0, 255, (47, 75, 3), np.uint8)
            mask = (image[..., 0] > 200).astype(np.uint8)
            mask[0] = 255
            data = tmp_path / 'data' / 'cracks'
            mmcv.imwrite(image, str(data / 'images' / split / f'{i}.jpg'))
            mmcv.imwrite(mask, str(data / 'masks' / split / f'{i}.png'))
    (text,) = re.findall(
        r"```python\n(_base_ = 'configs/.*?)```", README.read_text(), re.S
    )
    assert len(text.splitlines()) <= 20
    (tmp_path / 'cracks.py').write_text(text.replace('configs/', f'{ROOT}/configs/', 1))
    return tmp_path


@pytest.mark.slow
def test_config_trains_and_is_tested(folder: Path):
    options = ['--work-dir', 'out', '--cfg-options', *SMALL]
    output = run_tool('train', 'cracks.py', '--auto-scale-lr', *options, cwd=folder)
    assert '| background |' in output
    assert '|   crack    |' in output
    options = ['--tta', *options]
    output = run_tool('test', 'cracks.py', 'out/iter_2.pth', *options, cwd=folder)
    assert f'[{NUM_IMAGES}/{NUM_IMAGES}]' in output
    assert 'mIoU: ' in output


def labels_of(config: Config, folder: Path, **settings: bool) -> set[int]:
    """Return the labels of an image, as they are evaluated."""
    dataset = {**config.val_dataloader.dataset, **settings}
    dataset['data_root'] = str(folder / dataset['data_root'])
    with DefaultScope.overwrite_default_scope('mmseg'):
        (sample, *_) = DATASETS.build(dataset)
    return set(sample['data_samples'].gt_sem_seg.data.unique().tolist())


def test_label_0_is_a_class_where_it_is_not_reduced(folder: Path):
    config = Config.fromfile(folder / 'cracks.py')
    assert labels_of(config, folder) == {0, 1, 255}
    assert labels_of(config, folder, reduce_zero_label=True) == {0, 255}


def test_one_class_learns_nothing(folder: Path):
    config = Config.fromfile(folder / 'cracks.py')
    head = config.model.decode_head
    head.update(in_channels=[16] * 4, channels=16, norm_cfg=dict(type='BN'))

    def loss(num_classes: int, labels: torch.Tensor) -> float:
        head.num_classes = num_classes
        with DefaultScope.overwrite_default_scope('mmseg'):
            module = MODELS.build(head)
        logits = torch.zeros(1, module.out_channels, *labels.shape[1:])
        return module.loss_decode(logits, labels, ignore_index=255).item()

    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    assert loss(1, labels) == 0
    assert loss(2, labels) > 0
    labels[0, 0, 0] = 1
    with pytest.raises(IndexError):
        loss(1, labels)


def test_a_small_set_fits(folder: Path):
    """The README's further lines set how long it trains, and the size of the crops."""
    (lines,) = re.findall(
        r'```python\n(# a small set: .*?)```', README.read_text(), re.S
    )
    path = folder / 'cracks.py'
    config = Config.fromfile(path)
    assert max(learning_rates(config, 1)[:1000]) < 0.7
    path.write_text(path.read_text() + lines)
    config = Config.fromfile(path)
    check_rise_and_fall(learning_rates(config, 1))
    assert config.model.data_preprocessor.size == (256, 256)
    assert config.model.decode_head.num_classes == 2
    for split in ('train', 'val'):
        loader = config[f'{split}_dataloader']
        loader.dataset.data_root = str(folder / loader.dataset.data_root)
    train, val = check_datasets(config)
    assert train.labels == val.labels == ('background', 'crack')
    with DefaultScope.overwrite_default_scope('mmseg'):
        (sample, *_) = DATASETS.build(config.train_dataloader.dataset)
        (tested, *_) = DATASETS.build(config.val_dataloader.dataset)
    # The data preprocessor pads what a random scale has made smaller than the crop.
    assert max(sample['inputs'].shape[1:]) <= 256
    assert min(tested['inputs'].shape[1:]) == 256
