# SPDX-License-Identifier: Apache-2.0
"""Our configs, and their models without memory."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from tests.paths import ROOT

CODEBASES = {
    'classification': 'mmpretrain',
    'detection': 'mmdet',
    'segmentation': 'mmseg',
}


@cache
def read_config(path: str | Path, import_custom_modules: bool = True) -> Config:
    """Read a config, or skip the test where its codebase is not installed.

    Each is read once for all tests, so none may change what it gets.

    Args:
        path: In the checkout, or absolute.
        import_custom_modules: As of ``Config.fromfile``.
    """
    path = ROOT / path
    pytest.importorskip(CODEBASES[path.parent.name])
    return Config.fromfile(path, import_custom_modules=import_custom_modules)


def build_on_meta(settings: dict, scope: str | None = None) -> nn.Module:
    """Build a module without memory for its parameters.

    Args:
        settings: Of the module; built is a copy, as some models change them.
        scope: Whose modules are meant, such as 'mmdet'; None where the settings say so.
    """
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
        return MODELS.build(ConfigDict(deepcopy(settings)))
