# SPDX-License-Identifier: Apache-2.0
"""A model says in one line which of its weights a checkpoint did not fill."""

import copy
import logging

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from torch import nn

from internimage import InternImage
from internimage.checkpoint import reporting
from tests.internimage.checkpoint import hostile_doors as doors


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    logged = []

    def log(message, logger, level):
        assert (logger, level) == ('current', logging.WARNING)
        logged.append(message)

    monkeypatch.setattr(reporting, 'print_log', log)
    return logged


DOORS = {
    'load_checkpoint': ('head.', None),
    'load_from': ('head.', None),
    'init_detector': ('bbox_head.conv_cls.', 'mmdet'),
    'init_model': ('decode_head.conv_seg.', 'mmseg'),
    'get_model': ('head.fc.', 'mmpretrain'),
}


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('kind', ['missing', 'misshapen', 'whole'])
def test_every_door_says_what_starts_anew(door, kind, tmp_path, warnings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part, package = DOORS[door]
    if package:
        pytest.importorskip(package)
    weights = model_of(door).state_dict()
    names = [name for name in weights if name.startswith(part)]
    assert len(names) == 2
    if kind == 'missing':
        weights = {k: v for k, v in weights.items() if k not in names}
    elif kind == 'misshapen':
        weights |= {name: torch.zeros(7, *weights[name].shape[1:]) for name in names}
    names_of_classes = dict(classes=('one', 'two'), palette=[(0, 0, 0), (9, 9, 9)])
    meta = {'dataset_meta': names_of_classes}
    torch.save({'state_dict': weights, 'meta': meta}, 'x.pth')
    doors.DOORS[door]('x.pth')
    if kind == 'whole':
        assert not warnings
        return
    # mmengine's EMAHook loads into the average too.
    (line,) = set(warnings)
    assert '\n' not in line
    assert ': 2 weights keep their initial values; 2 ' in line
    assert all(name in line for name in names)
    if kind == 'misshapen':
        assert 'of another shape' in line
        assert f'{part}bias (file (7), model (' in line


def model_of(door: str) -> nn.Module:
    from mmengine.registry import MODELS, DefaultScope

    configs = {
        'init_detector': doors.detector,
        'init_model': doors.segmentor,
        'get_model': doors.classifier,
    }
    if door not in configs:
        return doors.Model()
    config = configs[door]()
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


def test_a_backbone_alone_and_wrapped(tmp_path, warnings):
    backbone = InternImage(doors.SMALL, (1,))
    weights = backbone.state_dict()
    absent = 'levels.1.blocks.0.dcn.mask.bias'
    del weights[absent]
    torch.save(weights, tmp_path / 'x.pth')
    load_checkpoint(backbone, str(tmp_path / 'x.pth'))
    assert len(warnings) == 1
    assert absent in warnings[0]
    model = nn.Sequential(nn.Sequential(InternImage(doors.SMALL, (1,))))
    model.load_state_dict({f'0.0.{k}': v for k, v in weights.items()}, strict=False)
    assert len(warnings) == 2
    assert warnings[1].startswith('Sequential: 1 weights keep')
    assert f'0.0.{absent}' in warnings[1]


def test_copies_report_too(warnings):
    model = copy.deepcopy(doors.Model())
    model.load_state_dict({}, strict=False)
    assert len(warnings) == 1
    average = ExponentialMovingAverage(model)
    average.load_state_dict(average.state_dict())
    assert len(warnings) == 1


def test_integers_are_no_weights(warnings):
    model = doors.Model()
    weights = {k: v.long() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'Model: expected real numbers for \d+ wei'):
        model.load_state_dict(weights)
    model.load_state_dict({k: v.half() for k, v in model.state_dict().items()})


def test_other_models_are_left_alone(warnings):
    nn.Sequential(nn.Linear(2, 1)).load_state_dict({}, strict=False)
    assert not warnings
