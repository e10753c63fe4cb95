# SPDX-License-Identifier: Apache-2.0
"""Detectors whose second stage, or whose layers, do not run on the meta device."""

import copy

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from internimage import InternImage

pytest.importorskip('mmdet')
complexity = pytest.importorskip('internimage.complexity')

ARCH = dict(channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8))
SHAPE = (96, 128)
NUM_BOXES = 6
FAMILIES = {
    'sparse_rcnn': 'sparse-rcnn_r50_fpn_1x_coco',
    'queryinst': 'queryinst_r50_fpn_1x_coco',
    'condinst': 'condinst_r50_fpn_ms-poly-90k_coco_instance',
    'tood': 'tood_r50_fpn_1x_coco',
    'double_heads': 'dh-faster-rcnn_r50_fpn_1x_coco',
    'ms_rcnn': 'ms-rcnn_r50-caffe_fpn_1x_coco',
    'soft_teacher': 'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
}


def read(family: str, name: str) -> ConfigDict:
    """Read a model of mmdet, on a small InternImage, with few boxes and steps."""
    config = Config.fromstring(f"_base_ = 'mmdet::{family}/{name}.py'", '.py')
    model = config.model
    detector = model.get('detector', model)
    levels = tuple(detector.backbone.out_indices)
    detector.backbone = dict(type='InternImage', arch=ARCH, out_indices=levels)
    detector.neck.in_channels = [8 << level for level in levels]
    limit(detector.test_cfg)
    if isinstance(detector.get('roi_head', {}).get('bbox_head'), list):
        detector.roi_head.num_stages = 2
        for name, value in detector.roi_head.items():
            if isinstance(value, list):
                detector.roi_head[name] = value[:2]
        detector.rpn_head.num_proposals = NUM_BOXES
    return model


def limit(cfg: ConfigDict) -> None:
    for key, value in cfg.items():
        if isinstance(value, dict):
            limit(value)
        elif key in ('max_per_img', 'nms_pre'):
            cfg[key] = NUM_BOXES


def count(config: ConfigDict) -> complexity.Complexity:
    """Count as tools/get_flops.py does."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        with torch.device('meta'):
            model = MODELS.build(copy.deepcopy(config))
        try:
            return complexity.count_complexity(model, SHAPE)
        except complexity.NeedsValuesError:
            return complexity.count_complexity(MODELS.build(config), SHAPE)


class OnlyBackbone(InternImage):
    """As a model of mmpretrain."""

    def forward(self, inputs, data_samples, mode):
        return super().forward(inputs)


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_is_counted(family):
    config = read(family, FAMILIES[family])
    result = count(config)
    alone = complexity.count_complexity(OnlyBackbone(ARCH), SHAPE)
    assert result.sampling == alone.sampling > 0
    assert min(result.flops, result.multiply_adds) > 2 * alone.flops


def test_a_second_stage_counts_as_on_the_meta_device(monkeypatch):
    config = read('mask_rcnn', 'mask-rcnn_r50_fpn_1x_coco')
    expected = count(config)
    monkeypatch.setattr(complexity, '_depends_on_boxes', lambda model: True)
    assert count(config) == expected


def test_boxes_from_a_file_are_refused():
    config = read('fast_rcnn', 'fast-rcnn_r50_fpn_1x_coco')
    with pytest.raises(ValueError, match='FastRCNN: expected a detector with an RPN'):
        count(config)


@pytest.mark.parametrize('in_channels', [1, 4])
def test_images_of_other_channels(in_channels):
    pytest.importorskip('mmpretrain')
    backbone = dict(type='InternImage', arch=ARCH, in_channels=in_channels)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model: nn.Module = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=backbone,
                head=dict(type='LinearClsHead', num_classes=3, in_channels=64),
                neck=dict(type='GlobalAveragePooling'),
            )
        )
    flops = complexity.count_complexity(model, (32, 32)).flops
    model.backbone.patch_embed.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    model.backbone.in_channels = 3
    assert flops == complexity.count_complexity(model, (32, 32)).flops + (
        (in_channels - 3) * 4 * 9 * 16 * 16
    )
