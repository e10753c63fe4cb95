# SPDX-License-Identifier: Apache-2.0
"""The classifiers, as mmpretrain builds and uses them.

``data/classification.npz`` holds logits of four published classifiers, and
``data/zoo_classification.json.gz`` the parameter counts of all eight with the names and
shapes of what surrounds their backbones: see :mod:`tests.golden`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from internimage.architecture import Architecture
from internimage.checkpoint import convert_published
from tests.golden import (
    DATA,
    assert_matches_golden,
    fill,
    fill_value,
    golden_input,
    read_json,
)

mmpretrain = pytest.importorskip('mmpretrain')

import internimage.classification  # noqa: E402, F401  (registers the necks)

BACKBONES = read_json('zoo_backbones.json.gz')['backbones']
ZOO = read_json('zoo_classification.json.gz')
GOLDEN = np.load(DATA / 'classification.npz')
CASES = json.loads(str(GOLDEN['cases']))

SMALL = {'channels': 6, 'depths': (1, 1, 2, 1), 'groups': (1, 2, 3, 6)}
NUM_CLASSES = 5
CONV_POOL = dict(type='ConvPoolNeck', in_channels=48, out_channels=72)
ATTENTION_POOL = dict(
    type='AttentionPoolNeck',
    in_channels=(24, 48),
    embed_dims=32,
    num_heads=4,
    out_channels=20,
)
IMAGE = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))

both_necks = pytest.mark.parametrize(
    'neck', [CONV_POOL, ATTENTION_POOL], ids=lambda neck: neck['type']
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def published_neck(arch: dict, is_projector: bool) -> dict:
    """Return the neck of a published classifier."""
    *_, third, last = Architecture(**arch).level_channels
    if is_projector:
        return dict(type='AttentionPoolNeck', in_channels=(third, last))
    return dict(type='ConvPoolNeck', in_channels=last, out_channels=3 * last // 2)


def model_config(arch: dict, neck: dict, num_classes: int = NUM_CLASSES) -> dict:
    is_projector = neck['type'] == 'AttentionPoolNeck'
    width = neck.get('out_channels', 768)
    return dict(
        type='ImageClassifier',
        backbone=dict(
            type='InternImage', arch=arch, out_indices=(2, 3) if is_projector else (3,)
        ),
        neck=neck,
        head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=width),
    )


def small(neck: dict, **kwargs) -> nn.Module:
    return fill(MODELS.build(dict(model_config(SMALL, neck), **kwargs)))


def published_names(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights by the names of the published code."""
    weights = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix('backbone.').removeprefix('neck.')
        weights[name.replace('head.fc.', 'head.')] = value
    return weights


@pytest.mark.parametrize('config', ZOO, ids=lambda config: Path(config).stem)
def test_every_published_model_has_our_names_and_shapes(config):
    backbone = next(entry for entry in BACKBONES if config in entry['configs'])
    shapes = {**backbone['shapes'], **ZOO[config]['other_shapes']}
    neck = published_neck(backbone['arch'], 'fc_norm.0.weight' in shapes)
    with torch.device('meta'):
        published = {name: torch.empty(shape) for name, shape in shapes.items()}
        model = MODELS.build(model_config(backbone['arch'], neck, 1000))

    converted = convert_published({'model': published, 'epoch': 299})
    expected = {name: value.shape for name, value in converted.items()}
    # What encodes date and place in the iNaturalist model: the project's own head.
    extra = [name for name in expected if name.startswith('head.meta_')]
    assert len(extra) == (28 if 'inaturalist' in config else 0)
    params = ZOO[config]['params'] - sum(expected.pop(name).numel() for name in extra)
    assert {name: v.shape for name, v in model.state_dict().items()} == expected
    assert sum(param.numel() for param in model.parameters()) == params


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['case'].split('/')[1])
def test_matches_published_logits(case):
    neck = published_neck(case['arch'], case['clip_projector'])
    model = MODELS.build(model_config(case['arch'], neck, case['num_classes'])).eval()
    weights = {
        name: torch.from_numpy(fill_value(name, shape)) for name, shape in case['keys']
    }
    model.load_state_dict(convert_published(weights))
    with torch.no_grad():
        logits = model(golden_input(case['input_tag'], case['input_shape']))
    assert_matches_golden(logits, GOLDEN, f'{case["case"]}/logits')


