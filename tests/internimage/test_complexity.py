# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs, against counts by hand and against what really runs.

Published figures are compared in tests/tools/test_get_flops.py.
"""

from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from internimage import InternImage
from ops_dcnv3 import DCNv3, library
from tests.our_configs import build_on_meta

complexity = pytest.importorskip('internimage.complexity')
count_complexity = complexity.count_complexity

ARCH = dict(channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8))
BACKBONE = dict(type='InternImage', arch=ARCH)
SHAPE = (96, 128)
NUM_BOXES = 6
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=BACKBONE,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)
SEGMENTOR = dict(
    type='EncoderDecoder',
    backbone=BACKBONE,
    decode_head=dict(
        type='UPerHead',
        in_channels=[8, 16, 32, 64],
        in_index=[0, 1, 2, 3],
        channels=16,
        num_classes=5,
        norm_cfg=dict(type='SyncBN'),
    ),
    test_cfg=dict(mode='whole'),
)


FAMILIES = {
    'sparse_rcnn': 'sparse-rcnn_r50_fpn_1x_coco',
    'queryinst': 'queryinst_r50_fpn_1x_coco',
    'condinst': 'condinst_r50_fpn_ms-poly-90k_coco_instance',
    'tood': 'tood_r50_fpn_1x_coco',
    'double_heads': 'dh-faster-rcnn_r50_fpn_1x_coco',
    'ms_rcnn': 'ms-rcnn_r50-caffe_fpn_1x_coco',
    'soft_teacher': 'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
}


class OneLayer(nn.Module):
    """A DCNv3 as a model of mmpretrain."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.layer = DCNv3(3, groups=3, **settings)

    def forward(self, inputs: Tensor, data_samples: list, mode: str) -> Tensor:
        assert mode == 'tensor'
        return self.layer(inputs.permute(0, 2, 3, 1))


@pytest.mark.parametrize('compiled', [True, False])
@pytest.mark.parametrize(('remove_center', 'points'), [(False, 9), (True, 8)])
def test_layer_by_hand(
    compiled: bool, remove_center: bool, points: int, monkeypatch: pytest.MonkeyPatch
):
    if not compiled:
        monkeypatch.setattr(library, 'has_kernels_for', lambda device_type: False)
        monkeypatch.setattr(library, 'warn_slow', lambda device_type: None)
    model = OneLayer(stride=(2, 1), remove_center=remove_center)
    model.layer.mask.requires_grad_(False)
    pixels, out_pixels = 5 * 7, 3 * 7
    sampling = 5 * out_pixels * points * 3
    products = (
        pixels * 3 * 3  # input_proj
        + out_pixels * 3 * 9  # dw_conv
        + out_pixels * 3 * (3 * points * 2)  # offset
        + out_pixels * 3 * (3 * points)  # mask
        + out_pixels * 3 * 3  # output_proj
    )
    bias_and_norm = out_pixels * 3 + 2 * out_pixels * 3
    assert count_complexity(model, (5, 7)) == (
        sum(p.numel() for p in model.parameters()),
        products + bias_and_norm + sampling,
        sampling,
        products + sampling,
    )


