# SPDX-License-Identifier: Apache-2.0
"""Images of other than three channels, and weights that were made for three."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from internimage import CBInternImage, InternImage
from internimage.checkpoint import backbones
from tests.golden import fill

SMALL = {'channels': 6, 'depths': (1, 2, 1, 1), 'groups': (1, 2, 3, 6)}
FIRST = 'patch_embed.conv1.weight'
COUNTS = [1, 2, 3, 4, 13]


@pytest.fixture
def file(tmp_path):
    """Return the path of weights for three channels."""
    path = tmp_path / 'three.pth'
    torch.save({'model': fill(InternImage(SMALL)).state_dict()}, path)
    return str(path)


def load(file, in_channels, kind='InternImage', **kwargs):
    init_cfg = dict(type='Pretrained', checkpoint=file, **kwargs)
    config = dict(type=kind, arch=SMALL, in_channels=in_channels, init_cfg=init_cfg)
    model = MODELS.build(ConfigDict(config))
    model.init_weights()
    return model.eval()


@pytest.mark.parametrize('in_channels', COUNTS)
@pytest.mark.parametrize('kind', [InternImage, CBInternImage])
def test_any_number_of_channels(kind, in_channels):
    model = kind(SMALL, in_channels=in_channels)
    model.init_weights()
    outputs = model(torch.randn(1, in_channels, 33, 45))
    if kind is CBInternImage:
        model, (_, outputs) = model.cb_modules[0], outputs
    assert outputs[-1].shape == (1, 48, 2, 2)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    usual = {
        name: value.shape for name, value in InternImage(SMALL).state_dict().items()
    }
    assert shapes == {**usual, FIRST: (3, in_channels, 3, 3)}


@pytest.mark.parametrize('in_channels', [count for count in COUNTS if count != 3])
def test_weights_for_three_channels_are_refused_with_the_remedy(in_channels, file):
    message = (
        f'three.pth: .*adapt_in_channels=True in init_cfg takes it from 3 to '
        rf'{in_channels} channels .*model \(3, {in_channels}, 3, 3\)'
    )
    with pytest.raises(ValueError, match=message):
        load(file, in_channels)


@pytest.mark.parametrize('kind', ['InternImage', 'CBInternImage'])
@pytest.mark.parametrize('in_channels', COUNTS)
def test_weights_for_three_channels_fit_when_asked(
    kind, in_channels, file, monkeypatch
):
    logged = []
    monkeypatch.setattr(backbones, 'print_log', lambda text, **_: logged.append(text))
    model = load(file, in_channels, kind, adapt_in_channels=True)
    model = model.cb_modules[0] if kind == 'CBInternImage' else model
    source = fill(InternImage(SMALL)).state_dict()
    weight = source[FIRST]
    expected = {
        1: weight.sum(dim=1, keepdim=True),
        2: weight[:, :2] * (3 / 2),
        3: weight,
        4: weight[:, [0, 1, 2, 0]] * (3 / 4),
        13: weight[:, [0, 1, 2] * 4 + [0]] * (3 / 13),
    }
    torch.testing.assert_close(
        dict(model.state_dict()), {**source, FIRST: expected[in_channels]}
    )
    told = f'adapted from 3 to {in_channels} channels' in logged[0]
    assert told == (in_channels != 3)


def test_gray_gives_what_gray_in_three_channels_gives(file):
    image = torch.randn(1, 1, 40, 33)
    gray = load(file, 1, adapt_in_channels=True)(image)
    colour = load(file, 3)(image.expand(1, 3, 40, 33))
    torch.testing.assert_close(gray, colour, rtol=1e-4, atol=1e-5)


def test_weights_of_any_number_of_channels_fit(tmp_path):
    """Also those of a model of ours for two, in half precision, for colours."""
    source = fill(InternImage(SMALL, in_channels=2)).half().state_dict()
    torch.save(source, tmp_path / 'two.pth')
    first = load(str(tmp_path / 'two.pth'), 3, adapt_in_channels=True).patch_embed.conv1
    expected = (source[FIRST][:, [0, 1, 0]].float() * (2 / 3)).half()
    assert torch.equal(first.weight, expected.float())


def test_another_architecture_stays_refused(file):
    config = dict(checkpoint=file, adapt_in_channels=True)
    with pytest.raises(ValueError, match=r'check its arch.*different shape'):
        backbones.load_pretrained(InternImage(dict(SMALL, channels=12)), **config)
    with pytest.raises(TypeError, match='adapt_in_channels: expected a bool, got 1'):
        load(file, 1, adapt_in_channels=1)
