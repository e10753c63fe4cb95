# SPDX-License-Identifier: Apache-2.0
"""Read checkpoint files without running code from them.

A pickle can call any function while it is read. Here a file can name tensors, plain
data, and what mmengine's runner writes, and nothing else.
"""

import pickle
import re
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


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
