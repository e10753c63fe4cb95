# SPDX-License-Identifier: Apache-2.0
"""``mim train`` and ``mim test`` on a small data set, from another folder."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.fileio import load

from tests.paths import ROOT
from tests.tools.small_models import MASK_RCNN, as_arguments

CONFIG = ROOT / 'configs' / 'detection' / 'mask-rcnn_internimage-t_fpn_1x_coco.py'
NUM_IMAGES = 4

SMALL = as_arguments({**MASK_RCNN, 'train_cfg.max_epochs': 1})


def write_coco(folder: Path) -> None:
    """Write grey images with one bright rectangle each, as COCO has its images."""
    names = pytest.importorskip('mmdet.datasets').CocoDataset.METAINFO['classes']
    rng = np.random.default_rng(0)
    (folder / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(1, NUM_IMAGES + 1):
            image = rng.integers(0, 99, (60, 80, 3), dtype=np.uint8)
            x, y = (int(v) for v in rng.integers(2, 20, 2))
            image[y : y + 36, x : x + 48] = 255
            cv2.imwrite(str(folder / split / f'{number}.png'), image)
            size = {'height': 60, 'width': 80}
            images.append({'id': number, 'file_name': f'{number}.png', **size})
            corners = [x, y, x + 48, y, x + 48, y + 36, x, y + 36]
            annotations.append(
                {
                    'id': number,
                    'image_id': number,
                    'category_id': number,
                    'bbox': [x, y, 48, 36],
                    'area': 48 * 36,
                    'iscrowd': 0,
                    'segmentation': [corners],
                }
            )
        content = {
            'images': images,
            'annotations': annotations,
            'categories': [{'id': i, 'name': n} for i, n in enumerate(names, 1)],
        }
        file = folder / 'annotations' / f'instances_{split}.json'
        file.write_text(json.dumps(content))


def run(verb: str, *arguments: str, cwd: Path) -> str:
    """Run ``mim <verb> internimage``, or where that is not installed what it runs."""
    try:
        metadata.distribution('internimage')
    except metadata.PackageNotFoundError:
        arguments = tuple(a for a in arguments if a != '--checkpoint')
        command = [str(ROOT / 'tools' / f'{verb}.py'), *arguments]
    else:
        command = ['-m', 'mim', verb, 'internimage', *arguments]
    paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'OMP_NUM_THREADS': '1',  # more threads lose time on so small a model
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with COCO in ``data`` and one epoch of training in ``out``."""
    folder = tmp_path_factory.mktemp('coco')
    write_coco(folder / 'data' / 'coco')
    run('train', str(CONFIG), '--work-dir', 'out', '--cfg-options', *SMALL, cwd=folder)
    return folder


@pytest.mark.slow
def test_train_then_test(trained: Path):
    output = run(
        'test',
        str(CONFIG),
        '--checkpoint',
        'out/epoch_1.pth',
        *['--work-dir', 'tested', '--out', 'predictions.pkl', '--show-dir', 'drawn'],
        *['--cfg-options', *SMALL],
        cwd=trained,
    )
    assert 'coco/bbox_mAP: ' in output
    assert 'coco/segm_mAP: ' in output
    assert len(load(trained / 'predictions.pkl')) == NUM_IMAGES
    assert len(list((trained / 'tested').glob('*/drawn/*.png'))) == NUM_IMAGES


@pytest.mark.slow
def test_inferencer_takes_the_result(trained: Path):
    inferencer = pytest.importorskip('mmdet.apis').DetInferencer(
        model=str(trained / 'out' / CONFIG.name),
        weights=str(trained / 'out' / 'epoch_1.pth'),
        device='cpu',
        show_progress=False,
    )
    (prediction,) = inferencer(np.zeros((60, 80, 3), np.uint8))['predictions']
    assert len(prediction['bboxes']) == len(prediction['masks']) > 0
