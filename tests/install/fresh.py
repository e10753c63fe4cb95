# SPDX-License-Identifier: Apache-2.0
"""Install the wheel with all extras into a fresh environment, and use it.

``make test-install`` runs this. It takes several minutes and 8 GB of disk: PyTorch and
the codebases are installed again, mmcv from pip's cache.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from contextlib import redirect_stdout
from pathlib import Path

from tests.paths import ROOT
from tests.tools import test_train_test as small_coco

CONSTRAINTS = ROOT / 'requirements' / 'constraints.txt'
IMPORTS = (
    'import internimage.classification, internimage.detection, '
    'internimage.segmentation, mmcv.ops, mmdet.apis, mmpretrain.apis, mmseg.apis; '
    'import ops_dcnv3; info = ops_dcnv3.build_info(); assert info["compiled"], info; '
    'assert "site-packages" in internimage.__file__'
)


class Fresh:
    """A fresh environment in a folder, and the commands carried out in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / 'env' / 'bin'
        self.work = folder / 'work'
        self.work.mkdir()
        self.done = 0
        self.env = {
            **os.environ,
            'PATH': f'{self.bin}{os.pathsep}{os.environ["PATH"]}',
            'VIRTUAL_ENV': str(self.bin.parent),
            'PIP_DISABLE_PIP_VERSION_CHECK': '1',
            'USE_CUDA': os.environ.get('USE_CUDA', '0'),  # it takes long to compile
            'CFLAGS': '-O2 -g0',  # as tools/bootstrap.py, should mmcv be compiled
        }
        for name in ('PYTHONPATH', 'PYTHONHOME'):
            self.env.pop(name, None)

    def run(self, title: str, *command: str | Path) -> str:
        """Run a command in the work folder; exit with its output if it fails."""
        begin = time.monotonic()
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.work,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
        if done.returncode:
            sys.exit(f'{done.stdout[-6000:]}\n{title}: failed')
        self.done += 1
        print(f'{title}: ok in {time.monotonic() - begin:.0f} s', flush=True)
        return done.stdout

    def install(self, title: str, *what: str) -> None:
        """Install with the pinned versions."""
        pip = (self.bin / 'python', '-m', 'pip', 'install', '--constraint', CONSTRAINTS)
        self.run(title, *pip, '--no-build-isolation', *what)


def main() -> None:
    """Build the wheel, install it, use it; the last line counts the steps."""
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix='internimage-install-'))
    try:
        fresh = Fresh(folder)
        steps(fresh)
    finally:
        shutil.rmtree(folder)
    minutes, seconds = divmod(int(time.monotonic() - begin), 60)
    print(f'fresh install: all {fresh.done} steps in {minutes} min {seconds} s')


def steps(fresh: Fresh) -> None:
    """Do what the documents say, from the wheel to a trained detector."""
    python, mim = fresh.bin / 'python', fresh.bin / 'mim'
    wheel = (sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps')
    fresh.run('wheel', *wheel, '--wheel-dir', fresh.folder, ROOT)
    (file,) = fresh.folder.glob('internimage-*.whl')

    venv.create(fresh.bin.parent, with_pip=True)
    fresh.install('build tools', 'pip', 'setuptools', 'wheel', 'ninja')
    fresh.install('PyTorch', 'torch', 'torchvision')
    fresh.install('bare wheel', str(file))
    fresh.run('import of the bare wheel', python, '-c', 'import internimage')
    fresh.install('wheel with all extras', f'internimage[all] @ {file.as_uri()}')
    fresh.run('pip check', python, '-m', 'pip', 'check')
    fresh.run('imports', python, '-W', 'ignore', '-c', IMPORTS)

    # A copy: beside the original, Python would find the checkout's packages.
    program = shutil.copy(ROOT / 'tests' / 'install' / 'document_code.py', fresh.work)
    documents = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
    fresh.run('documents', python, program, *documents)

    config = small_coco.CONFIG.name
    with redirect_stdout(io.StringIO()):  # mmdet's, not ours
        small_coco.write_coco(fresh.work / 'data' / 'coco')
    small = ('--cfg-options', *small_coco.SMALL)
    path = f'configs/detection/{config}'  # where the documents' run has put it
    fresh.run('mim run', mim, 'run', 'internimage', 'get_flops', path)
    # By name, which mim looks for among the package's configs.
    arguments = ('train', 'internimage', config, '--work-dir', 'out', *small)
    fresh.run('mim train', mim, *arguments)
    arguments = ('test', 'internimage', config, '--checkpoint', 'out/epoch_1.pth')
    output = fresh.run('mim test', mim, *arguments, *small)
    assert 'coco/segm_mAP: ' in output


if __name__ == '__main__':
    main()
