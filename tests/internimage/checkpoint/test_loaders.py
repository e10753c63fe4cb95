# SPDX-License-Identifier: Apache-2.0
import re

import torch
from mmengine.runner import CheckpointLoader

import internimage  # noqa: F401  (registers the loaders)
from internimage.checkpoint import loaders
from tests.paths import ROOT


def test_every_scheme_is_safe():
    for prefix, loader in CheckpointLoader._schemes.items():
        assert loader.__module__ == loaders.__name__, prefix


def test_named_models(tmp_path, monkeypatch):
    torch.save({'backbone.x': torch.ones(2), 'head': torch.ones(1)}, tmp_path / 'a.pth')
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    monkeypatch.setattr(loaders, 'get_external_models', lambda: {'a': 'a.pth'})
    monkeypatch.setattr(loaders, 'get_deprecated_model_names', lambda: {'old': 'a'})
    for name in ('openmmlab://a', 'open-mmlab://old'):
        assert len(CheckpointLoader.load_checkpoint(name)) == 2
    monkeypatch.setattr(loaders, 'load_from_http', loaders.load_from_local)
    monkeypatch.setattr(
        loaders, 'get_mmcls_models', lambda: {'a': str(tmp_path / 'a.pth')}
    )
    loaded = CheckpointLoader.load_checkpoint('mmcls://a')
    assert loaded['state_dict'].keys() == {'x'}


def test_weights_go_where_they_are_wanted(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    torch.save({'x': torch.ones(2)}, path)
    monkeypatch.setattr(loaders, 'download', lambda url: path)
    monkeypatch.setattr(loaders, 'get_torchvision_models', lambda: {'a': 'https://a'})
    models = {'a': 'https://a', 'b': str(path)}
    monkeypatch.setattr(loaders, 'get_external_models', lambda: models)
    monkeypatch.setattr(loaders, 'get_deprecated_model_names', dict)
    names = ('https://x/a.pth', 'torchvision://a', str(path))
    for name in (*names, 'openmmlab://a', 'openmmlab://b'):
        loaded = CheckpointLoader.load_checkpoint(name, map_location='meta')
        assert loaded['x'].device.type == 'meta'


def test_petrel(tmp_path, monkeypatch):
    torch.save({'x': torch.ones(2)}, tmp_path / 'a.pth')

    class Store:
        def get(self, name):
            assert name == 's3://bucket/a.pth'
            return (tmp_path / 'a.pth').read_bytes()

    monkeypatch.setattr(loaders, 'get_file_backend', lambda *_, **__: Store())
    loaded = CheckpointLoader.load_checkpoint('s3://bucket/a.pth')
    assert loaded['x'].tolist() == [1, 1]


def test_configs_import_the_loaders_before_anything_else():
    """A config is protected from the moment that it is read."""
    found = [
        (path, imports)
        for folder in ('configs', 'projects')
        for path in (ROOT / folder).rglob('*.py')
        for imports in re.findall(
            r"^custom_imports\s*=\s*dict\(\s*imports=\[\s*'([\w.]+)'",
            path.read_text(encoding='utf-8'),
            re.MULTILINE,
        )
    ]
    assert len(found) > 5
    for path, first in found:
        assert first.split('.')[0] == 'internimage', path
