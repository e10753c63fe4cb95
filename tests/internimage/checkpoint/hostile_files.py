# SPDX-License-Identifier: Apache-2.0
"""Files that try to run code, break memory, or are taken for checkpoints.

Every kind is a function that returns the bytes of a file. What one runs creates the
file that :data:`TRACE` names, in the present folder.
"""

import builtins
import importlib
import io
import operator
import os
import pickle
import runpy
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer

TRACE = 'it_ran'
CODE = f"open({TRACE!r}, 'w')"
WEIGHT = 'levels.0.blocks.0.dcn.offset.weight'
STREAM_START = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})

KINDS: dict[str, Callable[[], bytes]] = {}
# These are no harm once they are read: a door may take them.
HARMLESS: set[str] = set()


class Do:
    """Pickles to a call, and to what is done to its result."""

    def __init__(self, function, *args, state=None, items=None) -> None:
        self.reduced = function, args, state, None, items

    def __reduce__(self):
        return self.reduced


class Storage:
    """Pickles to a storage of a file."""

    def __init__(self, *rest: Any, kind: type = torch.FloatStorage) -> None:
        key, location, count, *more = [*rest, *('0', 'cpu', 4)[len(rest) :]]
        self.id = ('storage', kind, key, location, count, *more)


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.id if isinstance(obj, Storage) else None


