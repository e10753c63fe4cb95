# SPDX-License-Identifier: Apache-2.0
"""UperNet with one image on one device is refused before the model is built."""

import runpy

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from internimage.engine.batch_size import check_batch_size
from tests.paths import ROOT

RECIPE = (
    ROOT / 'configs/segmentation/upernet_internimage-h_16xb1-160k_ade20k-896x896.py'
)
SHARED = dict(channels=4, num_classes=3, norm_cfg=dict(type='BN'))
ONE_LEVEL = dict(SHARED, in_channels=6)
LEVELS = dict(SHARED, in_channels=[6, 12], in_index=[0, 1])
HEADS = {
    'UPerHead': LEVELS,
    'PSPHead': ONE_LEVEL,
    'APCHead': ONE_LEVEL,
    'ASPPHead': ONE_LEVEL,
    'DepthwiseSeparableASPPHead': dict(ONE_LEVEL, c1_in_channels=0, c1_channels=0),
}


def config_of(head: dict, batch_size: int = 1, **kwargs) -> ConfigDict:
    model = dict(type='EncoderDecoder', decode_head=head)
    loader = dict(batch_size=batch_size)
    return ConfigDict(model=model, train_dataloader=loader, **kwargs)


@pytest.mark.parametrize('name', HEADS)
def test_heads_need_two_images(name):
    """And nothing else is said of them than what is so."""
    pytest.importorskip('mmseg')
    settings = dict(HEADS[name], type=name)
    with DefaultScope.overwrite_default_scope('mmseg'):
        head = MODELS.build(settings).train()
    sizes = [(6, 9, 7), (12, 5, 4)] if name == 'UPerHead' else [(6, 9, 7)] * 4
    head([torch.randn(2, *size) for size in sizes])
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        head([torch.randn(1, *size) for size in sizes])
    message = (
        r'^train_dataloader\.batch_size: expected 2 or more, got 1; model\.decode_head '
        rf'\({name}\) pools .* BN has .*batch_size=2, SyncBN on more devices or '
        r'another model\.decode_head\.norm_cfg'
    )
    with pytest.raises(ValueError, match=message):
        check_batch_size(config_of(settings))
    check_batch_size(config_of(settings, batch_size=2))


@pytest.mark.parametrize(
    ('launcher', 'variable', 'number', 'is_refused'),
    [
        ('none', None, None, True),
        ('none', 'WORLD_SIZE', '16', True),
        ('pytorch', 'WORLD_SIZE', '1', True),
        ('pytorch', 'WORLD_SIZE', '16', False),
        ('slurm', 'SLURM_NTASKS', '1', True),
        ('slurm', 'SLURM_NTASKS', '2', False),
        ('slurm', None, None, False),
        ('mpi', 'OMPI_COMM_WORLD_SIZE', '1', True),
        ('mpi', 'OMPI_COMM_WORLD_SIZE', '4', False),
    ],
)
def test_synchronised_norms_see_all_devices(
    launcher, variable, number, is_refused, monkeypatch
):
    for name in ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, number)
    head = dict(LEVELS, type='mmseg.UPerHead', norm_cfg=dict(type='SyncBN'))
    config = config_of(head, launcher=launcher)
    if is_refused:
        with pytest.raises(
            ValueError, match=r'2 or more on one device, got 1; .*SyncBN'
        ):
            check_batch_size(config)
    else:
        check_batch_size(config)


@pytest.mark.parametrize(
    'head',
    [
        dict(type='UPerHead', norm_cfg=dict(type='GN', num_groups=2)),
        dict(type='UPerHead', norm_cfg=None),
        dict(type='UPerHead'),
        dict(type='PSPHead', pool_scales=(2, 3), norm_cfg=dict(type='BN')),
        dict(type='FCNHead', norm_cfg=dict(type='BN')),
        None,
    ],
)
def test_what_needs_no_second_image_passes(head):
    check_batch_size(config_of(head))
    check_batch_size(ConfigDict(model=dict(decode_head=head)))
    check_batch_size(ConfigDict())


def test_a_head_is_found_in_a_list():
    heads = [dict(type='FCNHead'), dict(type='UPerHead', norm_cfg=dict(type='BN'))]
    with pytest.raises(ValueError, match=r'model\.decode_head\.1 \(UPerHead\)'):
        check_batch_size(config_of(heads))


def test_the_recipe_says_it_before_the_model_is_built(monkeypatch, capsys, tmp_path):
    pytest.importorskip('mmseg')
    started = []
    monkeypatch.setattr(Runner, 'from_cfg', lambda config: started.append(config))
    monkeypatch.syspath_prepend(ROOT / 'tools')
    main = runpy.run_path(str(ROOT / 'tools' / 'train.py'))['main']
    with pytest.raises(SystemExit):
        main([str(RECIPE), '--work-dir', str(tmp_path)])
    assert not started
    assert 'batch_size: expected 2 or more on one device' in capsys.readouterr().err
    assert Config.fromfile(RECIPE).model.decode_head.norm_cfg.type == 'SyncBN'
    more = ['--cfg-options', 'train_dataloader.batch_size=2', 'data_check=False']
    with pytest.raises(AttributeError, match='train'):
        main([str(RECIPE), '--work-dir', str(tmp_path), *more])
    assert len(started) == 1
