# SPDX-License-Identifier: Apache-2.0
"""Import our packages as where only what pyproject.toml asks for is installed.

Run as ``python -m tests.install.declared``, in an environment that has everything: for
each extra, packages that neither it nor what it brings asks for are hidden. Prints one
line per extra: its name, and ``ok`` or what is missing.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import PathFinder

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.paths import ROOT

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
# Of each extra, and of none, what has to work.
MODULES = {
    '': ('internimage', 'ops_dcnv3'),
    'classification': ('internimage.classification', 'mmpretrain.apis'),
    'detection': ('internimage.detection', 'mmdet.apis'),
    'segmentation': ('internimage.segmentation', 'mmseg.apis', 'mmdet.models'),
    'all': ('mim.cli', 'mim.commands.train', 'mim.commands.search', 'safetensors'),
}


def requirements(name: str) -> Iterator[Requirement]:
    """Yield what a distribution asks for, its extras' part with a marker."""
    if name != 'internimage':
        for text in metadata.requires(name) or []:
            yield Requirement(text)
        return
    for text in PROJECT['dependencies']:
        yield Requirement(text)
    for extra, texts in PROJECT['optional-dependencies'].items():
        for text in texts:
            yield Requirement(f'{text}; extra == "{extra}"')


def closure(wanted: str) -> set[str]:
    """Name all distributions that pip installs for a requirement."""
    todo, seen = [Requirement(wanted)], set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {'', *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            todo += [
                more
                for more in requirements(name)
                if not more.marker or more.marker.evaluate({'extra': extra})
            ]
    return {name for name, _ in seen}


class DeclaredFinder(PathFinder):
    """Finds modules of no distribution, such as ours, and of visible ones."""

    owners = {
        module: set(map(canonicalize_name, names))
        for module, names in metadata.packages_distributions().items()
    }
    visible: set[str] = set()

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        owners = cls.owners.get(fullname.split('.')[0])
        if owners and not owners & cls.visible:
            return None
        return super().find_spec(fullname, path, target)


def import_declared(extra: str) -> str:
    """Import an extra's modules; return ``ok`` or the sentence of the failure."""
    DeclaredFinder.visible = closure(f'internimage[{extra}]')
    try:
        for module in MODULES[extra]:
            importlib.import_module(module)
    except ImportError as error:
        return f'{type(error).__name__}: {error}'
    return 'ok'


def main() -> None:
    """Import without extras; then each extra's in a process that goes on from there."""
    sys.meta_path[sys.meta_path.index(PathFinder)] = DeclaredFinder
    print(f'none: {import_declared("")}', flush=True)
    for part in ('classification', 'complexity', 'detection', 'segmentation'):
        try:
            importlib.import_module(f'internimage.{part}')
        except ImportError as error:
            print(f'none: {error}', flush=True)
    for extra in filter(None, MODULES):
        child = os.fork()
        if not child:
            print(f'{extra}: {import_declared(extra)}', flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == '__main__':
    main()
