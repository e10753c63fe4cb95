# SPDX-License-Identifier: Apache-2.0
"""The two kinds of files that ``torch.save`` has written: zip, and before 1.6 a stream.

Both hold a pickle, and beside it the bytes of the storages that the pickle mentions.
Of a zip archive, the checksums of all that is read are compared.
"""

import io
import sys
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from . import plain_data, tensors
from .pickles import Call, Pairs, Stored, read_pickle
from .rebuilding import Rebuilder, RefusedError
from .tensors import storage_of

ZIP_START = b'PK\x03\x04'
# A pickle of PyTorch's number for its own files.
STREAM_START = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'

_CHUNK = 2**20  # bytes

# Gets a storage and the name of the device that it was on; returns where it shall be.
Placer = Callable[[torch.UntypedStorage, str], torch.UntypedStorage]


class DamagedError(ValueError):
    """The file is not as it was written."""


def read_zip(file: BinaryIO, place: Placer) -> Any:
    """Read an archive that ``torch.save`` wrote.

    Raises:
        DamagedError: Records are missing, cut off or changed.
        RefusedError: It holds something else than a checkpoint.
        BadPickleError: See there.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _Archive(archive, file.seek(0, io.SEEK_END)).content(place)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DamagedError(f'its zip archive is damaged ({error})') from None


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        records = archive.infolist()
        self._records = {record.filename: record for record in records}
        if len(self._records) < len(records):
            raise RefusedError('its zip archive has two records of the same name')
        if sum(record.file_size for record in records) > size:
            raise RefusedError('its zip archive unpacks to more bytes than it has')
        self._folder = self._find_folder()

    def _find_folder(self) -> str:
        """Return what stands before the names of the records."""
        end = '/data.pkl'
        folders = [n[: -len(end)] for n in self._records if n.endswith(end)]
        folders = [folder for folder in folders if '/' not in folder]
        if len(folders) != 1:
            raise RefusedError('it is a zip archive that torch.save did not write')
        if f'{folders[0]}/constants.pkl' in self._records:
            raise RefusedError('it is a TorchScript program, not a checkpoint')
        return folders[0]

    def content(self, place: Placer) -> Any:
        order = 'byteorder'
        if f'{self._folder}/{order}' in self._records:
            written = bytes(self._read(order))
            if written != sys.byteorder.encode():
                raise RefusedError('it was written on a machine of another byte order')
        node = read_pickle(io.BytesIO(bytes(self._read('data.pkl'))))
        storages = {
            key: place(self._read(f'data/{key}', size).untyped_storage(), location)
            for key, (size, location) in _storages(node).items()
        }
        return _rebuild(node, storages)

    def _read(self, name: str, expected: int | None = None) -> Tensor:
        """Read a record, and compare its checksum."""
        record = self._records.get(f'{self._folder}/{name}')
        if record is None:
            raise DamagedError(f'its zip archive has no record {name!r}')
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise RefusedError('its zip archive is compressed or encrypted')
        if expected is not None and record.file_size != expected:
            raise RefusedError(
                f'it claims {expected:,} bytes for the storage {name!r}, and has '
                f'{record.file_size:,}'
            )
        if record.CRC == 0 and record.file_size:
            # torch.serialization.set_crc32_options(False) leaves checksums out.
            del record.CRC
        content = torch.empty(record.file_size, dtype=torch.uint8)
        view = content.numpy().data
        with self._archive.open(record) as stream:
            filled = 0
            while chunk := stream.read(_CHUNK):
                view[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        if filled < len(content):
            raise DamagedError(f'its record {name!r} is cut off')
        return content


def read_stream(file: BinaryIO, place: Placer) -> Any:
    """Read a file as ``torch.save`` wrote it before PyTorch 1.6. It has no checksums.

    Raises:
        DamagedError: It is cut off.
        RefusedError: It holds something else than a checkpoint.
        BadPickleError: See there.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    _, version, system, node, keys = (read_pickle(file) for _ in range(5))
    if version != 1001 or not isinstance(system, Pairs):
        raise RefusedError('it is of a version that PyTorch did not write')
    if dict(_in_twos(system.items)).get('little_endian') != (sys.byteorder == 'little'):
        raise RefusedError('it was written on a machine of another byte order')
    described = _storages(node)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(described):
        raise RefusedError('it lists other storages than it uses')
    storages = {}
    for key in keys:
        size, location = described[key]
        file.seek(8, io.SEEK_CUR)  # the number of elements, which the pickle has too
        if size > end - file.tell():
            raise DamagedError(
                f'it claims {size:,} bytes for a storage, and ends after '
                f'{max(end - file.tell(), 0):,}'
            )
        content = torch.empty(size, dtype=torch.uint8)
        file.readinto(content.numpy().data)  # type: ignore[attr-defined]
        storages[key] = place(content.untyped_storage(), location)
    return _rebuild(node, storages)


def _rebuild(node: Any, storages: dict[str, torch.UntypedStorage]) -> Any:
    makers = {**plain_data.MAKERS, **tensors.MAKERS}
    constants = {**plain_data.ANNEALING, **tensors.DTYPES}
    return Rebuilder(storages, makers, constants).make(node)


def _in_twos(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _storages(node: Any) -> dict[str, tuple[int, str]]:
    """List the storages that a pickle mentions: by key, bytes and device."""
    found: dict[str, tuple[int, str]] = {}
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Stored):
            key, dtype, location, count = storage_of(node)
            description = count * dtype.itemsize, location
            if found.setdefault(key, description) != description:
                raise RefusedError(f'it describes the storage {key!r} in two ways')
        elif isinstance(node, (list, tuple, Pairs, Call)) and id(node) not in seen:
            seen.add(id(node))
            waiting += _parts(node)
    return found


def _parts(node: Any) -> Iterable[Any]:
    if isinstance(node, Pairs):
        return node.items
    if isinstance(node, Call):
        return (node.args, node.state, node.pairs)
    return node
