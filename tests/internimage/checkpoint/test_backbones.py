# SPDX-License-Identifier: Apache-2.0
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from internimage import InternImage
from internimage.checkpoint import (
    backbone_state_dict,
    backbones,
    conversion,
    convert_loaded,
    convert_published,
)
from tests.golden import fill, fill_value, read_json
from tests.paths import CONFIGS

ZOO = read_json('zoo_backbones.json.gz')
SMALL = {'channels': 6, 'depths': (1, 2, 3, 1), 'groups': (1, 2, 3, 6)}
IMAGE = torch.randn(1, 3, 40, 70, generator=torch.Generator().manual_seed(0))


def small(**kwargs) -> InternImage:
    return InternImage({**SMALL, 'layer_scale': 1.0, **kwargs})


def weights(**kwargs) -> dict[str, Tensor]:
    return fill(small(**kwargs)).state_dict()


def others(*names: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(fill_value(name, (3,))) for name in names}


def classification(backbone: dict[str, Tensor]) -> dict:
    head = others('conv_head.0.weight', 'conv_head.1.0.running_var', 'head.weight')
    return {'model': {**backbone, **head}, 'model_ema': {}, 'epoch': 3}


def detection(backbone: dict[str, Tensor]) -> dict:
    named = {f'backbone.{name}': value for name, value in backbone.items()}
    heads = others('neck.fpn_convs.0.conv.weight', 'rpn_head.rpn_cls.bias')
    return {'meta': {'epoch': 12}, 'state_dict': OrderedDict(**named, **heads)}


def hugging_face(backbone: dict[str, Tensor]) -> dict:
    named = {
        'model.' + name.replace('gamma', 'layer_scale'): value
        for name, value in backbone.items()
    }
    return {**named, **others('model.head.weight')}


def data_parallel(backbone: dict[str, Tensor]) -> dict:
    inner = classification(backbone)['model']
    return {'module': {f'module.{name}': value for name, value in inner.items()}}


LAYOUTS = {
    layout.__name__: layout
    for layout in (classification, detection, hugging_face, data_parallel, dict)
}
every_layout = pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)


@every_layout
def test_convert_is_pure_idempotent_and_complete(layout):
    source = layout(weights())
    before = repr(source)
    converted = convert_published(source)
    assert repr(source) == before
    again = convert_published(converted)
    assert list(again) == list(converted)
    stack, tensors = [source], []
    while stack:
        for value in stack.pop().values():
            (stack if isinstance(value, dict) else tensors).append(value)
    tensors = [value for value in tensors if isinstance(value, Tensor)]
    assert sorted(map(id, tensors)) == sorted(map(id, converted.values()))


@pytest.mark.parametrize('config', ZOO['other_keys'])
def test_published_names(config):
    entry = next(e for e in ZOO['backbones'] if config in e['configs'])
    is_classifier = config.startswith('classification/')
    prefix = '' if is_classifier else 'backbone.'
    backbone = {prefix + name: torch.empty(0) for name in entry['shapes']}
    rest = {name: torch.empty(0) for name in ZOO['other_keys'][config]}
    converted = convert_published({**backbone, **rest})
    # Detectors of mmdet 2 whose parts have the same names in mmdet 3 stay as they are.
    renamed = [
        name.replace('head.', 'head.fc.')
        if name.startswith('head.')
        else f'neck.{name}'
        for name in rest
    ]
    others = renamed if is_classifier else list(rest)
    assert list(converted) == [f'backbone.{name}' for name in entry['shapes']] + others
    part, left_out = backbone_state_dict({**rest, **backbone})
    assert list(part) == list(entry['shapes'])
    assert left_out == others


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_backbone_alone_stays(prefix):
    content = {prefix + name: value for name, value in weights().items()}
    assert list(convert_published(content)) == list(content)


def test_unknown_parts_of_a_classifier_stay():
    content = {**classification(weights())['model'], **others('ema.decay', 'fc.bias')}
    assert list(convert_published(content))[-2:] == ['ema.decay', 'fc.bias']


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({}, 'expected named tensors.* got nothing'),
        ({'state_dict': {}}, 'got nothing'),
        ({'epoch': 3, 'x': torch.empty(0)}, 'got epoch'),
        ({'optimizer': {'state': {}}}, 'got optimizer'),
        (
            {
                'levels.0.blocks.0.gamma1': torch.empty(0),
                'levels.0.blocks.0.layer_scale1': torch.empty(0),
            },
            r'several tensors for levels\.0\.blocks\.0\.gamma1',
        ),
        (
            {
                'patch_embed.conv1.weight': torch.empty(0),
                'head.weight': torch.empty(0),
                'backbone.patch_embed.conv1.weight': torch.empty(0),
            },
            r'several tensors for backbone\.patch_embed\.conv1\.weight',
        ),
    ],
)
def test_convert_errors(content, message):
    with pytest.raises(ValueError, match=message):
        convert_published(content)


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
