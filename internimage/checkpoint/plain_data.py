# SPDX-License-Identifier: Apache-2.0
"""Make the plain data that a pickle asks for: containers, NumPy's numbers, a history.

The list is what Python's own containers become in a pickle of protocol 2, and what
mmengine's runner writes beside them.
"""

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import param_scheduler

from .pickles import Call, Name, Pairs
from .rebuilding import (
    Maker,
    Rebuilder,
    RefusedError,
    UnknownObjectError,
    attribute_name,
    check_key,
)

_FACTORIES = {
    f'builtins.{kind.__name__}': kind for kind in (dict, list, set, int, float)
}
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
# What the state of a OneCycle scheduler holds: one of the functions of its class.
ANNEALING = {
    f'{_ONE_CYCLE}.{name}': getattr(param_scheduler.OneCycleParamScheduler, name)
    for name in ('_annealing_cos', '_annealing_linear')
}
_NUMBERS = (
    *('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8'),
    *('f2', 'f4', 'f8'),
)


def _ordered_dict(maker: Rebuilder, node: Call, items: Any = ()) -> OrderedDict:
    pairs = maker.pairs(node.pairs)
    if isinstance(items, list):  # Python 2 gave them as an argument
        pairs = maker.pairs(Pairs([part for item in items for part in item])) + pairs
    result = OrderedDict(pairs)
    if node.state is not None:
        match node.state:
            # PyTorch keeps the versions of a model's modules as an attribute.
            case Pairs(items=['_metadata', metadata]):
                result._metadata = _whole(maker, metadata)  # type: ignore[attr-defined]
            case _:
                raise RefusedError(
                    'it gives an OrderedDict other attributes than PyTorch'
                )
    return result


def _whole(maker: Rebuilder, node: Any) -> Any:
    """Make what is no part of the container that it comes with."""
    try:
        return maker.make(node)
    except UnknownObjectError as error:
        error.path.clear()
        raise


def _default_dict(maker: Rebuilder, node: Call, factory: Any = None) -> defaultdict:
    kind = None if factory is None else _FACTORIES.get(attribute_name(factory))
    if factory is not None and kind is None:
        raise UnknownObjectError(attribute_name(factory))
    return defaultdict(kind, maker.pairs(node.pairs))


def _counter(maker: Rebuilder, node: Call, counts: Any = None) -> Counter:
    counted = [] if counts is None else maker.pairs(counts)
    if any(type(count) is not int for _, count in counted):
        raise RefusedError('it has a Counter of what are no counts')
    return Counter(dict(counted))


def _config_dict(maker: Rebuilder, node: Call, values: Any) -> ConfigDict:
    return ConfigDict(maker.pairs(values))


def _set(maker: Rebuilder, node: Call, values: Any = ()) -> set:
    return {check_key(value) for value in values}


def _frozen_set(maker: Rebuilder, node: Call, values: Any = ()) -> frozenset:
    return frozenset(check_key(value) for value in values)


