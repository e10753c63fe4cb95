# SPDX-License-Identifier: Apache-2.0
"""Make objects of what a pickle asks for, by functions that check what they are given.

Those functions are in :mod:`.tensors` and :mod:`.plain_data`, with the names by which
a file asks for them: everything else is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .pickles import Call, Name, Pairs, Stored

# A checkpoint of mmengine has 6 levels. Python's own limit would be at some 300.
MAX_DEPTH = 100
# Of values, as a reader would meet them that follows every reference. A runner's
# checkpoint of InternImage-H has some 100 thousand.
MAX_VALUES = 20_000_000

_SCALARS = (bool, int, float, str, bytes, type(None))


class RefusedError(ValueError):
    """What the file says is no checkpoint's content."""


class UnknownObjectError(RefusedError):
    """The file asks for a Python object that no checkpoint needs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        # Keys and indices that lead to what would have to be deleted.
        self.path: list[str | int] = []

    def comes_from(self, key: Any) -> None:
        """Note the place in a container; in a list, only of a container in it."""
        if self.path or type(key) is str:
            self.path.insert(0, key)


@dataclass(frozen=True)
class Maker:
    """How to make what a file asks for by one name.

    Args:
        function: Gets the rebuilder, the call, and the arguments of the call.
        is_dict: It gets its items after the call.
        has_state: It gets a state after the call.
    """

    function: Callable[..., Any]
    is_dict: bool = False
    has_state: bool = False


class Rebuilder:
    """Make objects of one file's pickle.

    Args:
        storages: By key, the bytes of the file, on the device where they shall be.
        makers: By name, what a file can call.
        constants: By name, what a file can ask for as it is.
    """

    def __init__(
        self,
        storages: Mapping[str, torch.UntypedStorage],
        makers: Mapping[str, Maker],
        constants: Mapping[str, Any],
    ) -> None:
        self.storages = storages
        self._makers = makers
        self._constants = constants
        # With the node, so that no other gets its identity.
        self._made: dict[int, tuple[Any, Any, int]] = {}
        self._unfinished: set[int] = set()
        self._values = 0

    def make(self, node: Any) -> Any:
        """Make the object that ``node`` asks for.

        Raises:
            RefusedError: The file asks for something that no checkpoint needs.
        """
        self._values += 1
        if type(node) in _SCALARS:
            return node
        if id(node) in self._made:
            # The same object again: it counts each time, or a file of a hundred lists
            # that hold one another twice would be without end for who walks through.
            _, made, values = self._made[id(node)]
            self._values += values
            self._check_size()
            return made
        if id(node) in self._unfinished:
            raise RefusedError('something in it holds itself')
        if len(self._unfinished) >= MAX_DEPTH:
            raise RefusedError(
                f'its content is nested more than {MAX_DEPTH} levels deep'
            )
        self._unfinished.add(id(node))
        before = self._values
        made = self._make(node)
        self._made[id(node)] = node, made, self._values - before
        self._unfinished.discard(id(node))
        self._check_size()
        return made

    def _check_size(self) -> None:
        if self._values > MAX_VALUES:
            raise RefusedError(
                f'its content unfolds to more than {MAX_VALUES:,} values'
            )

    def _make(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._part(index, value) for index, value in enumerate(node)]
        if isinstance(node, tuple):
            return tuple(self.make(value) for value in node)
        if isinstance(node, Pairs):
            return dict(self.pairs(node))
        if isinstance(node, Name):
            if node.name not in self._constants:
                raise UnknownObjectError(node.name)
            return self._constants[node.name]
        if isinstance(node, Stored):
            raise RefusedError('it holds a storage outside any tensor')
        return self._call(node)

    def _part(self, key: Any, node: Any) -> Any:
        try:
            return self.make(node)
        except UnknownObjectError as error:
            error.comes_from(key)
            raise

    def pairs(self, node: Any) -> list[tuple[Any, Any]]:
        """Make the keys and values of a dict."""
        if not isinstance(node, Pairs):
            raise RefusedError(f'it makes a dict of a {kind_of(node)}')
        keys, values = node.items[::2], node.items[1::2]
        pairs = []
        seen = set()
        for key, value in zip(keys, values, strict=True):
            key = check_key(key)
            if key in seen:
                raise RefusedError(f'a dict in it has the key {str(key)[:80]!r} twice')
            seen.add(key)
            pairs.append((key, self._part(key, value)))
        return pairs

    def _call(self, node: Call) -> Any:
        name = function_name(node)
        args = node.args
        if not isinstance(args, tuple):
            raise RefusedError(f'it calls {name} without arguments')
        maker = self._makers.get(name)
        if maker is None:
            raise UnknownObjectError(name)
        if node.pairs.items and not maker.is_dict:
            raise RefusedError(f'it sets items of {name}')
        if node.state is not None and not maker.has_state:
            raise RefusedError(f'it changes a {name} that it has made')
        try:
            return maker.function(self, node, *args)
        except UnknownObjectError as error:
            if not maker.is_dict:  # nothing in it can be deleted
                error.path.clear()
            raise
        except TypeError as error:  # the number of arguments, or their types
            raise RefusedError(
                f'it calls {name} with wrong arguments: {error}'
            ) from None


def check_key(key: Any) -> Any:
    """Let only keys through whose hash is computed in no time."""
    is_plain = type(key) in _SCALARS or (
        type(key) is tuple and all(type(part) in _SCALARS for part in key)
    )
    if not is_plain:
        raise RefusedError(
            f'it has a dict or set with the key {kind_of(key)!r}, not a text'
        )
    return key


def function_name(node: Call) -> str:
    """Name what is called; of an attribute, where it is looked for."""
    name = attribute_name(node.function)
    # NumPy 2 moved the functions that rebuild its arrays; files of both ages exist.
    return name.replace('numpy._core.', 'numpy.core.', 1)


def attribute_name(node: Any) -> str:
    """Name an attribute: of protocol 4 by one name, of protocol 2 by ``getattr``."""
    match node:
        case Name(name):
            return name
        case Call(Name('builtins.getattr'), (Name(owner), str(attribute))):
            return f'{owner}.{attribute}'
    return 'builtins.getattr'


def kind_of(node: Any) -> str:
    """Call a thing by its type, for a message."""
    if isinstance(node, Call) and isinstance(node.function, Name):
        return 'tensor' if '_rebuild_' in node.function.name else node.function.name
    return {Pairs: 'dict', Name: 'Python object'}.get(type(node), type(node).__name__)
