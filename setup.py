# SPDX-License-Identifier: Apache-2.0
"""Build the operator's shared libraries and place what mim needs in the wheel.

Everything else is in pyproject.toml. Build with ``--no-build-isolation``: the
libraries are compiled against the PyTorch that is installed. Environment:

* ``USE_CUDA=1`` demands the CUDA kernels, ``USE_CUDA=0`` leaves them out; otherwise
  they are built where nvcc and a CUDA build of PyTorch are. A GPU is never needed.
* ``CUDA_HOME`` names the toolkit, ``TORCH_CUDA_ARCH_LIST`` the architectures.
* ``MAX_JOBS`` limits parallel compilers, ``CXX`` names the C++ compiler.

Without a C++ compiler or a PyTorch of at least 2.10 the package is built without
libraries, says so, and works through the PyTorch reference.
"""

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CSRC = Path('ops_dcnv3/csrc')
#: The stable ABI that the sources use: PyTorch 2.10, as in ops_dcnv3/library.py.
TORCH_TARGET_VERSION = '0x020a000000000000'
DEFAULT_CUDA_ARCHS = '7.5;8.0;8.6;8.9;9.0+PTX'


class BuildPyWithMim(build_py):
    """Copy configs and tools into the wheel, where mim looks for them.

    mim takes the first file that pip lists to find a package. pip sorts
    ``internimage-<version>.dist-info`` before ``internimage``, so mim needs a folder
    that sorts before both; mmengine's inferencers look inside the package itself. An
    editable install needs neither: mim then looks in the checkout.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        # Those that model-index.yml names.
        metafiles = ROOT.glob('projects/*/metafile.yml')
        projects = [path.parent.relative_to(ROOT) for path in metafiles]
        for package in ('_internimage', 'internimage'):
            target = Path(self.build_lib) / package / '.mim'
            for name in ('configs', 'tools', *projects):
                shutil.copytree(
                    ROOT / name,
                    target / name,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns(
                        '__pycache__', 'bootstrap.py', 'benchmarks'
                    ),
                )
            shutil.copy2(ROOT / 'model-index.yml', target)


def find_cuda_home() -> str | None:
    """Return the toolkit's folder, or None where there is none with nvcc."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    nvcc = shutil.which('nvcc')
    if home:
        candidates = [Path(home)]
    else:
        # nvcc on PATH may be a script that calls the real one elsewhere.
        candidates = [Path(nvcc).resolve().parent.parent] if nvcc else []
        candidates.append(Path('/usr/local/cuda'))
    for candidate in candidates:
        needed = ('bin/nvcc', 'include/cuda_runtime.h')
        if all((candidate / name).is_file() for name in needed):
            return str(candidate)
    return None


def toolkit_version(cuda_home: str) -> str:
    """Return the major version of the toolkit's nvcc."""
    nvcc = Path(cuda_home, 'bin', 'nvcc')
    text = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
    match = re.search(r'release (\d+)', text)
    return match[1] if match else 'unknown'


def say(message: str) -> None:
    """Tell what the build leaves out; pip shows it with -v."""
    sys.stderr.write(f'ops_dcnv3: {message}\n')


def want_cuda(torch, cuda_home: str | None) -> bool:
    """Return whether to build the CUDA kernels; exit if they are demanded in vain."""
    setting = os.environ.get('USE_CUDA', '')
    if setting not in ('', '0', '1'):
        sys.exit(f'USE_CUDA: expected 0, 1 or unset, got {setting!r}')
    missing = ''
    if torch.version.cuda is None:
        missing = 'this PyTorch is built without CUDA: install a CUDA build'
    elif cuda_home is None:
        missing = f'no toolkit is found: set CUDA_HOME to CUDA {torch.version.cuda}'
    elif (found := toolkit_version(cuda_home)) != torch.version.cuda.split('.')[0]:
        missing = f'{cuda_home} is CUDA {found}, PyTorch CUDA {torch.version.cuda}'
    if setting == '1' and missing:
        sys.exit(f'USE_CUDA=1 is set, but {missing}')
    if setting == '0' or missing:
        say(f'without CUDA kernels ({missing or "USE_CUDA=0"})')
        return False
    return True


def extensions() -> tuple[list, dict]:
    """Return the libraries to build and the commands that build them."""
    cuda_home = find_cuda_home()
    if cuda_home:
        os.environ['CUDA_HOME'] = cuda_home  # read when cpp_extension is imported
    reason = ''
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        reason = 'PyTorch is not importable: install it, then use --no-build-isolation'
    else:
        if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 10):
            reason = f'PyTorch {torch.__version__} is older than 2.10'
        elif os.name == 'nt':
            reason = 'the kernels need GCC or Clang'
        elif not shutil.which(os.environ.get('CXX', 'c++').split()[0]):
            reason = 'no C++ compiler is found: install one, or set CXX'
    if reason:
        say(f'WITHOUT compiled kernels ({reason})')
        return [], {}

    def library(kind, name, sources, **kwargs):
        return kind(
            f'ops_dcnv3.{name}',
            [str(CSRC / source) for source in sources],
            py_limited_api=True,  # no Python in it: PyTorch loads it as a library
            define_macros=[('TORCH_TARGET_VERSION', TORCH_TARGET_VERSION)],
            depends=[str(p) for p in sorted((ROOT / CSRC).rglob('*.*h'))],
            **kwargs,
        )

    cxx = ['-O3', '-g0', '-std=c++17', '-fvisibility=hidden', '-fno-math-errno']
    cxx += ['-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-psabi']
    # Errors of PyTorch's headers name their file: not by a path of this machine.
    folders = {f'{ROOT.resolve()}/': '', f'{Path(torch.__file__).parents[1]}/': ''}
    no_paths = [f'-fmacro-prefix-map={old}={new}' for old, new in folders.items()]
    cxx += no_paths
    operators = [f'cpu/{op}_cpu.cpp' for op in ('branch', 'dcnv3', 'layer', 'mlp')]
    kernels = [f'cpu/kernels_{isa}.cpp' for isa in ('baseline', 'avx2', 'avx512')]
    libraries = [
        library(
            cpp_extension.CppExtension,
            '_cpu',
            ['bindings.cpp', *operators, *kernels],
            extra_compile_args={'cxx': cxx},
        )
    ]
    if want_cuda(torch, cuda_home):
        os.environ.setdefault('TORCH_CUDA_ARCH_LIST', DEFAULT_CUDA_ARCHS)
        nvcc = ['-O3', '-std=c++17', '-DUSE_CUDA', '--threads=2', '-Xcompiler=-Wall']
        nvcc += [f'-Xcompiler={option}' for option in no_paths]
        libraries.append(
            library(
                cpp_extension.CUDAExtension,
                '_cuda',
                ['cuda/branch.cu', 'cuda/dcnv3_forward.cu', 'cuda/dcnv3_backward.cu'],
                extra_compile_args={'cxx': cxx, 'nvcc': nvcc},
            )
        )
    return libraries, {'build_ext': cpp_extension.BuildExtension}


# Not in the checkout: a copy of a config there would make its name ambiguous for mim.
build_lib = tempfile.mkdtemp(prefix='internimage-')
atexit.register(shutil.rmtree, build_lib, ignore_errors=True)
ext_modules, commands = extensions()
setup(
    ext_modules=ext_modules,
    cmdclass={'build_py': BuildPyWithMim, **commands},
    options={
        'build': {'build_lib': build_lib},
        'bdist_wheel': {'py_limited_api': 'cp310'} if ext_modules else {},
    },
)
