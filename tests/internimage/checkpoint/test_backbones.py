# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import nn

from internimage import InternImage
from internimage.checkpoint import (
    backbone_state_dict,
    backbones,
    conversion,
    convert_loaded,
    convert_published,
)
from tests.golden import fill, read_json
from tests.internimage.checkpoint.layouts import (
    SMALL,
    classification,
    data_parallel,
    detection,
    every_layout,
    hugging_face,
    others,
    small,
    weights,
)
from tests.paths import CONFIGS

ZOO = read_json('zoo_backbones.json.gz')
IMAGE = torch.randn(1, 3, 40, 70, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('config', ZOO['other_keys'])
def test_backbone_of_every_published_model(config):
    shapes = next(e['shapes'] for e in ZOO['backbones'] if config in e['configs'])
    prefix = '' if config.startswith('classification/') else 'backbone.'
    backbone = {prefix + name: torch.empty(0) for name in shapes}
    rest = {name: torch.empty(0) for name in ZOO['other_keys'][config]}
    part, left_out = backbone_state_dict({**rest, **backbone})
    assert list(part) == list(shapes)
    converted = convert_published({**rest, **backbone})
    assert left_out == [n for n in converted if not n.startswith('backbone.')]


@every_layout
def test_backbone_of_every_layout(layout):
    expected = weights()
    backbone, left_out = backbone_state_dict(layout(expected))
    torch.testing.assert_close(backbone, dict(expected))
    names = {name.split('.')[0] for name in left_out}
    assert names <= {'head', 'neck', 'rpn_head'}
    assert bool(names) == (layout is not dict)


def test_several_backbones():
    student, teacher = weights(), others('patch_embed.conv1.weight', 'levels.0.x')
    both = {
        **{f'student.backbone.{name}': value for name, value in student.items()},
        **{f'teacher.backbone.{name}': value for name, value in teacher.items()},
        'levels.0.unrelated': torch.zeros(1),
    }
    with pytest.raises(ValueError, match=r"got 2; .*'student\.backbone\.', 'teacher"):
        backbone_state_dict(both)
    for prefix in ('student.backbone', 'student.backbone.'):
        backbone, left_out = backbone_state_dict(both, prefix)
        assert list(backbone) == list(student)
        assert len(left_out) == 3
    with pytest.raises(ValueError, match=r"none at prefix 'model'.*student\.\* \("):
        backbone_state_dict(both, 'model')
    with pytest.raises(ValueError, match='none at prefix'):
        backbone_state_dict(both, '')


@pytest.fixture
def messages(monkeypatch):
    logged = []
    for module in (backbones, conversion):
        monkeypatch.setattr(
            module, 'print_log', lambda message, **_: logged.append(message)
        )
    return logged


def load(model: InternImage, path, content, **kwargs) -> InternImage:
    """Load through ``init_cfg``, as part of a model, the way the runner does."""
    torch.save(content, path)
    model.init_cfg = dict(type='Pretrained', checkpoint=str(path), **kwargs)
    detector = BaseModule()
    detector.backbone = model
    detector.init_weights()
    return model


@every_layout
def test_pretrained_loads_every_layout(layout, tmp_path, messages):
    source = fill(small()).eval()
    model = load(small(), tmp_path / 'x.pth', layout(source.state_dict())).eval()
    torch.testing.assert_close(model(IMAGE), source(IMAGE))
    assert model.is_init
    *conversion, message = messages
    assert message.startswith(f'{tmp_path}/x.pth: loaded the {len(weights())} tensors')
    assert bool(conversion) == (layout not in (detection, dict))
    if layout is classification:
        assert message.endswith('; left out neck.* (2), head.* (1)')
    if layout is dict:
        assert 'left out' not in message


def test_pretrained_takes_a_prefix(tmp_path, messages):
    expected = weights()
    both = {f'{name}.{k}': v for name in 'ab' for k, v in expected.items()}
    model = load(small(), tmp_path / 'x.pth', both, prefix='a')
    torch.testing.assert_close(model.state_dict(), expected)
    assert f'left out b.* ({len(expected)})' in messages[0]


def test_a_neutral_layer_scale_may_be_absent(tmp_path, messages):
    source = fill(small(layer_scale=None)).eval()
    content = classification(source.state_dict())
    model = load(small(), tmp_path / 'x.pth', content).eval()
    torch.testing.assert_close(model(IMAGE), source(IMAGE))
    assert messages[-1].endswith('not in the file, kept at 1: 14 layer scales (gamma)')

    with pytest.raises(ValueError, match=r'14 not in the file: .*blocks\.0\.gamma1'):
        load(small(layer_scale=1e-5), tmp_path / 'x.pth', content)


def test_a_trained_layer_scale_may_not_be_dropped(tmp_path):
    with pytest.raises(ValueError, match=r'layer_scale.*14 not in the model: .*gamma1'):
        load(small(layer_scale=None), tmp_path / 'x.pth', detection(weights()))


def test_another_architecture_is_refused(tmp_path):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    content = weights(channels=12, depths=(1, 2, 2, 1), post_norm=True)
    with pytest.raises(ValueError, match='check its arch') as error:
        load(model, tmp_path / 'x.pth', content)
    message = str(error.value)
    assert message.startswith(f'{tmp_path}/x.pth: expected the backbone of this model')
    assert 'patch_embed.conv1.weight: file (6, 3, 3, 3), model (3, 3, 3, 3)' in message
    assert 'not in the file: levels.0.norm.0.weight' in message
    assert 'in all)' in message
    torch.testing.assert_close(dict(model.state_dict()), before)


def test_a_file_without_backbone_is_refused(tmp_path):
    content = {'state_dict': others('fc.weight', 'fc.bias', 'layer1.0.conv1.weight')}
    with pytest.raises(ValueError, match=r'none anywhere.*fc\.\* \(2\), layer1\.\* \('):
        load(small(), tmp_path / 'x.pth', content)


def test_half_precision_weights(tmp_path, messages):
    content = {name: value.half() for name, value in weights().items()}
    model = load(small(), tmp_path / 'x.pth', content)
    assert all(param.dtype == torch.float32 for param in model.parameters())


@pytest.mark.parametrize('layout', [classification, hugging_face, data_parallel])
def test_loading_converts_published_files(layout, tmp_path, messages):
    source = layout(weights())
    torch.save(source, tmp_path / 'x.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))
    expected = convert_published(source)
    assert list(loaded['state_dict']) == list(expected)
    torch.testing.assert_close(loaded['state_dict'], expected)
    beside = {'model_ema': {}, 'epoch': 3} if layout is classification else {}
    assert {k: v for k, v in loaded.items() if k != 'state_dict'} == {
        'meta': {},
        **beside,
    }
    count = len(expected)
    assert messages == [
        'checkpoint: a published InternImage, converted: '
        f'{count} of {count} tensors renamed'
    ]
    assert convert_loaded(loaded) is loaded


def test_loading_finds_weights_in_any_wrapper(messages):
    inner = detection(weights())['state_dict']
    loaded = convert_loaded({'module': inner, 'step': 7})
    assert list(loaded) == ['meta', 'step', 'state_dict']
    assert list(loaded['state_dict']) == list(inner)
    assert messages[0].endswith(f': 0 of {len(inner)} tensors renamed')
    nested = convert_loaded({'state_dict': {'model': inner}, 'meta': {'epoch': 12}})
    assert list(nested) == ['meta', 'state_dict']
    assert list(nested['state_dict']) == list(inner)


def test_loading_wraps_a_bare_model_for_ema(messages):
    """As a converted safetensors file holds it; a backbone alone stays as it is."""
    inner = detection(weights())['state_dict']
    loaded = convert_loaded(inner)
    assert loaded == {'state_dict': inner, 'meta': {}}
    assert loaded['state_dict'] is inner
    averaged = nn.Module()
    averaged.backbone = small()
    hook = EMAHook()
    hook.ema_model = SimpleNamespace(module=averaged)
    hook.after_load_checkpoint(SimpleNamespace(_resume=False), loaded)
    for name, value in averaged.state_dict().items():
        assert torch.equal(value, inner[name]), name
    assert not messages


@pytest.mark.parametrize(
    'content',
    [
        [torch.zeros(1)],
        torch.zeros(1),
        {},
        {'state_dict': {}},
        {'state_dict': others('layer1.0.conv1.weight', 'fc.weight'), 'epoch': 3},
        {'model': others('patch_embed.conv1.weight', 'levels.0.x', 'head.weight')},
        {0: torch.zeros(1), 'model': {1: torch.zeros(1)}},
        weights(),
        detection(weights()),
        {'meta': {'mmengine_version': '0.10.12'}, **hugging_face(weights())},
        {**classification(weights())['model'], 'extra': 'no tensor'},
    ],
    ids=[
        'list',
        'tensor',
        'nothing',
        'no weights',
        'another model',
        'a similar model',
        'other keys',
        'backbone',
        'detector',
        'mmengine',
        'more than tensors',
    ],
)
def test_loading_leaves_other_files_alone(content, messages):
    before = repr(content)
    assert convert_loaded(content) is content
    assert repr(content) == before
    assert not messages


def test_published_detector_goes_into_the_inferencer(tmp_path):
    inferencers = pytest.importorskip('mmdet.apis')
    config = Config.fromfile(
        CONFIGS / 'detection' / 'mask-rcnn_internimage-t_fpn_1x_coco.py'
    )
    config.merge_from_dict(
        {
            'model.backbone.init_cfg': None,
            'model.backbone.arch': dict(SMALL, _delete_=True),
            'model.neck.in_channels': [6, 12, 24, 48],
            'model.roi_head.bbox_head.fc_out_channels': 8,
        }
    )
    # Building the inferencer sets the default scope, for good.
    with DefaultScope.overwrite_default_scope('mmdet'):
        expected = fill(MODELS.build(config.model)).state_dict()
        torch.save({'module': expected}, tmp_path / 'x.pth')
        inferencer = inferencers.DetInferencer(config, str(tmp_path / 'x.pth'), 'cpu')
    torch.testing.assert_close(inferencer.model.state_dict(), expected)
