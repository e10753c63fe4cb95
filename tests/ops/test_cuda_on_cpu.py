# SPDX-License-Identifier: Apache-2.0
"""The code of the CUDA kernels, run on the CPU lane by lane.

Most machines that test this project have no GPU. The launchers and the hardware are
not covered here (tests with ``device=cuda`` do that), the arithmetic and the indexing
are: inputs lie between walls of NaN, outputs between walls that must stay as they are.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ops_dcnv3 import dcnv3, dcnv3_reference
from ops_dcnv3.geometry import make_geometry
from tests.ops.cases import CASE_IDS, CASES, Case
from tests.tolerances import BACKWARD, FORWARD, relative_error

HERE = Path(__file__).parent / 'cuda_on_cpu'
CUDA = Path(__file__).parents[2] / 'ops_dcnv3' / 'csrc' / 'cuda'
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WALL = 64
COMPILER = os.environ.get('CXX', 'c++').split()[0]

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason='needs a C++ compiler'
)


@pytest.fixture(scope='module')
def run_on_cpu(tmp_path_factory):
    library = tmp_path_factory.mktemp('cuda_on_cpu') / 'harness.so'
    subprocess.run(
        [
            COMPILER,
            *('-O1', '-std=c++17', '-shared', '-fPIC', '-Wall', '-Werror'),
            '-Wno-unknown-pragmas',
            *(f'-I{CUDA}', f'-isystem{Path(torch.__file__).parent / "include"}'),
            *(str(HERE / 'harness.cpp'), '-o', str(library)),
        ],
        check=True,
    )
    return ctypes.CDLL(str(library)).run_on_cpu


def walled(tensor=None, *, shape=None, dtype=None, fill=float('nan')):
    """Copy a tensor (or make one of ``fill``) between two walls of NaN."""
    shape = tensor.shape if tensor is not None else shape
    dtype = tensor.dtype if tensor is not None else dtype
    size = shape.numel()
    storage = torch.full((size + 2 * WALL,), float('nan'), dtype=dtype)
    inner = storage[WALL : WALL + size].view(shape)
    inner.copy_(tensor) if tensor is not None else inner.fill_(fill)
    return inner, storage


def call(run_on_cpu, tensors, kwargs, width, grad_output=None):
    """Run the forward kernel, or with ``grad_output`` the backward kernel."""
    settings = dict(kernel_size=3, stride=1, padding=1, dilation=1)
    settings |= dict(offset_scale=1.0, remove_center=False) | kwargs
    geometry = make_geometry(**settings)
    input, offset, mask = tensors
    n, h, w, channels = input.shape
    out_h, out_w = geometry.output_size(h, w)
    sizes = [n, h, w, out_h, out_w, geometry.groups, channels // geometry.groups]
    for values in geometry[:4]:
        sizes.extend(values)
    acc = torch.promote_types(input.dtype, torch.float32)
    if grad_output is None:
        wanted = [(torch.Size((n, out_h, out_w, channels)), input.dtype, float('nan'))]
    else:
        # Sums start at zero; what is written once must overwrite NaN.
        wanted = [(input.shape, acc, 0.0)]
        wanted += [(x.shape, x.dtype, float('nan')) for x in (offset, mask)]
    results = [walled(shape=s, dtype=d, fill=f) for s, d, f in wanted]
    sources = [
        walled(x) for x in (*tensors, *([] if grad_output is None else [grad_output]))
    ]
    error = ctypes.create_string_buffer(256)
    pointers = [x.data_ptr() for x, _ in sources] + [None] * (4 - len(sources))
    status = run_on_cpu(
        (ctypes.c_int64 * len(sizes))(*sizes),
        ctypes.c_double(geometry.offset_scale),
        int(geometry.remove_center),
        DTYPES.index(input.dtype),
        DTYPES.index(offset.dtype),
        width,
        (ctypes.c_void_p * 4)(*pointers),
        (ctypes.c_void_p * 3)(*[x.data_ptr() for x, _ in results]),
        error,
    )
    assert status == 0, error.value.decode()
    for inner, storage in results:
        walls = storage[:WALL], storage[WALL + inner.numel() :]
        assert all(wall.isnan().all() for wall in walls)
    return [inner for inner, _ in results]


def team_size(group_channels):
    """The launcher's choice: a power of two, up to a warp."""
    return min(32, 1 << (group_channels - 1).bit_length())


@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_forward(case, run_on_cpu):
    for dtype in DTYPES:
        tensors = case.tensors(dtype)
        (output,) = call(run_on_cpu, tensors, case.kwargs, width=1)
        expected = dcnv3(*tensors, **case.kwargs)
        assert relative_error(output, expected) < FORWARD[dtype], dtype


@pytest.mark.parametrize('dtype', DTYPES, ids=lambda d: str(d)[6:])
def test_forward_with_wide_loads(dtype, run_on_cpu):
    case = Case('wide', groups=2, group_channels=24, settings=dict(kernel_size=(3, 5)))
    tensors = case.tensors(dtype)
    (output,) = call(run_on_cpu, tensors, case.kwargs, width=16 // dtype.itemsize)
    assert relative_error(output, dcnv3(*tensors, **case.kwargs)) < FORWARD[dtype]


@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_backward(case, run_on_cpu):
    for dtype in DTYPES:
        check_backward(case, case.tensors(dtype), run_on_cpu, case.group_channels)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_features_with_float_offsets(dtype, run_on_cpu):
    case = Case('mixed', group_channels=16)
    input, offset, mask = case.tensors(torch.float32)
    tensors = (input.to(dtype), offset, mask)
    (output,) = call(run_on_cpu, tensors, case.kwargs, width=8)
    assert relative_error(output, dcnv3(*tensors, **case.kwargs)) < FORWARD[dtype]
    check_backward(case, tensors, run_on_cpu, 16)


def check_backward(case, tensors, run_on_cpu, group_channels):
    leaves = [x.double().requires_grad_() for x in tensors]
    output = dcnv3_reference(*leaves, **case.kwargs)
    grad_output = torch.randn(output.shape).to(tensors[0].dtype)
    output.backward(grad_output.double())
    width = team_size(group_channels)
    grads = call(run_on_cpu, tensors, case.kwargs, width, grad_output)
    for leaf, grad in zip(leaves, grads, strict=True):
        assert relative_error(grad, leaf.grad) < BACKWARD[grad.dtype]


def test_bad_positions(run_on_cpu):
    case = Case('bad', batch=1)
    input, offset, mask = case.tensors(torch.float32)
    offset[..., 0] = float('nan')
    offset[..., 3] = float('inf')
    offset[..., 5] = -1e30
    mask[..., 0] = float('nan')
    tensors = (input, offset, mask)
    (output,) = call(run_on_cpu, tensors, case.kwargs, width=1)
    assert torch.equal(output.isfinite(), torch.ones_like(output, dtype=torch.bool))
    assert relative_error(output, dcnv3(*tensors, **case.kwargs)) < 1e-6
    grads = call(run_on_cpu, tensors, case.kwargs, 8, torch.ones_like(output))
    assert all(x.isfinite().all() for x in grads)
    assert not grads[1][..., :6].any()
    assert not grads[2][..., :3].any()