@both_necks
def test_stages_of_features(neck):
    model = small(neck).eval()
    maps = model.extract_feat(IMAGE, stage='backbone')
    sizes = [(24, 6, 4), (48, 3, 2)][-len(model.backbone.out_indices) :]
    assert [x.shape[1:] for x in maps] == sizes
    (pooled,) = model.extract_feat(IMAGE, stage='neck')
    assert pooled.shape == (2, neck['out_channels'])
    features = model.extract_feat(IMAGE, stage='pre_logits')
    assert torch.equal(features, pooled)
    assert torch.equal(model(IMAGE), model.head.fc(features))

    # More maps, for who wants to see them, change no prediction.
    model.backbone.out_indices = (0, 1, 2, 3)
    assert len(model.extract_feat(IMAGE, stage='backbone')) == 4
    assert torch.equal(model.extract_feat(IMAGE, stage='pre_logits'), features)


@both_necks
def test_training_reaches_every_parameter(neck):
    samples = [mmpretrain.structures.DataSample().set_gt_label(i) for i in range(2)]
    model = small(neck).train()
    model(IMAGE, samples, mode='loss')['loss'].backward()
    assert all(param.grad is not None for param in model.parameters())


def class_activation_map(model: nn.Module, *layers: str) -> Tensor:
    """Compute Grad-CAM, from layers whose outputs are ``(N, C, H, W)``."""
    outputs = []
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda *args: outputs.append(args[-1])
        )
    score = model(IMAGE).max(dim=1).values.sum()
    grads = torch.autograd.grad(score, outputs)
    maps = [
        (output * grad.mean(dim=(2, 3), keepdim=True)).sum(dim=1)
        for output, grad in zip(outputs, grads, strict=True)
    ]
    return torch.stack(maps).mean(dim=0)


@pytest.mark.parametrize(
    ('neck', 'layers', 'size'),
    [
        (CONV_POOL, ['neck.conv_head'], (3, 2)),
        (ATTENTION_POOL, ['neck.dcnv3_head_x4', 'neck.dcnv3_head_x3'], (6, 4)),
    ],
    ids=['ConvPoolNeck', 'AttentionPoolNeck'],
)
def test_class_activation_map(neck, layers, size):
    model = small(neck).eval()
    heat = class_activation_map(model, *layers)
    assert heat.shape == (2, *size)
    assert heat.std(dim=(1, 2)).min() > 0
    if neck is CONV_POOL:
        # A linear layer on an average: the mean of the map is the score, save a bias.
        scores, labels = model(IMAGE).max(dim=1)
        expected = (scores - model.head.fc.bias[labels]) / heat[0].numel()
        torch.testing.assert_close(heat.mean(dim=(1, 2)), expected)


@both_necks
def test_gradient_reaches_the_last_norm(neck):
    model = small(neck).eval()
    outputs = []
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.LayerNorm)]
    norms[-1].register_forward_hook(lambda *args: outputs.append(args[-1]))
    (grad,) = torch.autograd.grad(model(IMAGE).max(dim=1).values.sum(), outputs)
    assert grad.shape == (2, 3, 2, 48)  # channels last
    assert grad.isfinite().all()
    assert grad.any()


def test_initial_values():
    neck = MODELS.build(dict(ATTENTION_POOL, embed_dims=64))
    neck.init_weights()
    for name, param in neck.named_parameters():
        if 'dcnv3_head' in name:
            continue  # PyTorch's
        if param.ndim == 2:
            assert param.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            expected = torch.full_like(param, name.endswith('weight'))
            assert torch.equal(param, expected), name


