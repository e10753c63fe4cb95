# SPDX-License-Identifier: Apache-2.0
"""Our detectors compute what the published ones do, from the published weights.

The models are those of the configs, with a smaller backbone; DINO with 20 queries.
"""

import json
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from internimage.checkpoint import convert_published
from tests.golden import assert_matches_golden, fill_value, golden_input
from tests.paths import DATA, ROOT

DetDataSample = pytest.importorskip('mmdet.structures').DetDataSample
DetInferencer = pytest.importorskip('mmdet.apis').DetInferencer
InstanceData = pytest.importorskip('mmengine.structures').InstanceData

CONFIGS = ROOT / 'configs' / 'detection'
GOLDEN = np.load(DATA / 'detectors.npz')
CASES = {case['case']: case for case in json.loads(str(GOLDEN['cases']))}
OURS = {
    'mask_rcnn': 'mask-rcnn_internimage-t_fpn_1x_coco',
    'cascade_mask_rcnn': 'cascade-mask-rcnn_internimage-l_fpn_ms-crop-3x_coco',
    'dino': 'dino-4scale_internimage-t_8xb2-layer-decay-12e_coco',
    'cb_dino': 'dino-4scale_cb-internimage-h_16xb1-20k_o365-to-coco',
}
SMALL = {'channels': 8, 'depths': (1, 1, 1, 1), 'groups': (1, 2, 4, 8)}


def read_config(name: str, arch: dict, **changes) -> Config:
    """Read a config and give its model another backbone."""
    config = Config.fromfile(CONFIGS / f'{OURS[name]}.py')
    model = config.model
    model.backbone.update(arch=arch, init_cfg=None)
    levels = model.backbone.get('out_indices', (0, 1, 2, 3))
    if name == 'cb_dino':
        levels = (1, 2, 3)
    model.neck.in_channels = [arch['channels'] * 2**level for level in levels]
    model.update(changes)
    return config


def build(name: str, arch: dict, **changes) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(read_config(name, arch, **changes).model)


def build_dino(name: str, arch: dict, **changes) -> nn.Module:
    return build(name, arch, num_queries=20, **changes)


def published(name: str) -> dict[str, Tensor]:
    """Return the weights that a golden case was made with."""
    return {
        key: torch.from_numpy(fill_value(key, shape))
        for key, shape in CASES[f'detector/{name}']['keys']
    }


def golden_image(name: str) -> Tensor:
    case = CASES[f'detector/{name}']
    return golden_input(case['input_tag'], case['input_shape'])


def assert_golden(name: str, **outputs: Tensor) -> None:
    for output, value in outputs.items():
        assert_matches_golden(value, GOLDEN, f'detector/{name}/{output}')


def enumerated(name: str, values) -> dict[str, Tensor]:
    return {f'{name}{index}': value for index, value in enumerate(values)}


@pytest.mark.parametrize('name', ['mask_rcnn', 'cascade_mask_rcnn'])
@torch.no_grad()
def test_two_stage_outputs_are_the_published_ones(name: str):
    model = build(name, CASES[f'detector/{name}']['arch']).eval()
    model.load_state_dict(convert_published(published(name)))
    features = model.extract_feat(golden_image(name))
    scores, deltas = model.rpn_head(features)
    assert_golden(
        name,
        **enumerated('neck', features),
        **enumerated('rpn_cls', scores),
        **enumerated('rpn_reg', deltas),
    )
    bbox_heads, mask_heads = model.roi_head.bbox_head, model.roi_head.mask_head
    if name == 'mask_rcnn':
        bbox_heads, mask_heads = [bbox_heads], [mask_heads]
    assert len(bbox_heads) == len(mask_heads) == (1 if name == 'mask_rcnn' else 3)
    regions = golden_input(f'{name}/roi', (3, 256, 7, 7))
    outputs = [head(regions) for head in bbox_heads]
    regions = golden_input(f'{name}/mask_roi', (3, 256, 14, 14))
    masks = [head(regions) for head in mask_heads]
    for stage, ((scores, deltas), mask) in enumerate(zip(outputs, masks, strict=True)):
        assert_golden(
            name,
            **{
                f'bbox_head{stage}_cls': scores,
                f'bbox_head{stage}_reg': deltas,
                f'mask_head{stage}': mask,
            },
        )


