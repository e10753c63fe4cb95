# SPDX-License-Identifier: Apache-2.0
"""The loaders that take the place of mmengine's, for the whole process.

mmengine 0.10 asks ``torch.load`` to run no code (``weights_only=True``), but (a) reads
the file again with no limits if it is refused, (b) allows the file to call
``getattr``, through which a pickle reaches ``exec`` without being refused, and (c) runs
a config that the file holds. So opening somebody's checkpoint runs their code.

A checkpoint is opened in many places (``load_from``, ``resume``, ``init_cfg`` of any
module), and a limit that holds in some of them protects nobody.
"""

import io
import os
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import urlparse

from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    _get_mmengine_home,
    _process_mmcls_checkpoint,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from .downloads import download
from .meta import named_after, without_code
from .reading import errors_of, load_checkpoint_file


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a local file; see :func:`load_checkpoint_file`."""
    return load_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Read a file at a URL, downloaded once to PyTorch's hub folder, by rank 0."""
    return load_checkpoint_file(download(filename), map_location)


def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """Read an object of a petrel store."""
    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    content = io.BytesIO(backend.get(filename))
    return load_checkpoint_file(content, map_location, name=filename)


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

    What mmengine would run or delete files by is taken out of what it gets
    (:func:`.without_code`).

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
        content = without_code(loader(filename, map_location), filename)
        with errors_of(filename):
            return named_after(finish(content), filename)

    return load