def dumps(content: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(content)
    return buffer.getvalue()


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, **records) -> bytes:
    """Write what torch.save writes, of a pickle and of storages by key."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as file:
        file.writestr('archive/data.pkl', pickled)
        file.writestr('archive/version', b'3\n')
        records.setdefault('data/0', struct.pack('4f', 1, 2, 3, 4))
        for name, record in records.items():
            file.writestr(f'archive/{name}', record)
    return buffer.getvalue()


def saved(content: Any, **records) -> bytes:
    return archive(dumps(content), **records)


def stream(content: Any, keys: Any = ('0',), data: bytes | None = None) -> bytes:
    """Write what torch.save wrote before version 1.6."""
    parts = [dumps(part) for part in (*STREAM_START, content, list(keys))]
    if data is None:
        data = struct.pack('q4f', 4, 1, 2, 3, 4)
    return b''.join(parts) + data


def tensor(size=(4,), stride=(1,), offset=0, storage=None, **kwargs) -> Do:
    rebuild = kwargs.pop('rebuild', torch._utils._rebuild_tensor_v2)
    more = kwargs.pop('more', (False, OrderedDict()))
    return Do(rebuild, storage or Storage(), offset, size, stride, *more)


def kind(name: str, harmless: bool = False) -> Callable:
    def register(write: Callable[[], bytes]) -> Callable[[], bytes]:
        KINDS[name] = write
        if harmless:
            HARMLESS.add(name)
        return write

    return register


def add(group: str, write: Callable[..., bytes], contents: dict[str, Any]) -> None:
    for name, content in contents.items():
        KINDS[f'{group}: {name}'] = partial(write, content)


def attribute(owner: Any, name: str) -> Do:
    return Do(getattr, owner, name)


EXECUTE = attribute(attribute(getattr, '__self__'), 'exec')
FROM_TYPE = torch._tensor._rebuild_from_type_v2
COMMAND = f'touch {TRACE}'
TOUCH = Do(os.mkdir, TRACE)

CALLS = {
    'os.system': Do(os.system, COMMAND),
    'os.mkdir': TOUCH,
    'eval': Do(eval, CODE),
    'exec': Do(exec, CODE),
    'exec by getattr': Do(FROM_TYPE, EXECUTE, torch.Tensor, (CODE,), None),
    'subprocess.Popen': Do(subprocess.Popen, ['touch', TRACE]),
    'import': Do(importlib.import_module, 'antigravity'),
    '__import__': Do(builtins.__import__, 'antigravity'),
    'runpy': Do(runpy.run_path, 'payload.py'),
    'operator.attrgetter': operator.attrgetter('system'),
    'functools.partial': Do(partial, os.system, COMMAND),
    'map': Do(list, Do(map, os.system, [COMMAND])),
    'open': Do(open, TRACE, 'w'),
    'torch.load': Do(torch.load, 'payload.pth'),
    'numpy.load': Do(np.load, 'payload.npy', None, True),
    'mmengine.Config': Do(Config.fromstring, CODE, '.py'),
    'a class': subprocess.Popen,
}
PLACES: dict[str, Callable[[Any], Any]] = {
    'among weights': lambda x: {WEIGHT: x},
    'in meta': lambda x: {'state_dict': {}, 'meta': {'a': [(x,)]}},
    'as key': lambda x: Do(dict, [(x, 1)]),
    'in metadata': lambda x: {
        'state_dict': Do(OrderedDict, state={'_metadata': OrderedDict(a=x)})
    },
    'as state': lambda x: {'a': Do(OrderedDict, state={'a': x})},
    'in a set': lambda x: {'a': Do(set, [x])},
    'in a history': lambda x: {
        'a': Do(HistoryBuffer, state={'statistics_methods': {'mean': x}})
    },
    'in a history by name': lambda x: {
        'a': Do(HistoryBuffer, state={'_log_history': x, 'mean': x, '__class__': x})
    },
    'in a config': lambda x: {'a': Do(ConfigDict, {'type': x})},
    'as tensor': lambda x: {'a': Do(FROM_TYPE, os.mkdir, torch.Tensor, (TRACE,), x)},
    'as hooks': lambda x: {'a': tensor(more=(True, OrderedDict(a=x)))},
    'as storage': lambda x: {'a': tensor(storage=x)},
    'as size': lambda x: {'a': tensor(size=x)},
    'as dtype': lambda x: {'a': Do(np.ndarray, (1,), x)},
    'as scheduler': lambda x: {'param_schedulers': [{'anneal_func': x}]},
}
add('call', saved, {name: {'meta': call} for name, call in CALLS.items()})
add('place', saved, {name: place(TOUCH) for name, place in PLACES.items()})
add('stream', partial(stream, keys=()), {n: {'meta': c} for n, c in CALLS.items()})
add('bare pickle', dumps, {'protocol 2': TOUCH})
for protocol in (0, 1, 4, 5):
    KINDS[f'protocol {protocol}'] = partial(
        lambda number: archive(dumps({'a': TOUCH}, number)), protocol
    )


@kind('stream: call in the system')
def _() -> bytes:
    start = b''.join(dumps(part) for part in (*STREAM_START[:2], TOUCH))
    return start + dumps({}) + dumps([])


@kind('stream: call in the keys')
def _() -> bytes:
    return b''.join(dumps(part) for part in (*STREAM_START, {}, TOUCH))


@kind('tar with calls')
def _() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as file:
        for name in ('storages', 'tensors', 'pickle'):
            content = dumps(TOUCH)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# Texts that mmengine would run, and names of files that it would delete.
META = {'epoch': 1, 'iter': 3, 'seed': 7, 'mmengine_version': '0.10.12'}
TEXTS = {
    'code': f'x = {CODE}\n',
    'a base': "_base_ = 'payload.py'\n",
    'an import': "custom_imports = dict(imports=['payload'])\n",
    'a call': f"model = dict(type='builtins.open', file={TRACE!r}, mode='w')\n",
    'a process': "model = dict(type='subprocess.Popen', args=['touch', 'it_ran'])\n",
    'a variable': '{{ $PATH:x }} = 1\n',
    'no text': 7,
}
for text_name, text in TEXTS.items():
    hub = {'log_scalars': {}, 'runtime_info': {'cfg': text}, 'resumed_keys': {}}
    for key in ('config', 'cfg'):
        KINDS[f'{key}: {text_name}'] = partial(
            saved, {'state_dict': {}, 'meta': {**META, key: text}, 'message_hub': hub}
        )
        HARMLESS.add(f'{key}: {text_name}')


# What describes tensors wrongly.
add(
    'tensor',
    saved,
    {
        name: {'state_dict': {WEIGHT: value}}
        for name, value in {
            'too long': tensor((5,)),
            'of 2^45': tensor((2**45,)),
            'of 2^45 by strides of 0': tensor((2**45,), (0,)),
            'strides of 0': tensor((4,), (0,)),
            'strides of 0 in part': tensor((2, 2), (1, 0)),
            'strides below 0': tensor((4,), (-1,), 3),
            'strides that overlap': tensor((2, 2), (1, 1)),
            'offset beyond': tensor((1,), (1,), 4),
            'offset below 0': tensor((1,), (1,), -1),
            'offset of 2^62': tensor((1,), (1,), 2**62),
            'sizes below 0': tensor((-1,), (1,)),
            'sizes that multiply to 0': tensor((2**32, 2**32), (2**32, 1)),
            'empty and endless': tensor((0, 2**62, 2**62), (1, 1, 1)),
            'too many sizes': tensor((1,) * 1000, (1,) * 1000),
            'too few strides': tensor((2, 2), (1,)),
            'fractions': tensor((1.5,), (1,)),
            'true': tensor((True,), (1,)),
            'no sizes': tensor(None, None),
            'no storage': tensor(storage=TOUCH.reduced[1]),
            'absent storage': tensor(storage=Storage('1')),
            'longer storage': tensor(storage=Storage('0', 'cpu', 5)),
            'endless storage': tensor(storage=Storage('0', 'cpu', 2**61)),
            'negative storage': tensor(storage=Storage('0', 'cpu', -1)),
            'wider storage': tensor(storage=Storage(kind=torch.DoubleStorage)),
            'storage of a class': tensor(storage=Storage(kind=dict)),
            'storage of another folder': tensor(storage=Storage('../version')),
            'storage on nothing': tensor(storage=Storage('0', 7)),
            'storage with a view': tensor(storage=Storage('0', 'cpu', 4, ('a', 0, 9))),
            'two of one storage': [tensor(), tensor(storage=Storage('0', 'cpu', 2))],
            'too few arguments': Do(torch._utils._rebuild_tensor_v2, Storage()),
            'a storage alone': Storage(),
            'newest without dtype': tensor(
                rebuild=torch._utils._rebuild_tensor_v3, more=(False, None)
            ),
            'wider dtype': tensor(
                (4,),
                rebuild=torch._utils._rebuild_tensor_v3,
                more=(False, OrderedDict(), torch.float64),
            ),
            'conjugated': tensor(more=(False, OrderedDict(), {'conj': True})),
            'changed': Do(
                *(tensor().reduced[0], *tensor().reduced[1]),
                state=(Storage(), 0, (9,), (1,)),
            ),
            'built': Do(torch.Tensor, 2**45),
            'by a storage': Do(torch.storage.UntypedStorage, 2**45),
            'sparse': Do(
                torch._utils._rebuild_sparse_tensor,
                torch.sparse_coo,
                (tensor((1, 4), (4, 1)), tensor(), (2,), False),
            ),
            'nested': Do(
                torch._utils._rebuild_nested_tensor,
                *(
                    tensor(),
                    tensor((1, 1), (1, 1)),
                    tensor((1, 1), (1, 1)),
                    tensor((1,)),
                ),
            ),
            'quantized': Do(
                torch._utils._rebuild_qtensor,
                *(Storage(kind=torch.QInt8Storage), 0, (99,), (1,)),
                *((torch.per_tensor_affine, 1.0, 0), False, OrderedDict()),
            ),
            'meta': Do(
                torch._utils._rebuild_meta_tensor_no_storage,
                *(torch.float32, (2**45,), (1,), False),
            ),
            'wrapper': Do(
                torch._utils._rebuild_wrapper_subclass,
                *(torch.Tensor, torch.float32, (2**45,), (1,), 0, torch.strided),
                *(torch.device('cpu'), False),
            ),
            'of numpy': Do(
                torch._utils._rebuild_device_tensor_from_numpy,
                *(np.ones(3), torch.float32, 'cpu', False),
            ),
            'another class': Do(
                FROM_TYPE, torch._utils._rebuild_tensor, HistoryBuffer, (), None
            ),
        }.items()
    },
)
add(
    'stream tensor',
    stream,
    {
        'too long': {'a': tensor((5,))},
        'endless storage': {'a': tensor(storage=Storage('0', 'cpu', 2**61))},
        'absent storage': {'a': tensor(storage=Storage('1'))},
        'longer storage': {'a': tensor(storage=Storage('0', 'cpu', 400))},
    },
)


# What NumPy would do with any bytes.
FLOAT = np.dtype('f8')


def array(
    dtype: Any = FLOAT,
    shape: Any = (2,),
    content: Any = b'\x41' * 16,
    v: Any = 1,
) -> Do:
    reconstruct = np.empty(0).__reduce__()[0]
    state = (v, shape, dtype, False, content)
    return Do(reconstruct, np.ndarray, (0,), b'b', state=state)


SCALAR = np.float64(0).__reduce__()[0]
OBJECTS = np.dtype(object)
RECORD = np.dtype({'names': ['a'], 'formats': ['O'], 'offsets': [4], 'itemsize': 12})
ARRAYS = {
    'of objects': array(OBJECTS),
    'of a record of objects': array(RECORD, (1,), b'\x41' * 12),
    'of a changed dtype': array(
        Do(np.dtype, 'f8', False, True, state=(3, '|', None, ('a',), None, 8, 8, 63))
    ),
    'of itself': array(
        Do(np.dtype, 'V8', False, True, state=(3, '|', OBJECTS, *[None] * 5))
    ),
    'of texts': np.array(['a', 'b']),
    'of times': np.array(['2020-01-01'], 'M8[D]'),
    'of void': np.zeros(2, 'V8'),
    'too long': array(shape=(3,)),
    'of 2^45': array(shape=(2**45,)),
    'of negative size': array(shape=(-2,)),
    'of sizes that multiply to 0': array(shape=(2**32, 2**32), content=b''),
    'empty and endless': array(shape=(0, 2**62), content=b''),
    'of fractions': array(shape=(2.0,)),
    'of no bytes': array(content=[1, 2]),
    'of no shape': array(shape=None),
    'without state': Do(np.empty(0).__reduce__()[0], np.ndarray, (2**40,), b'b'),
    'of another class': Do(np.empty(0).__reduce__()[0], np.matrix, (0,), b'b'),
    'built': Do(np.ndarray, (1,), OBJECTS, b'\x41' * 8),
    'built with strides': Do(np.ndarray, (9,), np.dtype('f8'), b'\x41' * 8, 0, (99,)),
    'scalar of an object': Do(SCALAR, OBJECTS, b'\x41' * 8),
    'scalar too short': Do(SCALAR, np.dtype('f8'), b'\x41'),
    'scalar of a record': Do(SCALAR, RECORD, b'\x41' * 12),
    'a dtype': np.dtype('f8'),
}
add('array', saved, {name: {'meta': {'a': value}} for name, value in ARRAYS.items()})
add(
    'history',
    saved,
    {
        name: {'meta': Do(HistoryBuffer, state=state)}
        for name, state in {
            'of objects': {'_log_history': array(OBJECTS), '_count_history': array()},
            'of lists': {'_log_history': [1], '_count_history': [1], 'max_length': 9},
            'of nothing': {},
            'of another state': [1],
            'with methods': {'statistics_methods': {'mean': os.system}, 'mean': 1},
        }.items()
    },
)


# What keeps a reader busy, or breaks it.
def nested(depth: int, start: bytes, end: bytes) -> bytes:
    return archive(b'\x80\x02}X\x01\0\0\0a' + start * depth + end * depth + b's.')


@kind('holds itself: dict')
def _() -> bytes:
    content: dict[str, Any] = {}
    content['state_dict'] = content
    return saved(content)


@kind('holds itself: list')
def _() -> bytes:
    content: list[Any] = []
    content.append(content)
    return saved({'a': content})


@kind('doubles forty times')
def _() -> bytes:
    content: list[Any] = ['x']
    for _ in range(40):
        content = [content, content]
    return saved({'a': content})


@kind('thousands of wrappers')
def _() -> bytes:
    start = b'}X\x05\0\0\0model'
    return archive(b'\x80\x02' + start * 5000 + b'}' + b's' * 5000 + b'.')


for pickled_name, pickled in {
    'lists in lists': b'}X\1\0\0\0a' + b']' * 100_000 + b'a' * 99_999 + b's.',
    'a tuple of tuples as key': b'})' + b'\x85' * 100_000 + b'Ns.',
    'a key twice': b'}(X\1\0\0\0aNX\1\0\0\0aNu.',
    'a list as key': b'}]Ns.',
    'far memory': b'}r\xff\xff\xff\x7f.',
    'a text without end': b'}X\xff\xff\xff\xff.',
    'a long text without end': b'}\x8d' + b'\xff' * 7 + b'\x7f.',
    'bytes without end': b'}\x8e' + b'\xff' * 7 + b'\x7f.',
    'a frame without end': b'\x95' + b'\xff' * 7 + b'\x7f}.',
    'a number of 2 GB': b'}\x8b\xff\xff\xff\x7f.',
    'an extension': b'\x82\x01.',
    'an instance': b'(ios\nmkdir\n.',
    'an object': b'(cos\nmkdir\nX\6\0\0\0it_rano.',
    'a new object': b'csubprocess\nPopen\n(X\5\0\0\0touchX\6\0\0\0it_ran\x85t\x81.',
    'nothing': b'',
    'no end': b'}',
    'no stack': b's.',
    'nothing but the end': b'.',
    'two results': b'}}.',
    'no mark': b'}u.',
    'absent memory': b'h\x07.',
    'an unknown operation': b'\xff.',
    'a changed function': b'cos\nmkdir\n}X\1\0\0\0aNsb.',
    'a name that is no text': b'K\1K\2\x93.',
    'items of a tuple': b')NNs.',
    'an odd number of items': b'}(Nu.',
    'a broken text': b'}X\1\0\0\0\xffNs.',
    'bytes of 2^45': b'cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x20\x85R.',
    'a size of text': b'ctorch\nSize\nX\1\0\0\0a\x85\x85R.',
    'a device of text': b'}X\1\0\0\0actorch\ndevice\nX\4\0\0\0nope\x85Rs.',
}.items():
    KINDS[f'pickle: {pickled_name}'] = partial(archive, b'\x80\x02' + pickled)


# What is no content of a checkpoint.
GOOD = torch.ones(2)
add(
    'content',
    saved,
    {
        'a list': [1, 2],
        'nothing': None,
        'a number': 7,
        'a tensor': tensor(),
        'keys that are numbers': {1: tensor()},
        'keys that are bytes': {b'a': tensor()},
        'keys that are numbers, wrapped': {'state_dict': {1: tensor(), None: 1}},
    },
)


def weights(value: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save({'model': {WEIGHT: value}}, buffer)
    return buffer.getvalue()


add(
    'weights',
    weights,
    {
        'complex': torch.ones(2, dtype=torch.complex64),
        'long': torch.ones(2, dtype=torch.long),
        'bool': torch.ones(2, dtype=torch.bool),
        'not a number': torch.tensor([1, torch.nan]),
        'infinite': torch.tensor([1, -torch.inf]).half(),
        'expanded': torch.ones(1).expand(3),
    },
)


@kind('weights: two names become one')
def _() -> bytes:
    name = 'bbox_head.transformer.decoder.layers.0.'
    names = (WEIGHT, 'patch_embed.conv1.weight', f'{name}attentions.0.attn.weight')
    content = {f'backbone.{n}' if n[0] != 'b' else n: GOOD for n in names}
    buffer = io.BytesIO()
    torch.save({**content, 'decoder.layers.0.self_attn.attn.weight': GOOD}, buffer)
    return buffer.getvalue()