@pytest.mark.parametrize('name', ['dino', 'cb_dino'])
@torch.no_grad()
def test_dino_outputs_are_the_published_ones(name: str):
    model = build_dino(name, CASES[f'detector/{name}']['arch']).eval()
    model.load_state_dict(convert_published(published(name)))
    image = golden_image(name)
    size = tuple(image.shape[2:])
    sample = DetDataSample(metainfo={'img_shape': size, 'batch_input_shape': size})
    features = model.extract_feat(image)
    scores, boxes = model.bbox_head(**model.forward_transformer(features, [sample]))
    assert_golden(name, **enumerated('neck', features))
    assert_golden(name, cls_scores=scores[-1], bbox_preds=boxes[-1])


@pytest.mark.parametrize('name', ['dino', 'cb_dino'])
def test_published_dino_file_is_loaded_as_it_is(name: str, tmp_path: Path):
    file = str(tmp_path / 'published.pth')
    meta = {'epoch': 12, 'CLASSES': ('person', 'bicycle')}  # as mmdet 2 wrote it
    torch.save({'state_dict': published(name), 'meta': meta}, file)
    expected = convert_published(published(name))
    config = read_config(name, CASES[f'detector/{name}']['arch'], num_queries=20)

    with DefaultScope.overwrite_default_scope('mmdet'):
        runner = Runner(deepcopy(config.model), str(tmp_path), load_from=file)
        runner.load_or_resume()  # as `mim train` and `mim test` do
    assert_state_dict(runner.model, expected)

    resize = config.test_dataloader.dataset.pipeline[1]
    resize.scale = (96, 64)
    with DefaultScope.overwrite_default_scope('mmdet'):
        inferencer = DetInferencer(config, file, 'cpu', show_progress=False)
        (result,) = inferencer(np.zeros((50, 70, 3), np.uint8))['predictions']
    assert_state_dict(inferencer.model, expected)
    # The queries' number times the classes', of which the best are kept.
    assert len(result['bboxes']) == config.model.test_cfg.max_per_img


def assert_state_dict(model: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)


def samples(sizes: list[tuple[int, int]]) -> list:
    """Return annotations of images, with one, two, ... boxes."""
    batch_shape = tuple(np.max(sizes, axis=0).tolist())
    result = []
    for number, (height, width) in enumerate(sizes, 1):
        corner = torch.arange(number)[:, None] * torch.tensor([5.0, 3.0])
        size = torch.tensor([width / 2, height / 3])
        sample = DetDataSample(
            metainfo={
                'img_shape': (height, width),
                'batch_input_shape': batch_shape,
                'ori_shape': (height, width),
                'scale_factor': (1.0, 1.0),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + size], dim=1),
            labels=torch.arange(number) * 7,
        )
        result.append(sample)
    return result


def small_cb_dino(**changes) -> nn.Module:
    torch.manual_seed(0)
    # The config denoises 1000 queries, which takes a minute.
    denoising = dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=20),
    )
    model = build_dino('cb_dino', SMALL, dn_cfg=denoising, **changes)
    model.init_weights()
    return model


def test_composite_dino_trains_both_branches():
    model = small_cb_dino().train()
    losses = model.loss(torch.randn(2, 3, 64, 96), samples([(64, 96), (48, 80)]))
    assert all(loss.isfinite() for loss in losses.values())
    # Classes, boxes and overlaps, of six layers each matched and denoised, and of the
    # encoder's proposals.
    per_branch = 3 * (6 + 6 + 1)
    for branch in ('cb0.', 'cb1.'):
        assert sum(name.startswith(branch) for name in losses) == per_branch
    assert len(losses) == 2 * per_branch
    sum(loss for name, loss in losses.items() if 'loss' in name).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name


