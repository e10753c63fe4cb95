# SPDX-License-Identifier: Apache-2.0
"""Imports the published code from a folder of its repository, where somebody has it.

The folder is ``ops_dcnv3`` of OpenGVLab/InternImage, below ``classification``,
``detection`` or ``segmentation``. It imports a compiled ``DCNv3`` and the version of
its distribution at once. Where they are missing, empty modules of those names stand in
during the import: the path in plain PyTorch needs neither.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

#: Their package has our package's name, so it is imported under another one.
_PACKAGE = 'published_ops_dcnv3'


def load_core(folder: Path | None) -> Any:
    """Return ``dcnv3_core_pytorch``, from a folder or from Python's search path.

    Raises:
        ImportError: It is not there.
    """
    if folder is not None:
        return _load(folder, 'functions.dcnv3_func').dcnv3_core_pytorch
    with _stand_ins():
        for name in ('functions.dcnv3_func', 'dcnv3_func'):
            try:
                return importlib.import_module(name).dcnv3_core_pytorch
            except ModuleNotFoundError as error:
                if error.name not in ('functions', name):
                    raise
    raise ImportError('no module functions.dcnv3_func or dcnv3_func')


def load_layer(folder: Path | None, device: torch.device) -> type[nn.Module]:
    """Return their layer: the compiled one on CUDA, else that in plain PyTorch.

    Raises:
        ImportError: It is not there.
    """
    if folder is None:
        raise ImportError('--published <folder> gives it')
    return getattr(_load(folder, 'modules'), _layer_name(device))


def build_backbone(
    folder: Path | None, device: torch.device, settings: dict[str, Any]
) -> nn.Module:
    """Build their classification backbone, from ``models`` beside the folder.

    Args:
        folder: ``classification/ops_dcnv3``.
        device: On CUDA it takes their compiled operator, else plain PyTorch.
        settings: As in ``InternImage.arch_settings``; names are the same.

    Raises:
        ImportError: It is not there.
    """
    load_layer(folder, device)
    assert folder is not None
    path = folder.resolve().parent / 'models' / 'intern_image.py'
    if not path.is_file():
        raise ImportError('only classification/ops_dcnv3 has a backbone beside it')
    names = {'ops_dcnv3': _PACKAGE, 'ops_dcnv3.modules': f'{_PACKAGE}.modules'}
    theirs = {name: sys.modules[other] for name, other in names.items()}
    spec = importlib.util.spec_from_file_location('published_intern_image', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _stand_ins(), _replaced(theirs):
        spec.loader.exec_module(module)
    with redirect_stdout(None):  # it prints its settings
        return module.InternImage(_layer_name(device), drop_path_rate=0, **settings)


def _layer_name(device: torch.device) -> str:
    if device.type != 'cuda':
        return 'DCNv3_pytorch'
    importlib.import_module('DCNv3')  # its functions are called, so it must be real
    return 'DCNv3'


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return '1.0'  # without the argument remove_center


def _load(folder: Path, name: str) -> ModuleType:
    if not (folder / 'functions' / 'dcnv3_func.py').is_file():
        raise ImportError(f'no functions/dcnv3_func.py in {folder}')
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(folder.resolve())]
        sys.modules[_PACKAGE] = package
    with _stand_ins():
        return importlib.import_module(f'{_PACKAGE}.{name}')


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Give the published code something for each import that it cannot have."""
    pkg_resources = ModuleType('pkg_resources')  # the real one fails without DCNv3
    pkg_resources.get_distribution = (  # type: ignore[attr-defined]
        lambda name: SimpleNamespace(version=_version(name))
    )
    modules = {'pkg_resources': pkg_resources}
    if not _is_importable('DCNv3'):
        modules['DCNv3'] = ModuleType('DCNv3')
    if not _is_importable('timm.models.layers'):
        # What timm called timm.layers at that time.
        layers = ModuleType('timm.models.layers')
        layers.DropPath = nn.Identity  # type: ignore[attr-defined]
        layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
        modules[layers.__name__] = layers
    with _replaced(modules):
        yield


def _is_importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


@contextmanager
def _replaced(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Let imports find other modules under these names, in this context."""
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in kept.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
