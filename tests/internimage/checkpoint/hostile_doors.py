# SPDX-License-Identifier: Apache-2.0
"""Drive files through the doors by which a checkpoint comes in; a program of its own.

It writes a line of JSON for each file and door, before (so that a crash is known by
what stands last) and after: ``python hostile_doors.py FOLDER DOOR...``.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

from internimage import InternImage
from internimage.checkpoint import load_checkpoint_file, load_pretrained
from tests.paths import ROOT

SMALL = {'channels': 6, 'depths': [1, 1], 'groups': [1, 2]}
BACKBONE = dict(type='InternImage', arch=SMALL, out_indices=(0, 1))


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = InternImage(SMALL, (1,))
        self.head = nn.Linear(12, 1)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.head.weight.sum() * sum(inputs).sum()}


@cache
def runner() -> Runner:
    runner = Runner(
        model=Model(),
        work_dir='work_dir',
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=[{'inputs': torch.ones(1)}] * 2,
            sampler=dict(type='DefaultSampler'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='EMAHook')],
        experiment_name='hostile',
    )
    runner.train()
    return runner


def resume(path: str) -> None:
    runner()._resume = True
    runner().resume(path)


def load_from(path: str) -> None:
    runner()._resume = False
    runner().load_checkpoint(path)


def convert(path: str) -> None:
    target = Path('converted.pth')
    target.unlink(missing_ok=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            _tool()([path, str(target)])
    except SystemExit:
        raise ValueError(said.getvalue().splitlines()[-1]) from None


@cache
def _tool() -> Callable:
    return runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'))['main']


@cache
def detector() -> Config:
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(
                type='FCOS',
                data_preprocessor=dict(type='DetDataPreprocessor'),
                backbone=BACKBONE,
                neck=dict(type='FPN', in_channels=[6, 12], out_channels=4, num_outs=2),
                bbox_head=dict(
                    type='FCOSHead',
                    num_classes=3,
                    in_channels=4,
                    feat_channels=4,
                    stacked_convs=1,
                    strides=(4, 8),
                    regress_ranges=((-1, 64), (64, 1e8)),
                    norm_cfg=None,
                ),
                test_cfg=dict(nms=dict(type='nms', iou_threshold=0.5)),
            ),
            test_dataloader=dict(
                dataset=dict(
                    type='CocoDataset',
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='PackDetInputs'),
                    ],
                )
            ),
        )
    )


@cache
def segmentor() -> Config:
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor'),
                backbone=BACKBONE,
                decode_head=dict(
                    type='FCNHead', in_channels=12, channels=4, num_classes=3
                ),
                test_cfg=dict(mode='whole'),
            ),
        )
    )


@cache
def classifier() -> Config:
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(BACKBONE, out_indices=(1,)),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=12),
            ),
        )
    )


def init_detector(path: str) -> nn.Module:
    from mmdet.apis import init_detector

    return init_detector(detector().copy(), path, device='cpu', palette='random')


def init_model(path: str) -> nn.Module:
    from mmseg.apis import init_model

    return init_model(segmentor().copy(), path, device='cpu')


def get_model(path: str) -> nn.Module:
    from mmpretrain import get_model

    return get_model(classifier().copy(), pretrained=path, device='cpu')


def inferencer_without_config(path: str) -> nn.Module:
    from mmdet.apis import DetInferencer

    return DetInferencer(None, path, 'cpu').model


DOORS: dict[str, Callable] = {
    'load_checkpoint_file': load_checkpoint_file,
    'CheckpointLoader': CheckpointLoader.load_checkpoint,
    'load_checkpoint': lambda path: load_checkpoint(Model(), path),
    'load_pretrained': lambda path: load_pretrained(InternImage(SMALL, (1,)), path),
    'init_weights': lambda path: InternImage(
        SMALL, (1,), init_cfg=dict(type='Pretrained', checkpoint=path)
    ).init_weights(),
    'resume': resume,
    'load_from': load_from,
    'convert': convert,
    'init_detector': init_detector,
    'init_model': init_model,
    'get_model': get_model,
    'inferencer_without_config': inferencer_without_config,
}


def main(folder: str, *doors: str) -> None:
    os.chdir(folder)
    for path in sorted(str(path) for path in Path().glob('files/*')):
        for door in doors or DOORS:
            say(path=path, door=door)
            start = time.perf_counter()
            message = kind = None
            try:
                DOORS[door](path)
            except Exception as error:
                message, kind = str(error), type(error).__name__
            say(
                kind=kind,
                message=message,
                seconds=round(time.perf_counter() - start, 2),
                ran=Path('it_ran').exists(),
            )


def say(**result) -> None:
    with open('results.jsonl', 'a') as file:
        file.write(json.dumps(result) + '\n')


if __name__ == '__main__':
    DefaultScope.get_instance('hostile', scope_name='mmengine')
    main(*sys.argv[1:])