class ConvAndAttention(nn.Module):
    """A convolution, and an attention whose products no layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 2))
        self.norm = nn.BatchNorm2d(4)
        self.project = nn.Linear(4, 6)
        self.unused = nn.Linear(2, 5)

    def forward(self, inputs: Tensor, data_samples: list, mode: str) -> Tensor:
        x = F.relu(self.norm(self.conv(inputs)))
        x = self.project(x.flatten(2).transpose(1, 2))
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


def test_layers_and_functions_by_hand():
    """Of an image of 5 x 7 the convolution makes 3 x 7 pixels."""
    pixels = 3 * 7
    convolution = pixels * 4 * (3 * 3 * 5)
    projection = pixels * 4 * 6
    attention = 2 * pixels * pixels * 6
    bias, norm = pixels * 4, 2 * pixels * 4
    assert count_complexity(ConvAndAttention(), (5, 7)) == (
        (3 * 3 * 5 * 4 + 4) + 2 * 4 + (4 * 6 + 6) + (2 * 5 + 5),
        convolution + bias + norm + projection,
        0,
        convolution + projection + attention,
    )


def test_model_is_left_as_it_is():
    model = OneLayer(stride=(2, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = count_complexity(model, (5, 7))
    assert count_complexity(model, (5, 7)) == first
    assert model.training
    assert not any(part._forward_hooks for part in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before)


def dino() -> dict:
    config = Config.fromstring(
        "_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'", '.py'
    )
    model = config.model
    model.backbone = dict(BACKBONE, out_indices=(1, 2, 3))
    model.neck.in_channels = [16, 32, 64]
    model.num_queries = 20
    return model


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_meta_tensors_hide_nothing(scope: str):
    """The same as counted while real tensors run."""
    pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        config = {'mmpretrain': CLASSIFIER, 'mmseg': SEGMENTOR}.get(scope) or dino()
        model = MODELS.build(config)
    shape = (64, 96)
    result = count_complexity(model, shape)

    sample = BaseDataElement(metainfo=dict(img_shape=shape, batch_input_shape=shape))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.rand(1, 3, *shape), [sample], mode='tensor')
    assert result.multiply_adds - result.sampling == counter.get_total_flops() // 2
    # The one counts norms and ReLUs too, the other the products of attention.
    assert result.flops == pytest.approx(result.multiply_adds, rel=0.1)
    assert result.parameters == sum(p.numel() for p in model.parameters())


def read(family: str, name: str) -> ConfigDict:
    """Read a model of mmdet, on a small InternImage, with few boxes and steps."""
    pytest.importorskip('mmdet')
    config = Config.fromstring(f"_base_ = 'mmdet::{family}/{name}.py'", '.py')
    model = config.model
    detector = model.get('detector', model)
    levels = tuple(detector.backbone.out_indices)
    detector.backbone = dict(BACKBONE, out_indices=levels)
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
    try:
        return count_complexity(build_on_meta(config, 'mmdet'), SHAPE)
    except complexity.NeedsValuesError:
        with DefaultScope.overwrite_default_scope('mmdet'):
            return count_complexity(MODELS.build(config), SHAPE)


class OnlyBackbone(InternImage):
    """As a model of mmpretrain."""

    def forward(self, inputs, data_samples, mode):
        return super().forward(inputs)


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_is_counted(family):
    config = read(family, FAMILIES[family])
    result = count(config)
    alone = count_complexity(OnlyBackbone(ARCH), SHAPE)
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


def test_boxes_and_masks_by_hand():
    """What each of the boxes costs that a setting allows, and each of the masks."""
    config = read('mask_rcnn', 'mask-rcnn_r50_fpn_1x_coco')
    start = count(config).multiply_adds
    config.test_cfg.rpn.max_per_img += 3
    boxes = count(config).multiply_adds - start
    # Of 7 x 7 pixels to two layers of 1024, then to 81 classes and 80 boxes.
    assert boxes == 3 * (7 * 7 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 80 * 4))
    config.test_cfg.rcnn.max_per_img += 2
    masks = count(config).multiply_adds - start - boxes
    # Four convolutions at 14 x 14, one that doubles the size, then to 80 classes.
    convolutions = 4 * 14 * 14 * 256 * 256 * 3 * 3
    assert masks == 2 * (
        convolutions + 14 * 14 * 256 * 256 * 2 * 2 + 28 * 28 * 256 * 80
    )


def test_one_detector_of_a_semi_supervised_model_is_tested():
    config = read('soft_teacher', FAMILIES['soft_teacher'])
    student = count(config.detector)
    both = count(config)
    assert both.parameters == 2 * student.parameters
    assert both[1:] == student[1:]


def test_what_needs_values_says_so():
    config = read('sparse_rcnn', FAMILIES['sparse_rcnn'])
    message = 'SparseRCNN: expected a model on the CPU.*depends on the boxes'
    with pytest.raises(complexity.NeedsValuesError, match=message):
        count_complexity(build_on_meta(config, 'mmdet'), SHAPE)


def test_auxiliary_head_has_parameters_but_does_not_run():
    pytest.importorskip('mmseg')
    head = dict(type='FCNHead', in_channels=32, channels=6, num_convs=1, num_classes=5)
    alone = build_on_meta(SEGMENTOR, 'mmseg')
    with_head = build_on_meta(dict(SEGMENTOR, auxiliary_head=head), 'mmseg')
    expected, actual = (count_complexity(m, SHAPE) for m in (alone, with_head))
    # A convolution of 3 x 3, one of what came in beside what it made, and the classes.
    added = (32 * 3 * 3 * 6 + 6) + ((32 + 6) * 3 * 3 * 6 + 6) + (6 * 5 + 5)
    assert actual.parameters == expected.parameters + added
    assert actual[1:] == expected[1:]


@pytest.mark.parametrize('in_channels', [1, 4])
def test_images_of_other_channels(in_channels):
    pytest.importorskip('mmpretrain')
    backbone = dict(BACKBONE, in_channels=in_channels)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model: nn.Module = MODELS.build(dict(CLASSIFIER, backbone=backbone))
    flops = count_complexity(model, (32, 32)).flops
    model.backbone.patch_embed.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    model.backbone.in_channels = 3
    assert flops == count_complexity(model, (32, 32)).flops + (
        (in_channels - 3) * 4 * 9 * 16 * 16
    )
