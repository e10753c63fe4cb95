# SPDX-License-Identifier: Apache-2.0
"""What a pickle says, without doing it.

A pickle is a program. Python's reader runs it; PyTorch's with ``weights_only=True``
runs less of it, and what it does run, it runs with any arguments: with those of a
hostile file it reads beyond a storage, builds tensors of any size, or lets NumPy take
bytes for addresses. Here the program is only written down: every call that it asks for
becomes a :class:`Call`, every name a :class:`Name`, and :mod:`.rebuilding` decides what
is made of them.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO


class BadPickleError(ValueError):
    """The bytes are no pickle, or one that says things which no checkpoint says."""


@dataclass(frozen=True)
class Name:
    """A Python object that the pickle asks for, ``module.qualified_name``."""

    name: str


@dataclass(eq=False)
class Pairs:
    """A dict, as keys and values in turn: nothing is hashed before it is checked."""

    items: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for, and what it wants to put into the result."""

    function: Any
    args: Any
    pairs: Pairs = field(default_factory=Pairs)
    state: Any = None


@dataclass(eq=False)
class Stored:
    """A storage, kept outside the pickle; ``id`` says which."""

    id: Any


class _Mark:
    """Where on the stack a group of things begins."""


_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
# pickletools hands on what these carry.
_LITERALS = {
    *('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'),
    *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'SHORT_BINSTRING', 'BINSTRING'),
    *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
}
_EMPTY: dict[str, Callable[[], Any]] = {
    'EMPTY_DICT': Pairs,
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
    'EMPTY_SET': lambda: Call(Name('builtins.set'), ([],)),
}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
# Python 2's names, which pickle still writes.
_OLD_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}


def read_pickle(file: BinaryIO) -> Any:
    """Read one pickle from an open file, and leave the file behind it.

    Returns:
        Numbers, texts, bytes, lists and tuples as they are; the rest as
        :class:`Pairs`, :class:`Call`, :class:`Name` and :class:`Stored`.

    Raises:
        BadPickleError: See there.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except BadPickleError:
        raise
    except KeyError as error:
        raise BadPickleError(f'its pickle is damaged (no memory {error})') from None
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise BadPickleError(f'its pickle is damaged ({error})') from None
    return result


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def step(self, operation: str, argument: Any) -> None:
        stack = self.stack
        if operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _LITERALS:
            stack.append(argument)
        elif operation in _EMPTY:
            stack.append(_EMPTY[operation]())
        elif operation in _TUPLES:
            parts = [self._take() for _ in range(_TUPLES[operation])]
            stack.append(tuple(reversed(parts)))
        elif operation in ('BINPUT', 'LONG_BINPUT'):
            self.memory[argument] = self._top()
        elif operation == 'MEMOIZE':
            self.memory[len(self.memory)] = self._top()
        elif operation in ('BINGET', 'LONG_BINGET'):
            stack.append(self.memory[argument])
        elif operation == 'MARK':
            stack.append(_Mark)
        elif operation in ('PROTO', 'FRAME', 'STOP'):
            pass
        else:
            method = getattr(self, f'do_{operation.lower()}', None)
            if method is None:
                raise BadPickleError(
                    f'its pickle does {operation}, as no checkpoint does'
                )
            method(argument)

    def _top(self) -> Any:
        if self.stack[-1] is _Mark:
            raise IndexError('nothing on the stack')
        return self.stack[-1]

    def _take(self) -> Any:
        top = self._top()
        self.stack.pop()
        return top

    def _take_group(self) -> list[Any]:
        stack = self.stack
        start = len(stack) - 1
        while stack[start] is not _Mark:
            start -= 1
            if start < 0:
                raise IndexError('no mark on the stack')
        group = stack[start + 1 :]
        del stack[start:]
        return group

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._take_group()))

    def do_append(self, _: Any) -> None:
        self._extend([self._take()])

    def do_appends(self, _: Any) -> None:
        self._extend(self._take_group())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise BadPickleError('its pickle appends to what is no list')
        target.extend(values)

    def do_additems(self, _: Any) -> None:
        values = self._take_group()
        target = self._top()
        is_set = isinstance(target, Call) and target.function == Name('builtins.set')
        if not is_set:
            raise BadPickleError('its pickle adds to what is no set')
        target.args[0].extend(values)

    def do_frozenset(self, _: Any) -> None:
        self.stack.append(Call(Name('builtins.frozenset'), (self._take_group(),)))

    def do_setitem(self, _: Any) -> None:
        value, key = self._take(), self._take()
        self._set_pairs([key, value])

    def do_setitems(self, _: Any) -> None:
        self._set_pairs(self._take_group())

    def _set_pairs(self, keys_and_values: list[Any]) -> None:
        target = self._top()
        pairs = target.pairs if isinstance(target, Call) else target
        if not isinstance(pairs, Pairs) or len(keys_and_values) % 2:
            raise BadPickleError('its pickle sets items of what is no dict')
        pairs.items.extend(keys_and_values)

    def do_global(self, argument: str) -> None:
        self._name(*argument.split(' ', 1))

    def do_stack_global(self, _: Any) -> None:
        name, module = self._take(), self._take()
        self._name(module, name)

    def _name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise BadPickleError('its pickle asks for an object without a name')
        self.stack.append(Name(f'{_OLD_MODULES.get(module, module)}.{name}'))

    def do_reduce(self, _: Any) -> None:
        args, function = self._take(), self._take()
        self.stack.append(Call(function, args))

    # A new object of a class: for us, the same as a call of the class.
    do_newobj = do_reduce

    def do_build(self, _: Any) -> None:
        state, target = self._take(), self._top()
        if not isinstance(target, Call) or target.state is not None:
            raise BadPickleError('its pickle changes an object that it has not made')
        target.state = state

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(Stored(self._take()))
