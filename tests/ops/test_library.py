# SPDX-License-Identifier: Apache-2.0
"""The shared libraries: what they need of PyTorch, and life without them."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ops_dcnv3
from ops_dcnv3 import build_info, library
from tests.paths import ROOT

PACKAGE = Path(ops_dcnv3.__file__).parent
CPU_INFO = Path('/proc/cpuinfo')
# From worst to best, with what Linux calls the instructions that each needs.
CAPABILITIES = {
    'baseline': set(),
    'avx2': {'avx2', 'fma'},
    'avx512': {'avx2', 'fma', 'avx512f', 'avx512bw', 'avx512dq', 'avx512vl'},
}


def run_python(code, folder, **environment):
    """Run code in a fresh interpreter that imports from ``folder`` first.

    A variable of the environment that is None is not set there.
    """
    environment = os.environ | environment
    result = subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_build_info():
    info = build_info()
    assert info['compiled'] is True
    assert info['torch'] == torch.__version__
    assert info['built_with_torch'].split('.')[0] == '2'
    assert info['cpu_capability'] in ('baseline', 'avx2', 'avx512')
    assert info['cuda'] is ('cuda' not in info['missing'])
    assert bool(info['cuda_archs']) is info['cuda']
    assert all(arch.startswith('sm_') for arch in info['cuda_archs'])


def test_build_info_asks_for_each_device(monkeypatch):
    asked = []
    monkeypatch.setattr(library, 'has_kernels_for', asked.append)
    assert not build_info()['compiled']
    assert asked == ['cpu', 'cuda']


@pytest.fixture(params=['_cpu', '_cuda'])
def compiled_library(request):
    """Return the path of what was compiled: for the CPU always, for CUDA perhaps."""
    found = list(PACKAGE.glob(f'{request.param}*.so'))
    if request.param == '_cuda' and not found:
        pytest.skip('built without CUDA')
    assert len(found) == 1, f'{PACKAGE}: expected one {request.param}*.so, got {found}'
    return found[0]


def test_stable_abi(compiled_library):
    """No C++ name of PyTorch is needed: one build serves many versions."""
    symbols = subprocess.run(
        ['nm', '-DC', '--undefined-only', compiled_library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 'aoti_torch_get_sizes' in symbols
    unstable = [s for s in symbols.splitlines() if 'at::' in s or 'c10::' in s]
    assert not unstable
    assert not any('Py' in s.split()[-1] for s in symbols.splitlines())


def test_no_paths_of_the_machine_that_built_it(compiled_library):
    """Messages of checks would show them."""
    names = re.findall(
        rb'[!-~]*/(?:csrc|include)/[!-~]*', compiled_library.read_bytes()
    )
    assert not [name for name in names if name.startswith(b'/')]


@pytest.fixture
def capabilities():
    """Return what this machine has, from worst to best, as Linux tells."""
    if platform.machine() != 'x86_64':
        return ['baseline']
    if not CPU_INFO.exists():
        pytest.skip(f'only {CPU_INFO} tells what this CPU has')
    flags = set(re.search(r'^flags\s*:(.*)', CPU_INFO.read_text(), re.M)[1].split())
    return [name for name, needed in CAPABILITIES.items() if needed <= flags]


@pytest.mark.parametrize('limit', [None, 'avx2', 'default'])
def test_cpu_capabilities(limit, capabilities):
    """Every instruction set that this machine has gives the same sums.

    Used is the best of them, unless PyTorch's own switch asks for a lower one.
    """
    code = """
import torch
from ops_dcnv3 import build_info, dcnv3, dcnv3_reference
from tests.ops.branch import (
    AROUND, branch, branch_arguments, layer, layer_arguments, mlp, mlp_arguments)
from tests.ops.cases import Case
from tests.tolerances import BACKWARD, FORWARD, relative_error
print(build_info()['cpu_capability'])
for dtype in FORWARD:
    for group_channels in (3, 16, 37):
        case = Case('isa', group_channels=group_channels)
        tensors = [x.requires_grad_() for x in case.tensors(dtype)]
        exact = [x.detach().double().requires_grad_() for x in tensors]
        output = dcnv3(*tensors, **case.kwargs)
        expected = dcnv3_reference(*exact, **case.kwargs)
        assert relative_error(output, expected) < FORWARD[dtype]
        output.sum().backward()
        expected.sum().backward()
        for actual, wanted in zip(tensors, exact):
            assert relative_error(actual.grad, wanted.grad) < BACKWARD[dtype]
for settings in AROUND:
    arguments = mlp_arguments((19, 70), 333, **settings)
    output = torch.ops.ops_dcnv3.mlp_forward(**arguments)
    assert relative_error(output, mlp(arguments)) < FORWARD[torch.float32]
    arguments = layer_arguments((2, 37, 41, 24), 3, center_scale=True, **settings)
    output = torch.ops.ops_dcnv3.layer_forward(**arguments)
    assert relative_error(output, layer(arguments)) < 4 * FORWARD[torch.float32]
arguments = branch_arguments((2, 37, 41, 24), (3, 5))
output = torch.ops.ops_dcnv3.branch_forward(*arguments, 1e-6)
assert relative_error(output, branch(*arguments, 1e-6)) < FORWARD[torch.float32]
"""
    output = run_python(code, ROOT, ATEN_CPU_CAPABILITY=limit)
    lower = {'avx2': ('baseline', 'avx2'), 'default': ('baseline',)}
    allowed = lower.get(limit, CAPABILITIES)
    assert output.strip() == [name for name in capabilities if name in allowed][-1]


@pytest.fixture
def source_only(tmp_path):
    """A copy of the package without compiled libraries."""
    package = tmp_path / 'ops_dcnv3'
    package.mkdir()
    for source in PACKAGE.glob('*.py'):
        (package / source.name).write_text(source.read_text())
    return tmp_path


def test_without_libraries(source_only):
    """Everything works through the reference; one warning says what to do."""
    code = """
import torch, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import ops_dcnv3
    info = ops_dcnv3.build_info()
    assert info['compiled'] is False and info['cuda'] is False, info
    layer = ops_dcnv3.DCNv3(16, groups=2)
    x = torch.randn(2, 5, 7, 16, requires_grad=True)
    layer(layer(x)).sum().backward()
    assert x.grad.isfinite().all()
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
texts = [str(w.message) for w in caught if 'ops_dcnv3' in str(w.message)]
assert len(texts) == 1, texts
print(ops_dcnv3.__file__, texts[0])
"""
    output = run_python(code, source_only)
    assert str(source_only) in output
    assert 'were not built' in output
    assert 'C++ compiler' in output
    assert '--no-build-isolation' in output


def test_broken_library_is_reported(source_only):
    (source_only / 'ops_dcnv3' / '_cpu.abi3.so').write_bytes(b'not a library')
    output = run_python('import ops_dcnv3', source_only)
    assert 'does not load' in output
    assert 'Rebuild it' in output


def test_old_torch(source_only):
    code = """
import torch
torch.__version__ = '2.9.1+cpu'
import ops_dcnv3
print(ops_dcnv3.build_info()['missing']['cpu'])
"""
    assert '2.9.1+cpu is older than 2.10' in run_python(code, source_only)
