# SPDX-License-Identifier: Apache-2.0
"""Read checkpoints without running code from them.

A pickle can call any function while it is read. mmengine 0.10 asks ``torch.load`` to
refuse that (``weights_only=True``), but (a) reads the file again with no limits if it
is refused, and (b) allows the file to call ``getattr``, through which a pickle reaches
``exec`` without being refused. So opening somebody's checkpoint runs their code.

:func:`register_safe_loaders` replaces mmengine's loaders, for the whole process: a
checkpoint is opened in many places (``load_from``, ``resume``, ``init_cfg`` of any
module), and a limit that holds in some of them protects nobody. Files saved by
mmengine's runner still load.
"""

import io
import os
import pickle
import re
from collections.abc import Callable
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    _get_mmengine_home,
    _process_mmcls_checkpoint,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)


def _get_statistics_method(owner: Any, name: str) -> Any:
    """Stand in for ``getattr`` in a pickled ``HistoryBuffer``.

    The buffer carries its four methods by this route. The real ``getattr`` would lead
    from them to ``builtins``.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'GLOBAL getattr asks for {name!r} of {owner!r}')


def _allowed_globals() -> list[Any]:
    """List what a checkpoint may name beside PyTorch's own: a runner's history.

    The message hub in a runner's checkpoint keeps logged numbers as NumPy arrays and
    scalars. NumPy 2 moved the functions that rebuild them; files of both ages exist.
    """
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    allowed = [
        HistoryBuffer,
        (_get_statistics_method, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        # The types of bool, of all integers and of all real floating-point dtypes.
        *{type(np.dtype(code)) for code in '?bhilqBHILQefd'},
    ]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed.append((reconstruct, f'{module}._reconstruct'))
        allowed.append((scalar, f'{module}.scalar'))
    return allowed


def load_checkpoint_file(
    file: str | PathLike | BinaryIO, map_location: Any = 'cpu'
) -> Any:
    """Read a checkpoint of tensors and plain data.

    Args:
        file: Path, or an open binary file in PyTorch's format. A path that ends in
            ``.safetensors`` is read by the safetensors package.
        map_location: As for ``torch.load``; a safetensors file knows devices only.

    Returns:
        What was saved: of a safetensors file, a dict of tensors.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: A safetensors file, and the package is missing.
        UnpicklingError: The file holds other Python objects, or is no checkpoint.
        RuntimeError: The file is damaged or cannot be read.
    """
    if not isinstance(file, (str, PathLike)):
        return _torch_load(file, map_location, str(file))
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint: no such file: {path}')
    if path.suffix == '.safetensors':
        return _safetensors_load(path, map_location)
    return _torch_load(path, map_location, str(path))


def _safetensors_load(path: Path, map_location: Any) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{path}: install safetensors to read this file') from error
    is_device = isinstance(map_location, (str, torch.device))
    return load_file(path, device=str(map_location) if is_device else 'cpu')


def _torch_load(file: Path | BinaryIO, map_location: Any, name: str) -> Any:
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r'GLOBAL (\S+)', str(error))
        if culprit is None:
            raise pickle.UnpicklingError(
                f'{name}: expected a PyTorch checkpoint of tensors and plain data, got '
                f'something else: {str(error).splitlines()[-1]}'
            ) from error
        raise pickle.UnpicklingError(
            f'{name}: not loaded, because reading it could run code from the file: it '
            f'asks for the Python object {culprit[1]!r}, and only tensors and plain '
            'data are safe. If you know where the file comes from and trust it, write '
            f'a clean one: torch.save(torch.load({name!r}, weights_only=False)'
            "['state_dict'], 'clean.pth')"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise RuntimeError(f'{name}: could not be read: {error}') from error


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a local file; see :func:`load_checkpoint_file`."""
    return load_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Read a file at a URL, downloaded once to PyTorch's hub folder, by rank 0."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(urlparse(filename).path).name
    rank, _ = get_dist_info()
    if rank == 0:
        _download(filename, path)
    barrier()
    # On another machine, rank 0's file may be out of reach.
    _download(filename, path)
    return load_checkpoint_file(path, map_location)


def _download(url: str, path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=os.isatty(0))


def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """Read an object of a petrel store."""
    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    return load_checkpoint_file(io.BytesIO(backend.get(filename)), map_location)


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Read torchvision's weights of a name."""
    return load_from_http(get_torchvision_models()[_name(filename)], map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """Read OpenMMLab's weights of a name."""
    name = get_deprecated_model_names().get(_name(filename), _name(filename))
    url = get_external_models()[name]
    if urlparse(url).scheme in ('http', 'https'):
        return load_from_http(url, map_location)
    return load_from_local(os.path.join(_get_mmengine_home(), url), map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """Read the backbone of MMClassification's weights of a name."""
    url = get_mmcls_models()[_name(filename)]
    return _process_mmcls_checkpoint(load_from_http(url, map_location))


def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """Refuse: this store has no loader that only reads."""
    raise NotImplementedError(
        f'{filename}: no safe loader for pavi://; download it and give the local path'
    )


def _name(filename: str) -> str:
    return filename.split('://', 1)[1]


def register_safe_loaders(finish: Callable[[Any], Any]) -> None:
    """Put the loaders above in the place of all of mmengine's, for the process.

    Args:
        finish: Gets what a loader has read, and returns what mmengine gets.
    """
    for prefixes, loader in (
        ('', load_from_local),
        (('http://', 'https://'), load_from_http),
        ((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_ceph),
        (('modelzoo://', 'torchvision://'), load_from_torchvision),
        (('open-mmlab://', 'openmmlab://'), load_from_openmmlab),
        ('mmcls://', load_from_mmcls),
        ('pavi://', load_from_pavi),
    ):
        CheckpointLoader.register_scheme(
            prefixes, _followed_by(finish, loader), force=True
        )


def _followed_by(finish: Callable[[Any], Any], loader: Callable) -> Callable:
    @wraps(loader)  # mmengine logs the name of a loader
    def load(filename: str, map_location: Any = None) -> Any:
        return finish(loader(filename, map_location))

    return load
