# SPDX-License-Identifier: Apache-2.0
"""Small faults in source files, by the operators of mutmut."""

import difflib
import json
import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import libcst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

#: Calls that tell people something: their texts have no test.
TELLING = {
    *('ArgumentParser', 'add_argument', 'info', 'make_parser', 'print', 'say'),
    *('warn', 'warning'),
}


class Mutant(NamedTuple):
    """A source file with one small fault.

    ``file`` is relative to the checkout, ``before`` and ``after`` are the lines that
    differ, without their indentation.
    """

    file: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f'{self.file}:{self.line}\n  - {self.before}\n  + {self.after}'


class Places(libcst.CSTVisitor):
    """Collects the nodes that an operator changes, and where they are."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[libcst.CSTNode, libcst.CSTNode]] = []

    def on_visit(self, node: libcst.CSTNode) -> bool:
        """Collect a node, and tell whether those inside are of interest."""
        if isinstance(node, libcst.Annotation | libcst.Raise | libcst.BaseString):
            return False
        if isinstance(node, libcst.Call) and name_of(node.func) in TELLING:
            return False
        # A check of zip's, that never fails in code that works.
        if (
            isinstance(node, libcst.Arg)
            and node.keyword
            and (name_of(node.keyword) == 'strict')
        ):
            return False
        is_export = isinstance(node, libcst.Assign) and '__all__' in {
            name_of(target.target) for target in node.targets
        }
        if is_export:
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                self.found += ((node, changed) for changed in operator(node))
        return True


def name_of(node: libcst.CSTNode) -> str:
    """Return the last part of a dotted name, empty text for another expression."""
    if isinstance(node, libcst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, libcst.Name) else ''


def mutants_of(root: Path, file: str) -> Iterator[tuple[str, int]]:
    """Yield the file and a number for each of its mutants."""
    places = Places()
    MetadataWrapper(libcst.parse_module((root / file).read_text())).visit(places)
    for index in range(len(places.found)):
        yield file, index


def make_mutant(root: Path, file: str, index: int) -> Mutant:
    """Return a mutant by its number."""
    text = (root / file).read_text()
    wrapper = MetadataWrapper(libcst.parse_module(text))
    places = Places()
    wrapper.visit(places)
    node, changed = places.found[index]
    source = wrapper.module.deep_replace(node, changed).code
    lines = [text.splitlines(), source.splitlines()]
    (_, first, end, other_first, other_end), *_ = (
        code
        for code in difflib.SequenceMatcher(None, *lines, autojunk=False).get_opcodes()
        if code[0] != 'equal'
    )
    before, after = (
        ' '.join(line.strip() for line in part)
        for part in (lines[0][first:end], lines[1][other_first:other_end])
    )
    return Mutant(file, first + 1, before, after, source)


def sample(root: Path, paths: Collection[str], count: int, seed: int) -> list[Mutant]:
    """Draw mutants of Python files, each as likely as any other.

    Args:
        root: The checkout.
        paths: Files and folders in it.
        count: How many; all if there are fewer.
        seed: The same for the same mutants of the same code.
    """
    files: set[Path] = set()
    for path in paths:
        folder = root / path
        files |= set(folder.rglob('*.py')) if folder.is_dir() else {folder}
    names = sorted(file.relative_to(root).as_posix() for file in files)
    every = [place for name in names for place in mutants_of(root, name)]
    drawn = random.Random(seed).sample(every, min(count, len(every)))
    return [make_mutant(root, *place) for place in drawn]


def is_equivalent(mutant: Mutant, equivalents: Path) -> bool:
    """Tell whether the list says of a mutant that it changes nothing."""
    known = json.loads(equivalents.read_text()) if equivalents.is_file() else []
    change = {key: getattr(mutant, key) for key in ('file', 'before', 'after')}
    return any(change.items() <= entry.items() for entry in known)
