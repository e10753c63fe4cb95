# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged, or no checkpoints at all; to be imported for its effect."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
from functools import partial

import numpy as np
import torch
from PIL import Image

from .hostile_files import (
    KINDS,
    STREAM_START,
    WEIGHT,
    add,
    archive,
    dumps,
    kind,
    saved,
    stream,
    tensor,
)

GOOD = {'state_dict': {WEIGHT: tensor()}}
RECORD = struct.pack('4f', 1, 2, 3, 4)


def flip(content: bytes, position: int, bit: int = 1) -> bytes:
    changed = bytearray(content)
    changed[position] ^= bit
    return bytes(changed)


@kind('zip: a bit of the weights')
def _() -> bytes:
    content = saved(GOOD)
    return flip(content, content.index(RECORD) + 5)


@kind('zip: a bit of the pickle')
def _() -> bytes:
    content = saved(GOOD)
    return flip(content, content.index(WEIGHT.encode()))


@kind('zip: a bit of the directory')
def _() -> bytes:
    content = saved(GOOD)
    return flip(content, content.rindex(b'archive/data/0'))


@kind('zip: the same name twice')
def _() -> bytes:
    content = saved(GOOD, **{'data/1': RECORD})
    return content.replace(b'archive/data/1', b'archive/data/0')


@kind('zip: records in one place')
def _() -> bytes:
    # Two directory entries for the same megabyte.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        file.writestr('archive/data.pkl', dumps(GOOD))
        file.writestr('archive/data/0', bytes(2**20))
        first = file.getinfo('archive/data/0')
        for number in range(1, 50):
            info = zipfile.ZipInfo(f'archive/data/{number}')
            for name in ('CRC', 'compress_size', 'file_size', 'header_offset'):
                setattr(info, name, getattr(first, name))
            file.filelist.append(info)
    return buffer.getvalue()


@kind('zip: a bomb')
def _() -> bytes:
    big = {'data/0': bytes(2**24)}
    return archive(dumps(GOOD), zipfile.ZIP_DEFLATED, **big)


@kind('zip: encrypted')
def _() -> bytes:
    content = saved(GOOD)
    flagged = flip(content, content.index(b'PK\x03\x04') + 6)
    return flip(flagged, flagged.index(b'PK\x01\x02') + 8)


add(
    'zip',
    lambda records: archive(dumps(GOOD), **records),
    {
        'another byte order': {'byteorder': b'big'},
        'a program': {'constants.pkl': b''},
        'a short record': {'data/0': RECORD[:-1]},
        'an empty record': {'data/0': b''},
    },
)
for length in (1, 3, 30, 100, -1, -30):
    KINDS[f'zip: cut at {length}'] = partial(lambda n: saved(GOOD)[:n], length)
KINDS['zip: of something else'] = lambda: archive(b'')[:0] + other_zip('a.txt')
KINDS['zip: two checkpoints'] = lambda: other_zip('a/data.pkl', 'b/data.pkl')
KINDS['zip: at the top'] = lambda: other_zip('data.pkl')
for length in (10, 40, 200, -1, -16, -24):
    KINDS[f'stream: cut at {length}'] = partial(lambda n: stream(GOOD)[:n], length)
KINDS['stream: other keys'] = lambda: stream(GOOD, ('0', '1'))
KINDS['stream: keys of lists'] = lambda: stream(GOOD, ([],))
KINDS['stream: another version'] = lambda: b''.join(
    map(dumps, (STREAM_START[0], 7, {}, {}, []))
)
KINDS['stream: another byte order'] = lambda: b''.join(
    map(dumps, (*STREAM_START[:2], {'little_endian': False}, {}, []))
)


def other_zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name in names:
            file.writestr(name, dumps({}))
    return buffer.getvalue()


def safetensors(
    header: bytes, data: bytes = RECORD, length: int | None = None
) -> bytes:
    return struct.pack('<Q', len(header) if length is None else length) + header + data


ENTRY = {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}
NAN = struct.pack('4f', 1, 2, 3, float('nan'))
for name, content in {
    'cut': safetensors(json.dumps({WEIGHT: ENTRY}).encode(), RECORD[:-1]),
    'no header': safetensors(b'{"a": '),
    'an endless header': safetensors(b'{}', length=2**47),
    'a deep header': safetensors(b'{"a":' * 5000 + b'}' * 5000),
    'beyond its end': safetensors(
        json.dumps({'a': {**ENTRY, 'data_offsets': [0, 2**40]}}).encode()
    ),
    'of 2^45': safetensors(json.dumps({'a': {**ENTRY, 'shape': [2**45]}}).encode()),
    'two in one place': safetensors(json.dumps({'a': ENTRY, 'b': ENTRY}).encode()),
    'the same name twice': safetensors(
        f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}'.encode()
    ),
    'an unknown dtype': safetensors(
        json.dumps({'a': {**ENTRY, 'dtype': 'Q'}}).encode()
    ),
    'not a number': safetensors(json.dumps({WEIGHT: ENTRY}).encode(), NAN),
    'long': safetensors(
        json.dumps({WEIGHT: {**ENTRY, 'dtype': 'I64', 'shape': [2]}}).encode()
    ),
    'metadata that are no JSON': safetensors(
        json.dumps({'__metadata__': {'meta': '{'}, 'a': ENTRY}).encode()
    ),
}.items():
    KINDS[f'safetensors: {name}'] = partial(bytes, content)


def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (3, 2)).save(buffer, form)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as file:
        file.addfile(tarfile.TarInfo('x.pth'))
    return buffer.getvalue()


def numpy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def torch_script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), buffer)
    return buffer.getvalue()


# What each is called in the refusal.
FOREIGN = {
    'an HTML page': b'<!DOCTYPE html>\n<html><body>404</body></html>',
    'an XML or HTML document': b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code>',
    'a JSON text': b'{"message": "Not Found"}',
    'a text': b'Not Found',
    'an empty file': b'',
    'nothing but zeros': bytes(4096),
    'a pointer of git-lfs': b'version https://git-lfs.github.com/spec/v1\noid sha256:0',
    'a PNG picture': picture('PNG'),
    'a JPEG picture': picture('JPEG'),
    'a WebP picture': picture('WEBP'),
    'a gzip archive': gzip.compress(saved(GOOD)),
    'a bzip2 archive': bz2.compress(saved(GOOD)),
    'an xz archive': lzma.compress(saved(GOOD)),
    'a 7z archive': b"7z\xbc\xaf'\x1c\0\4" + bytes(range(24)),
    'a tar archive': tar(),
    'a zip archive that torch.save': other_zip('readme.txt'),
    'a NumPy array': numpy(),
    'an HDF5 file': b'\x89HDF\r\n\x1a\n' + bytes(40),
    'an ONNX model': b'\x08\x0a\x12\x07pytorch\x1a\x052.3.0:\x10' + bytes(8),
    'a pickle that torch.save': dumps({'a': 1}),
    'a file of an unknown format': bytes(range(256)),
}
for name, content in FOREIGN.items():
    KINDS[f'foreign: {name}'] = partial(bytes, content)
KINDS['foreign: TorchScript'] = torch_script
