# SPDX-License-Identifier: Apache-2.0
"""Make the tensors that a pickle asks for."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .pickles import Call, Name, Stored
from .rebuilding import (
    Maker,
    Rebuilder,
    RefusedError,
    UnknownObjectError,
    attribute_name,
    function_name,
)

_STORAGE_DTYPES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexFloatStorage': torch.complex64,
    'ComplexDoubleStorage': torch.complex128,
}
DTYPES = {str(dtype): dtype for dtype in _STORAGE_DTYPES.values()} | {
    f'torch.{name}': getattr(torch, name)
    for name in (
        *('uint16', 'uint32', 'uint64', 'float8_e4m3fn', 'float8_e5m2'),
        *('float8_e4m3fnuz', 'float8_e5m2fnuz'),
    )
    if hasattr(torch, name)
}


def storage_of(stored: Stored) -> tuple[str, torch.dtype, str, int]:
    """Take a storage's description apart.

    Returns:
        Key, dtype, device that it was on, and number of elements.
    """
    match stored.id:
        case ('storage', Name(kind), str(key), str(location), int(count), *rest):
            prefix, _, name = kind.rpartition('.')
            if name == 'UntypedStorage':
                dtype: torch.dtype | None = torch.uint8
            else:
                dtype = _STORAGE_DTYPES.get(name)
            is_plain = prefix in ('torch', 'torch.storage', 'torch.cuda')
            if dtype and is_plain and count >= 0 and rest in ([], [None]):
                return key, dtype, location, count
    raise RefusedError('it describes a storage in a way that PyTorch does not')


def _size(maker: Rebuilder, node: Call, sizes: Any) -> torch.Size:
    if not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise RefusedError('it has a size that is none')
    return torch.Size(sizes)


def _device(maker: Rebuilder, node: Call, kind: Any, index: Any = None) -> torch.device:
    try:
        return torch.device(kind) if index is None else torch.device(kind, index)
    except RuntimeError:
        raise RefusedError(f'it has the unknown device {str(kind)[:40]!r}') from None


def _tensor(
    maker: Rebuilder,
    node: Call,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    *more: Any,
) -> Tensor:
    """Make a tensor of any version: from 3 on, the dtype is said beside the storage."""
    is_newest = function_name(node).endswith('_v3')
    dtype = maker.make(more[0]) if is_newest and more else None
    if is_newest and not isinstance(dtype, torch.dtype):
        raise RefusedError('it has a tensor without a dtype')
    if hooks is not None and maker.make(hooks):
        raise RefusedError('it has a tensor with hooks')
    if any(maker.make(metadata) for metadata in more[is_newest:]):
        raise RefusedError(
            'it has a tensor that is conjugated or negated when it is read'
        )
    tensor = _view(maker, storage, dtype, (offset, size, stride))
    return tensor.requires_grad_() if requires_grad is True else tensor


def _parameter(
    maker: Rebuilder, node: Call, data: Any, requires_grad: Any, *_: Any
) -> nn.Parameter:
    """Make a parameter. Attributes that somebody gave it are left out."""
    tensor = maker.make(data)
    if not isinstance(tensor, Tensor):
        raise RefusedError('it has a parameter that is no tensor')
    return nn.Parameter(tensor.detach(), requires_grad is True)


def _tensor_of_type(
    maker: Rebuilder, node: Call, function: Any, kind: Any, args: Any, _: Any
) -> Tensor:
    """Make a tensor or parameter that had attributes; they are left out."""
    if kind not in (Name('torch.Tensor'), Name('torch.nn.parameter.Parameter')):
        raise UnknownObjectError(attribute_name(kind))
    tensor = maker.make(Call(function, args))
    if not isinstance(tensor, Tensor):
        raise RefusedError('it has a tensor that is none')
    return tensor


def _view(maker: Rebuilder, stored: Any, dtype: Any, layout: Any) -> Tensor:
    """Make a tensor of a part of a storage."""
    if not isinstance(stored, Stored):
        raise RefusedError('it has a tensor without a storage')
    key, stored_dtype, _, _ = storage_of(stored)
    dtype = stored_dtype if dtype is None else dtype
    storage = maker.storages[key]
    offset, size, stride = layout
    size, stride = (_sizes(part) for part in (size, stride))
    _check_layout(offset, size, stride, storage.nbytes() // dtype.itemsize)
    return torch.empty(0, dtype=dtype, device=storage.device).set_(
        storage, offset, size, stride
    )


def _sizes(node: Any) -> tuple[int, ...]:
    match node:
        case Call(Name('torch.Size'), (tuple(sizes) | list(sizes),)):
            return tuple(sizes)
        case tuple() | list():
            return tuple(node)
    raise RefusedError('it has a tensor without sizes or strides')


def _check_layout(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int
) -> None:
    """Refuse a tensor that is not its own part of a storage of ``count`` elements."""
    numbers = [offset, *size, *stride]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise RefusedError(
            'it has a tensor whose size, strides or offset are no counts'
        )
    if len(size) != len(stride) or len(size) > 64:
        raise RefusedError(
            f'it has a tensor of {len(size)} sizes and {len(stride)} strides'
        )
    if 0 in size:
        # Nothing is read. PyTorch computes with these numbers all the same.
        if max(numbers) >= 2**31:
            raise RefusedError(f'it claims a tensor of sizes {size}')
        return
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    elements = math.prod(size)
    if last >= count or elements > count:
        raise RefusedError(
            f'it claims a tensor of {elements:,} elements ({size}, strides '
            f'{stride}, offset {offset}) in a storage of {count:,}'
        )
    reach = 1  # elements that the dimensions with smaller strides reach over
    for step, n in sorted((s, n) for n, s in zip(size, stride, strict=True) if n > 1):
        if step < reach:
            raise RefusedError(
                f'it has a tensor whose elements share memory ({size}, strides '
                f'{stride})'
            )
        reach = step * (n - 1) + reach


MAKERS = {
    'torch.device': Maker(_device),
    'torch.Size': Maker(_size),
    'torch._tensor._rebuild_from_type_v2': Maker(_tensor_of_type),
    'torch._utils._rebuild_parameter': Maker(_parameter),
    'torch._utils._rebuild_parameter_with_state': Maker(_parameter),
    'torch._utils._rebuild_tensor': Maker(_tensor),
    'torch._utils._rebuild_tensor_v2': Maker(_tensor),
    'torch._utils._rebuild_tensor_v3': Maker(_tensor),
}
