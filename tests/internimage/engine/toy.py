# SPDX-License-Identifier: Apache-2.0
"""A model and data that draw from every generator, trained in milliseconds.

Runs are made in forked processes: a runner leaves traces in the process (its message
hub, generators), and a killed one has to be a process of its own. What a runner imports
is imported here, once.
"""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot  # noqa: F401
import numpy as np
import torch
import torchvision  # noqa: F401
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import internimage  # noqa: F401

NUM_SAMPLES = 8


class Noisy(Dataset):
    """Numbers, with noise of Python, NumPy and PyTorch."""

    metainfo = {'classes': ('a', 'b')}

    def __len__(self) -> int:
        return NUM_SAMPLES

    def get_data_info(self, index: int) -> dict:
        """Tell the size, as mmdet's sampler asks."""
        return {'width': 3 + index % 2, 'height': 4}

    def __getitem__(self, index: int) -> dict:
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        sample = SimpleNamespace(img_path=f'images/{index}.jpg')
        return {'inputs': torch.tensor([index + noise, 1.0]), 'data_samples': sample}


class Toy(BaseModel):
    """A linear layer with dropout and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.linear = nn.Linear(2, 3)

    def forward(self, inputs: list, data_samples: list, mode: str = 'tensor') -> Any:
        outputs = self.linear(self.norm(torch.stack(inputs)))
        if mode != 'loss':
            return [{'score': float(outputs.sum())}]
        noise = random.random() + np.random.rand()
        kept = nn.functional.dropout(outputs, 0.3, self.training)
        return {'loss_a': (kept - noise).square().mean(), 'acc': kept.mean()}


class Score(Evaluator):
    """Gives metrics that it is told, of one validation after the other."""

    def __init__(self, **metrics: list[float]) -> None:
        super().__init__([])
        self.values = {name.replace('_', '/'): each for name, each in metrics.items()}

    def process(self, data_samples: Any, data_batch: Any = None) -> None:
        """Draw from a generator, as an evaluation may."""
        np.random.rand()

    def evaluate(self, size: int) -> dict:
        """Return the next metrics."""
        return {name: each.pop(0) for name, each in self.values.items()}


def config(folder: Path, by_epoch: bool = True, **changes: Any) -> dict:
    """Return the settings of a run of 3 epochs or 9 iterations."""
    length = (
        dict(by_epoch=True, max_epochs=3)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=9)
    )
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    loader = dict(
        dataset=Noisy(),
        sampler=dict(type=sampler, shuffle=True),
        batch_size=3,
        num_workers=0,
        collate_fn=dict(type='pseudo_collate'),
    )
    hooks = dict(
        checkpoint=dict(type='WholeCheckpointHook', interval=1, by_epoch=by_epoch),
        random_streams=dict(type='RandomStreamHook'),
        finite_loss=dict(type='FiniteLossHook'),
    )
    torch.manual_seed(1)  # all start from the same weights
    settings = dict(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=length,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, end=5, by_epoch=False),
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        default_hooks=hooks,
        log_level='WARNING',
    )
    for name, value in changes.items():
        target, *path = settings, *name.split('__')
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
    return settings


def validation(**metrics: list[float]) -> dict[str, Any]:
    """Return the settings that add a validation to each epoch."""
    loader = dict(
        dataset=Noisy(),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    score = Score(**(metrics or {'toy_acc': [1.0, 2.0, 3.0, 4.0]}))
    return dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=score)


class KillAt(Hook):
    """Kill the process after some iterations."""

    priority = 'LOWEST'

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def train(settings: dict, **arguments: Any) -> None:
    """Train, from the checkpoint ``load_from`` on if there is one."""
    Runner(**settings, **arguments).train()


def in_child(function: Callable[..., None], *args: Any, **kwargs: Any) -> int:
    """Call a function in a forked process; return the exit code."""
    process = multiprocessing.get_context('fork').Process(
        target=_with_one_thread, args=(function, args, kwargs)
    )
    process.start()
    process.join()
    return process.exitcode or 0


def _with_one_thread(function: Callable[..., None], args: tuple, kwargs: dict) -> None:
    torch.set_num_threads(1)  # a forked process has lost the others
    function(*args, **kwargs)