def _complex(maker: Rebuilder, node: Call, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise RefusedError('it has a complex number that is none')
    return complex(real, imaginary)


def _encode(maker: Rebuilder, node: Call, text: Any, codec: Any) -> bytes:
    """Make bytes, which protocol 2 writes as a text."""
    if type(text) is not str or codec not in ('latin1', 'latin-1'):
        raise RefusedError('it has bytes in an unknown encoding')
    return text.encode('latin-1')


def _bytes(maker: Rebuilder, node: Call, *args: Any) -> bytes:
    if not args:
        return b''
    if len(args) == 2:
        return _encode(maker, node, *args)
    (content,) = args
    content = maker.make(content)
    if type(content) is not bytes:
        raise RefusedError('it makes bytes of something else')
    return content


def _bytearray(maker: Rebuilder, node: Call, *args: Any) -> bytearray:
    return bytearray(_bytes(maker, node, *args))


def _numpy_dtype(node: Any) -> np.dtype:
    """Make the dtype of plain numbers."""
    match node:
        case Call(
            Name('numpy.dtype'),
            (str(code), *_),
            state=(3, '<' | '>' | '=' | '|' as order, None, None, None, *_),
        ) if code in _NUMBERS:
            return np.dtype(code).newbyteorder(order)
    raise RefusedError('it has a NumPy array or scalar that is not of plain numbers')


def _array(maker: Rebuilder, node: Call, kind: Any, *_: Any) -> np.ndarray:
    """Make an array: NumPy asks for an empty one, and fills it by its state."""
    match node.state:
        case (int(_), tuple(shape), dtype_node, (bool(is_fortran)), content) if (
            kind == Name('numpy.ndarray')
        ):
            dtype = _numpy_dtype(dtype_node)
        case _:
            raise RefusedError('it has a NumPy array that NumPy did not write')
    if any(type(size) is not int or size < 0 for size in shape) or len(shape) > 32:
        raise RefusedError('it has a NumPy array of sizes that are no counts')
    raw = _raw(maker, content)
    if len(raw) != math.prod(shape) * dtype.itemsize or max((0, *shape)) >= 2**31:
        raise RefusedError(
            f'it claims a NumPy array of {tuple(shape)} in {len(raw):,} bytes'
        )
    array: np.ndarray = np.ndarray(shape, dtype, raw, order='F' if is_fortran else 'C')
    return array.copy('K')  # the bytes cannot be written to


def _scalar(maker: Rebuilder, node: Call, kind: Any, content: Any) -> np.generic:
    dtype = _numpy_dtype(kind)
    raw = _raw(maker, content)
    if len(raw) != dtype.itemsize:
        raise RefusedError(f'it claims a NumPy {dtype} in {len(raw):,} bytes')
    return np.frombuffer(raw, dtype)[0]


def _raw(maker: Rebuilder, content: Any) -> bytes:
    made = maker.make(content)
    if type(made) is str:  # Python 2
        made = made.encode('latin-1')
    if type(made) is not bytes:
        raise RefusedError(
            'it has a NumPy array or scalar that is not of plain numbers'
        )
    return made


def _history(maker: Rebuilder, node: Call) -> HistoryBuffer:
    """Make what mmengine keeps logged numbers in.

    The file names the functions that are computed of it. Those of the running program
    are used: from a file, mmengine would put them into the class.
    """
    if not isinstance(node.state, Pairs):
        raise RefusedError('it has a HistoryBuffer without content')
    keys, values = node.state.items[::2], node.state.items[1::2]
    state = dict(zip(map(check_key, keys), values, strict=True))
    methods = state.pop('statistics_methods', Pairs())
    if not isinstance(methods, Pairs):
        raise RefusedError(
            'it has a HistoryBuffer with other content than mmengine gives it'
        )
    for method in methods.items[1::2]:
        if attribute_name(method) == 'builtins.getattr':
            raise UnknownObjectError('builtins.getattr')
    made = {key: maker.make(value) for key, value in state.items()}
    history = made.pop('_log_history', None)
    counts = made.pop('_count_history', None)
    length = made.pop('max_length', None)
    is_sound = (
        not made
        and isinstance(history, np.ndarray)
        and isinstance(counts, np.ndarray)
        and history.ndim == counts.ndim == 1
        and len(history) == len(counts)
        and type(length) is int
        and length > 0
    )
    if not is_sound:
        raise RefusedError(
            'it has a HistoryBuffer with other content than mmengine gives it'
        )
    return HistoryBuffer(history, counts, length)


def _attribute(maker: Rebuilder, node: Call, *_: Any) -> Callable:
    """Give what a OneCycle scheduler calls: one of the two functions of its class."""
    name = attribute_name(node)
    if name not in ANNEALING:
        raise UnknownObjectError(name)
    return ANNEALING[name]


MAKERS = {
    'builtins.bytearray': Maker(_bytearray),
    'builtins.bytes': Maker(_bytes),
    'builtins.complex': Maker(_complex),
    'builtins.frozenset': Maker(_frozen_set),
    'builtins.getattr': Maker(_attribute),
    'builtins.set': Maker(_set),
    '_codecs.encode': Maker(_encode),
    'collections.Counter': Maker(_counter),
    'collections.defaultdict': Maker(_default_dict, is_dict=True),
    'collections.OrderedDict': Maker(_ordered_dict, is_dict=True, has_state=True),
    'mmengine.config.config.ConfigDict': Maker(_config_dict, is_dict=True),
    'mmengine.logging.history_buffer.HistoryBuffer': Maker(_history, has_state=True),
    'numpy.core.multiarray._reconstruct': Maker(_array, has_state=True),
    'numpy.core.multiarray.scalar': Maker(_scalar),
}