@pytest.mark.parametrize(
    ('neck', 'message'),
    [
        (dict(CONV_POOL, act_layer='Tanh'), "act_layer: expected .* got 'Tanh'"),
        (dict(ATTENTION_POOL, in_channels=(48,)), r'in_channels: .*two maps, got \(48'),
        (dict(ATTENTION_POOL, num_heads=3), r'embed_dims: .*num_heads \(3\), got 32'),
    ],
)
def test_arguments_out_of_range(neck, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(neck)


def test_one_channel_and_one_head():
    neck = dict(ATTENTION_POOL, embed_dims=1, num_heads=1)
    assert MODELS.build(neck).dcnv3_head_x3.out_channels == 1


def test_maps_of_wrong_size():
    model = small(ATTENTION_POOL)
    with pytest.raises(ValueError, match=r'\[\(5, 4\), \(3, 2\)\].*multiples of 32'):
        model(IMAGE[:, :, :80])
    model.backbone.out_indices = (3,)
    with pytest.raises(ValueError, match=r'\[\(3, 2\)\]; use out_indices=\(2, 3\)'):
        model(IMAGE)


@pytest.fixture(params=[CONV_POOL, ATTENTION_POOL], ids=lambda neck: neck['type'])
def published(request, tmp_path):
    """A config file, a file in the published layout, and the model of both."""
    model = small(request.param).eval()
    config = Config(
        dict(
            default_scope='mmpretrain',
            custom_imports=dict(
                imports=['internimage.classification'], allow_failed_imports=False
            ),
            model=model_config(SMALL, request.param),
            data_preprocessor=dict(mean=[0] * 3, std=[255] * 3, to_rgb=True),
            test_dataloader=dict(
                dataset=dict(
                    type='CustomDataset',
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='Resize', scale=(64, 96)),
                        dict(type='PackInputs'),
                    ],
                )
            ),
        )
    )
    config.dump(tmp_path / 'config.py')
    weights = tmp_path / 'published.pth'
    torch.save({'model': published_names(model), 'model_ema': {}, 'epoch': 3}, weights)
    return str(tmp_path / 'config.py'), str(weights), model


def test_published_file_through_get_model(published):
    config, weights, expected = published
    model = mmpretrain.get_model(config, pretrained=weights)
    torch.testing.assert_close(model(IMAGE), expected(IMAGE))


def test_published_file_through_inferencers(published):
    config, weights, expected = published
    image = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    inferencer = mmpretrain.ImageClassificationInferencer(config, pretrained=weights)
    # The file names no classes; these are anybody's.
    inferencer.classes = list('abcde')
    (result,) = inferencer(image)
    scores = expected(rgb).softmax(dim=1)[0].detach().numpy()
    np.testing.assert_allclose(result['pred_scores'], scores, rtol=1e-4)
    assert result['pred_label'] == scores.argmax()

    extractor = mmpretrain.FeatureExtractor(
        config, pretrained=weights, backbone=dict(out_indices=(0, 1, 2, 3))
    )
    for stage in ('backbone', 'neck', 'pre_logits'):
        (features,) = extractor(image, stage=stage)
        wanted = expected.extract_feat(rgb, stage=stage)
        if stage == 'pre_logits':
            features, wanted = [features], [wanted]
        torch.testing.assert_close(features[-1], wanted[-1][0])


def test_published_file_through_the_runner(published, tmp_path):
    config, weights, expected = published
    config = Config.fromfile(config)
    runner = Runner(
        model=config.model,
        work_dir=str(tmp_path),
        load_from=weights,
        default_scope='mmpretrain',
        experiment_name=tmp_path.name,
    )
    runner.load_or_resume()
    torch.testing.assert_close(runner.model.eval()(IMAGE), expected(IMAGE))


def test_published_file_through_init_cfg(published):
    config, weights, expected = published
    model = MODELS.build(dict(Config.fromfile(config).model, pretrained=weights))
    model.init_weights()
    torch.testing.assert_close(model.eval()(IMAGE), expected(IMAGE))
