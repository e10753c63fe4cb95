# SPDX-License-Identifier: Apache-2.0
"""A classifier trains and is tested on a sample of ImageNet, if it is here."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.paths import CONFIGS
from tests.tools.programs import run_tool
from tests.tools.real_images import sample

CONFIG = CONFIGS / 'classification' / 'internimage-t_32xb128_in1k.py'

# The published config, small enough for some iterations in seconds on a CPU.
SMALL = [
    'model.backbone.arch._delete_=True',
    'model.backbone.arch.channels=16',
    'model.backbone.arch.depths=[1,1,2,1]',
    'model.backbone.arch.groups=[1,2,4,8]',
    'model.neck.in_channels=128',
    'model.neck.out_channels=192',
    'model.head.in_channels=192',
    'model.head.num_classes=10',
    'data_preprocessor.num_classes=10',
    'train_dataloader.batch_size=50',
    'train_dataloader.dataset.pipeline.1.scale=64',
    'train_cfg.max_epochs=2',
    'param_scheduler.0.end=1',
    *(
        f'{split}_dataloader.dataset.{setting}'
        for split in ('val', 'test')
        for setting in ('pipeline.1.scale=64', 'pipeline.2.crop_size=64')
    ),
    *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
]


def accuracy(log: str) -> list[str]:
    """Return top-1 and top-5 as last logged."""
    logged = re.findall(r'accuracy/top1: ([\d.]+) +accuracy/top5: ([\d.]+)', log)
    return list(logged[-1])


@pytest.fixture(scope='module')
def options(shared_data: Path) -> list[str]:
    pytest.importorskip('mmpretrain')
    root = sample(shared_data, 'imagenet')
    splits = {'train': 'train', 'val': 'val', 'test': 'val'}
    places = (
        f'{loader}_dataloader.dataset.{setting}'
        for loader, split in splits.items()
        for setting in (f'data_root={root}', f'ann_file={split}.txt')
    )
    return ['--cfg-options', *SMALL, *places]


@pytest.fixture(scope='module')
def trained(
    options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """Return a folder with two epochs of training in ``out``, and their accuracy."""
    folder = tmp_path_factory.mktemp('imagenet')
    log = run_tool('train', str(CONFIG), '--work-dir', 'out', *options, cwd=folder)
    losses = [float(loss) for loss in re.findall(r' loss: (\S+)', log)]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)
    assert (folder / 'out' / 'epoch_2.pth').is_file()
    assert not (folder / 'out' / 'epoch_1.pth').exists()
    return folder, accuracy(log)


def to_published(source: Path) -> Path:
    """Write the weights of a checkpoint as the published code would have."""
    parts = {'backbone.': '', 'neck.': '', 'head.fc.': 'head.'}
    weights = {}
    for name, value in torch.load(source, weights_only=False)['state_dict'].items():
        part = next(part for part in parts if name.startswith(part))
        weights[parts[part] + name.removeprefix(part)] = value
    path = source.with_name('published.pth')
    torch.save({'model': weights, 'epoch': 1}, path)
    return path


@pytest.mark.slow
def test_tool_tests_published_layout(
    trained: tuple[Path, list[str]], options: list[str]
):
    folder, expected = trained
    checkpoint = to_published(folder / 'out' / 'epoch_2.pth')
    arguments = [str(CONFIG), str(checkpoint), '--work-dir', 'tested']
    log = run_tool('test', *arguments, *options, cwd=folder)
    assert accuracy(log) == expected


@pytest.mark.slow
def test_runner_tests_own_checkpoint(trained: tuple[Path, list[str]]):
    folder, expected = trained
    config = Config.fromfile(folder / 'out' / CONFIG.name)
    config.load_from = str(folder / 'out' / 'epoch_2.pth')
    config.work_dir = str(folder / 'tested_here')
    config.experiment_name = 'test_imagenet'
    metrics = Runner.from_cfg(config).test()
    assert [f'{metrics[f"accuracy/top{k}"]:.4f}' for k in (1, 5)] == expected
