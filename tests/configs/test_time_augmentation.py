# SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation of DINO: views of an image, and their boxes put together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor

from tests.our_configs import read_config
from tests.paths import CONFIGS

pytest.importorskip('mmdet')
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample

LEAVES = sorted((CONFIGS / 'detection').glob('dino-*.py'))
BOX = (10, 20, 40, 50)  # x and y of two corners, in an image of 60 x 90


class WhiteFinder(BaseModel):
    """Finds the white rectangle of an image, once as each of two classes."""

    def forward(
        self, inputs: Sequence[Tensor], data_samples: list[DetDataSample], mode: str
    ) -> list[DetDataSample]:
        for image, sample in zip(inputs, data_samples, strict=True):
            y, x = (image[0] > 127).nonzero(as_tuple=True)
            corners = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
            box = corners / torch.tensor(sample.scale_factor).repeat(2)
            sample.pred_instances = InstanceData(
                bboxes=torch.stack([box, box]),
                scores=torch.tensor([0.9, 0.8]),
                labels=torch.tensor([3, 7]),
            )
        return data_samples


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_views_include_the_usual_one(path: Path):
    config = read_config(path)
    resizes, flips, *_ = config.tta_pipeline[1].transforms
    (usual,) = (s for s in config.test_pipeline if s.type == 'Resize')
    assert tuple(usual.scale) in [tuple(resize.scale) for resize in resizes]
    assert [flip.prob for flip in flips] == [0, 1]


@pytest.mark.parametrize('size', ['l_8xb2-layer-decay-12e_coco', 'h_16xb1-20k_o365'])
def test_boxes_of_all_views_are_joined(size: str, tmp_path: Path):
    mmcv = pytest.importorskip('mmcv')
    (path,) = (path for path in LEAVES if f'_internimage-{size}' in path.stem)
    config = read_config(path)
    image = np.zeros((60, 90, 3), np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    mmcv.imwrite(image, str(tmp_path / 'image.png'))

    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose(config.tta_pipeline)
        model = MODELS.build({**config.tta_model, 'module': WhiteFinder()})
    views = pipeline(
        {'img_path': str(tmp_path / 'image.png'), 'img_id': 1, 'instances': []}
    )
    shapes = [tuple(view.shape[1:]) for view in views['inputs']]
    assert len(shapes) == 6
    assert len(set(shapes)) == 3
    (result,) = model.test_step({key: [[v] for v in views[key]] for key in views})[:1]

    found = result.pred_instances
    assert found.labels[:2].tolist() == [3, 7]
    assert found.scores[:2] == pytest.approx([0.9, 0.8])
    for box in found.bboxes[:2]:
        assert box.tolist() == pytest.approx(BOX, abs=0.5)
    assert found.scores[2:].sum() < 0.2  # of 12 boxes in all
