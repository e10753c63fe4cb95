# SPDX-License-Identifier: Apache-2.0
"""Loading of the compiled kernels, and what is known about them.

The CPU and the CUDA kernels are two shared libraries, so that a PyTorch without
CUDA can load the first. Both use PyTorch's stable ABI: one build serves every
PyTorch from 2.10 on, whatever the Python version.
"""

import functools
import warnings
from importlib import machinery, resources
from pathlib import Path

import torch

#: Oldest PyTorch whose stable ABI has what the kernels call.
MIN_TORCH = (2, 10)

#: Why the kernels of a device type are not there; empty text if they are.
_missing: dict[str, str] = {}


def _find(stem: str) -> Path | None:
    """Return the path of the shared library ``stem`` in this package."""
    folder = Path(str(resources.files(__package__)))
    for suffix in machinery.EXTENSION_SUFFIXES:
        if (path := folder / f'{stem}{suffix}').is_file():
            return path
    return None


def torch_version() -> tuple[int, int]:
    """Return (major, minor) of the running PyTorch."""
    major, minor = torch.__version__.split('.')[:2]
    return int(major), int(minor)


def load() -> bool:
    """Load what was built and fits this PyTorch; return whether the CPU part is in.

    A library that is there but does not load is reported by a warning at once: it
    is a broken installation, not a choice.
    """
    if torch_version() < MIN_TORCH:
        reason = (
            f'PyTorch {torch.__version__} is older than '
            f'{".".join(map(str, MIN_TORCH))}, the first that they run on'
        )
        _missing.update(cpu=reason, cuda=reason)
        return False
    _missing['cpu'] = _load_one('_cpu')
    if _missing['cpu']:
        # The operators are declared in the CPU library.
        _missing['cuda'] = _missing['cpu']
    elif not torch.backends.cuda.is_built():
        _missing['cuda'] = 'this PyTorch is built without CUDA'
    else:
        _missing['cuda'] = _load_one('_cuda')
    return not _missing['cpu']


def _load_one(stem: str) -> str:
    """Load one shared library; return the reason if it cannot be had."""
    path = _find(stem)
    if path is None:
        return 'they were not built'
    try:
        torch.ops.load_library(path)
    except OSError as error:
        warnings.warn(
            f'{path} does not load ({error}). Rebuild it for this PyTorch '
            f'({torch.__version__}): pip install --no-build-isolation '
            '--force-reinstall --no-deps . (or -e .), in a checkout of internimage',
            RuntimeWarning,
            stacklevel=4,
        )
        return f'{path.name} does not load: {error}'
    return ''


def has_kernels_for(device_type: str) -> bool:
    """Return whether compiled kernels serve tensors of this device type."""
    # Fake kernels serve 'meta', so that shapes can be inferred for free.
    if device_type == 'meta':
        device_type = 'cpu'
    return _missing.get(device_type, 'not built for it') == ''


@functools.cache
def warn_slow(device_type: str) -> None:
    """Say once per device type that the reference is used, and what to do."""
    reason = _missing.get(device_type, 'there are none for this kind of device')
    warnings.warn(
        f'ops_dcnv3: no compiled kernels for {device_type!r} tensors ({reason}); the '
        'much slower PyTorch reference is used. To get them, install a C++ compiler '
        '(and for CUDA the toolkit of the version in torch.version.cuda), PyTorch '
        f'>= {".".join(map(str, MIN_TORCH))}, and reinstall, in a checkout of '
        'internimage: pip install --no-build-isolation --force-reinstall --no-deps .',
        RuntimeWarning,
        stacklevel=3,
    )


def build_info() -> dict:
    """Describe the compiled kernels that are loaded.

    Returns:
        ``compiled`` and ``cuda``: whether the CPU and the CUDA kernels are loaded.
        ``cuda_archs``: the architectures built, such as ``['sm_75', 'sm_90']``.
        ``torch`` and ``built_with_torch``: versions now and at build time.
        ``cpu_capability``: the instruction set chosen on this machine.
        ``missing``: the reason for each device type that has no kernels.
    """
    info: dict = {
        'compiled': has_kernels_for('cpu'),
        'cuda': has_kernels_for('cuda'),
        'cuda_archs': [],
        'torch': torch.__version__,
        'built_with_torch': None,
        'cpu_capability': None,
        'missing': {device: text for device, text in _missing.items() if text},
    }
    if info['compiled']:
        ops = torch.ops.ops_dcnv3
        info['built_with_torch'] = ops.built_with_torch()
        info['cpu_capability'] = ops.cpu_capability()
    if info['cuda']:
        # nvcc's list is '750,900' for compute capability 7.5 and 9.0.
        archs = torch.ops.ops_dcnv3.cuda_archs().split(',')
        info['cuda_archs'] = [f'sm_{arch.strip()[:-1]}' for arch in archs]
    return info
