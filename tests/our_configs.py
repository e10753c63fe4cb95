# SPDX-License-Identifier: Apache-2.0
"""Our configs, the index of their models, and the models without memory."""

import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from tests.paths import CONFIGS, ROOT

# By the folder in configs/, or in projects/.
CODEBASES = {
    'classification': 'mmpretrain',
    'detection': 'mmdet',
    'segmentation': 'mmseg',
    'bdd100k': 'mmdet',
    'cityscapes': 'mmseg',
    'coco_o': 'mmdet',
    'coco_stuff10k': 'mmseg',
    'crowd_human': 'mmdet',
    'inaturalist2018': 'mmpretrain',
    'lvis': 'mmdet',
    'mapillary': 'mmseg',
    'nyu_depth_v2': 'mmseg',
    'openimages': 'mmdet',
    'pascal_context': 'mmseg',
    'places': 'mmpretrain',
    'voc': 'mmdet',
}

METAFILES = [
    *sorted(CONFIGS.glob('*/metafile.yml')),
    *sorted(ROOT.glob('projects/*/metafile.yml')),
]
# The quickstart's configs are of no published model.
LEAVES = [
    path
    for metafile in METAFILES
    for path in sorted(
        (
            metafile.parent
            if CONFIGS in metafile.parents
            else metafile.parent / 'configs'
        ).glob('*.py')
    )
]


@cache
def index() -> dict[str, dict]:
    """Return all models of the index by name; names must be unique."""
    models = [
        model
        for path in METAFILES
        for model in yaml.safe_load(path.read_text())['Models']
    ]
    by_name = {model['Name']: model for model in models}
    assert len(by_name) == len(models)
    return by_name


def published_config(model: dict) -> str | None:
    """Return the path of a model's published config, None if it has none."""
    origin = model.get('Converted From')
    return re.fullmatch(r'.*/blob/\w+/(.*)', origin['Code'])[1] if origin else None


def codebase_of(path: Path) -> str:
    """Return the package whose registries a config is for."""
    folder = path.parent
    return CODEBASES[folder.parent.name if folder.name == 'configs' else folder.name]


@cache
def read_config(path: str | Path, import_custom_modules: bool = True) -> Config:
    """Read a config, or skip the test where its codebase is not installed.

    Each is read once for all tests, so none may change what it gets.

    Args:
        path: In the checkout, or absolute.
        import_custom_modules: As of ``Config.fromfile``.
    """
    path = ROOT / path
    pytest.importorskip(codebase_of(path))
    return Config.fromfile(path, import_custom_modules=import_custom_modules)


def build_on_meta(settings: dict, scope: str | None = None) -> nn.Module:
    """Build a module without memory for its parameters.

    Args:
        settings: Of the module; built is a copy, as some models change them.
        scope: Whose modules are meant, such as 'mmdet'; None where the settings say so.
    """
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
        return MODELS.build(ConfigDict(deepcopy(settings)))
