# SPDX-License-Identifier: Apache-2.0
"""Read checkpoint files without running code from them.

A pickle can call any function while it is read. Here its calls are only written down
(:mod:`.pickles`), and what a checkpoint needs of them is made by functions of ours
(:mod:`.rebuilding`): tensors, plain data, and what mmengine's runner writes.

``torch.load`` with ``weights_only=True`` is not enough: a file that claims more bytes
than it has makes it read memory beyond them, one of nested tensors makes it follow
any pointer, and what it is allowed to call it calls with any arguments.
"""

import json
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.serialization import default_restore_location

from . import containers, formats
from .pickles import BadPickleError
from .rebuilding import RefusedError, UnknownObjectError
from .weights import check_weights

# What a safetensors file of ours says of its weights, as a JSON text.
SAFETENSORS_META = 'meta'


def load_checkpoint_file(
    file: str | PathLike | BinaryIO,
    map_location: Any = 'cpu',
    *,
    name: str | None = None,
    allow_nonfinite: bool | None = None,
) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain data.

    Args:
        file: Path, or an open binary file; in PyTorch's format or safetensors.
        map_location: As for ``torch.load``; a safetensors file knows devices only.
        name: What to call the file in messages; None for its path.
        allow_nonfinite: Take weights that are infinite or not a number. None to ask
            the environment: ``INTERNIMAGE_ALLOW_NONFINITE=1`` allows them.

    Returns:
        What was saved. Of a safetensors file, a dict of tensors; the same under
        ``state_dict``, and ``meta`` beside it, if the file has both.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: A safetensors file, and the package is missing.
        UnpicklingError: The file holds other Python objects, is no checkpoint, or
            holds weights that no model can have.
        RuntimeError: The file is damaged or cannot be read.
    """
    with ExitStack() as stack:
        if isinstance(file, (str, PathLike)):
            path = Path(file).expanduser()
            name = name or str(path)
            if path.is_dir():
                raise IsADirectoryError(f'{name}: expected a checkpoint, got a folder')
            if not path.exists():
                raise FileNotFoundError(f'checkpoint: no such file: {path}')
            if not path.is_file():  # opening a pipe would wait for who writes to it
                raise RuntimeError(f'{name}: expected a file, got a pipe or a device')
            try:
                file = stack.enter_context(path.open('rb'))
            except OSError as error:
                raise RuntimeError(
                    f'{name}: could not be read: {error.strerror}'
                ) from error
        name = name or str(getattr(file, 'name', file))
        try:
            content = _read(file, map_location, name)
            check_weights(content, allow_nonfinite)
        except UnknownObjectError as error:
            raise pickle.UnpicklingError(_advise(name, error)) from None
        except RefusedError as error:
            raise pickle.UnpicklingError(f'{name}: not loaded: {error}') from None
        except (containers.DamagedError, BadPickleError) as error:
            raise RuntimeError(f'{name}: could not be read: {error}') from None
        except (RuntimeError, EOFError, OSError, MemoryError) as error:
            raise RuntimeError(f'{name}: could not be read: {error}') from error
    return content


@contextmanager
def errors_of(filename: str | PathLike) -> Iterator[None]:
    """Let what is wrong with weights name the file that they are from."""
    try:
        yield
    except ValueError as error:
        reason = str(error).removeprefix('checkpoint: ')
        raise ValueError(f'{filename}: {reason}') from None


def _read(file: BinaryIO, map_location: Any, name: str) -> Any:
    def place(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        return _place(storage, location, map_location)

    head = file.read(formats.HEAD)
    file.seek(0)
    if head.startswith(containers.ZIP_START):
        return containers.read_zip(file, place)
    if head.startswith(containers.STREAM_START):
        return containers.read_stream(file, place)
    if formats.is_safetensors(head):
        return _read_safetensors(file, map_location, name)
    raise RefusedError(
        'expected a PyTorch checkpoint of tensors and plain data, got '
        + formats.describe(head)
    )


def _place(
    storage: torch.UntypedStorage, location: str, map_location: Any
) -> torch.UntypedStorage:
    """Bring a storage from the CPU to where ``torch.load`` would have it."""
    if callable(map_location):
        placed = map_location(storage, location)
        if placed is not None:
            return getattr(placed, 'untyped', lambda: placed)()
    elif isinstance(map_location, dict):
        location = map_location.get(location, location)
    elif map_location is not None:
        location = str(map_location)
    return default_restore_location(storage, str(location))


def _read_safetensors(file: BinaryIO, map_location: Any, name: str) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError(f'{name}: install safetensors to read this file') from error
    content = file.read()
    header = content[8 : 8 + int.from_bytes(content[:8], 'little')]
    try:
        tensors = load(content)
        said = json.loads(header, object_pairs_hook=_once)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise containers.DamagedError(
            f'it is no whole safetensors file ({error})'
        ) from None
    if isinstance(map_location, (str, torch.device)):
        tensors = {key: tensor.to(map_location) for key, tensor in tensors.items()}
    meta = said.get('__metadata__', {}).get(SAFETENSORS_META)
    if meta is None:
        return tensors
    try:
        meta = json.loads(meta)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f'its metadata are no JSON ({error})') from None
    return {'state_dict': tensors, 'meta': meta}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object, every key of which stands there once."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError('two entries of the same name')
    return result


def _advise(name: str, error: UnknownObjectError) -> str:
    if error.path:
        place = 'c' + ''.join(f'[{key!r}]' for key in error.path)
        clean = f"del {place}; torch.save(c, 'clean.pth')"
    else:
        clean = "torch.save(c.state_dict(), 'clean.pth')"
    return (
        f'{name}: not loaded, because reading it could run code from the file: it asks '
        f'for the Python object {error.name!r}, and only tensors and plain data are '
        'safe. If you know where the file comes from and trust it, write a clean one: '
        f'c = torch.load({name!r}, weights_only=False); {clean}'
    )