def test_composite_dino_weights_the_first_branch_by_half():
    model = small_cb_dino().train()
    head = model.bbox_head
    batch = samples([(64, 96), (48, 80)])
    with torch.no_grad():
        branches = model.extract_feat(torch.randn(2, 3, 64, 96))
        # Both halves of the batch alike, so that only the factor tells them apart.
        features = tuple(level.repeat(2, 1, 1, 1) for level in branches[1])
        inputs = model.forward_transformer(features, batch * 2)
        num_denoising = inputs['dn_meta']['num_denoising_queries']
        for key in ('hidden_states', 'references'):
            halves = [value.chunk(2, dim=-3)[0] for value in inputs[key]]
            inputs[key] = [torch.cat([half, half], dim=-3) for half in halves]
        inputs['hidden_states'] = torch.stack(inputs['hidden_states'])
        losses = head.loss(**inputs, batch_data_samples=batch * 2)
    assert num_denoising > 0
    for name, loss in losses.items():
        if name.startswith('cb0.'):
            torch.testing.assert_close(2 * loss, losses['cb1.' + name[4:]])


def test_composite_dino_is_tested_on_the_second_branch():
    model = small_cb_dino().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        branches = model.backbone(image)
        expected = super(type(model.neck), model.neck).forward(branches[1])
        features = model.extract_feat(image)
        for actual, level in zip(features, expected, strict=True):
            assert torch.equal(actual, level)
        (result,) = model.predict(image, samples([(64, 96)]))
    assert len(result.pred_instances) == 300


# What each published rule leaves trainable among these, written out by hand.
PROBES = [
    'backbone.cb_modules.0.patch_embed.conv1.weight',
    'backbone.cb_modules.0.levels.0.blocks.0.mlp.fc1.weight',
    'backbone.cb_modules.0.levels.1.blocks.0.mlp.fc1.weight',
    'backbone.cb_modules.0.levels.2.blocks.0.mlp.fc1.weight',
    'backbone.cb_modules.0.levels.3.blocks.0.mlp.fc1.weight',
    'backbone.cb_modules.1.levels.0.blocks.0.mlp.fc1.weight',
    'backbone.cb_modules.1.levels.1.blocks.0.mlp.fc1.weight',
    'backbone.cb_modules.1.levels.2.blocks.0.mlp.fc1.weight',
    'backbone.cb_modules.1.levels.3.blocks.0.mlp.fc1.weight',
    'backbone.cb_modules.1.gamma2',
    'backbone.cb_linears.0.1.weight',
    'neck.convs.0.conv.weight',
    'encoder.layers.0.ffn.layers.1.weight',
    'decoder.layers.0.ffn.layers.1.weight',
    'bbox_head.cls_branches.0.weight',
]
TRAINABLE = {
    None: '11111 1111 11 1111',
    'freeze_backbone': '00000 0000 00 1111',
    'freeze_backbone_encoder': '00000 0000 00 1011',
    'freeze_backbone_neck': '00000 0000 00 0111',
    'freeze_backbone_expect_level_4': '00000 0001 00 1111',
    'freeze_backbone_expect_level_3_4': '00000 0011 00 1111',
    'freeze_backbone_expect_0_level_1_2_3': '01000 1000 00 1111',
    'freeze_cb_first_backbone': '00000 1111 11 1111',
    'freeze_cb_first_backbone_expect_level_4': '00001 1111 11 1111',
    'freeze_stage_1': '00111 0111 11 1111',
    'freeze_stage_1_2': '00011 0011 11 1111',
}


@pytest.mark.parametrize('rule', TRAINABLE)
def test_rule_freezes_what_the_published_one_does(rule: str | None):
    with torch.device('meta'):
        model = build_dino('cb_dino', SMALL, rule=rule)
    parameters = dict(model.named_parameters())
    trainable = ''.join(str(int(parameters[name].requires_grad)) for name in PROBES)
    assert trainable == TRAINABLE[rule].replace(' ', '')


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=re.escape("got 'freeze_everything'")):
        build_dino('cb_dino', SMALL, rule='freeze_everything')
