# SPDX-License-Identifier: Apache-2.0
"""What pip installs is enough; `make test-install` tries all of it in a new place."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.registry import DefaultScope

from tests.install import document_code
from tests.install.declared import ROOT, DeclaredFinder, closure

OURS = {'internimage', 'ops_dcnv3'}
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
    if document_code.find_blocks(path)
]


def run_module(name: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', name],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout.splitlines()


def test_extras_bring_what_is_imported():
    lines = run_module('tests.install.declared')
    for extra in ('none', 'classification', 'detection', 'segmentation', 'all'):
        assert f'{extra}: ok' in lines
    # Without a codebase, one sentence says what to install.
    pip = 'install with `pip install --no-build-isolation'
    for sentence in (
        f'classification needs mmcv and mmpretrain and torchvision: {pip} onedl-mmcv '
        'onedl-mmpretrain torchvision`',
        f'complexity needs mmcv: {pip} onedl-mmcv`',
        f'detection needs mmcv and mmdet: {pip} onedl-mmcv onedl-mmdetection`',
        f'segmentation needs mmcv and mmseg: {pip} onedl-mmcv onedl-mmsegmentation`',
    ):
        assert f'none: internimage.{sentence}' in lines


def imported(path: Path) -> set[str]:
    """Name the packages that a file imports anywhere, but not its neighbours."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.append(node.module)
    packages = {module.split('.')[0] for module in modules}
    beside = {other.stem for other in path.parent.glob('*')}
    return packages - beside - set(sys.stdlib_module_names)


def test_all_brings_what_any_file_imports():
    brought = closure('internimage[all]')
    for folder in ('internimage', 'ops_dcnv3', 'configs', 'projects', 'tools'):
        for path in (ROOT / folder).rglob('*.py'):
            if 'benchmarks' in path.parts:
                continue  # not in the wheel; its peers are the developers'
            for package in imported(path) - OURS:
                owners = DeclaredFinder.owners.get(package, set())
                assert owners & brought, f'{path} imports {package}'


def test_what_the_package_holds(tmp_path):
    """Configs and tools lie where mim looks; only kernels need PyTorch to be built."""
    source = tmp_path / 'source'
    for name in ('configs', 'internimage', 'ops_dcnv3', 'projects', 'tools'):
        ignore = shutil.ignore_patterns('*.so', '__pycache__')
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ('README.md', 'model-index.yml', 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / name, source)
    command = ['setup.py', 'build_py', '--build-lib', str(tmp_path / 'built')]
    program = (
        f'import runpy, sys; sys.modules["torch"] = None; sys.argv = {command}; '
        'runpy.run_path("setup.py", run_name="__main__")'
    )
    subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program],
        cwd=source,
        check=True,
        capture_output=True,
    )

    def files(folder: Path, pattern: str = '*.py') -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob(pattern)}

    built = tmp_path / 'built'
    assert {path.name for path in built.iterdir()} == {*OURS, '_internimage'}
    for package in ('internimage', '_internimage'):
        mim = built / package / '.mim'
        assert files(mim / 'configs') == files(ROOT / 'configs')
        assert files(mim / 'configs', '*.yml') == files(ROOT / 'configs', '*.yml')
        assert {'train.py', 'test.py', 'get_flops.py', '_cli.py'} < files(mim / 'tools')
        assert 'bootstrap.py' not in files(mim / 'tools')
        index = (mim / 'model-index.yml').read_text()
        metafiles = re.findall(r'\S+\.yml', index)
        for metafile in metafiles:
            for model in yaml.safe_load((mim / metafile).read_text())['Models']:
                assert (mim / model['Config']).is_file(), model['Name']
        assert {path.parent.name for path in mim.glob('projects/*/*')} == {
            Path(name).parent.name for name in metafiles if name.startswith('projects/')
        }
    for package in OURS:
        modules = files(built / package)
        assert {n for n in modules if not n.startswith('.mim')} == files(ROOT / package)


@pytest.mark.slow
@pytest.mark.parametrize('name', DOCUMENTS)
def test_document_code(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    # As in a fresh process: other tests leave the scope of a codebase.
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
    hub = torch.hub.get_dir()
    try:
        document_code.main([ROOT / name])
    finally:
        torch.hub.set_dir(hub)
    if name == 'README.md':
        for folder in ('detected', 'segmented'):
            assert list((tmp_path / folder).rglob('street.*'))
