# SPDX-License-Identifier: Apache-2.0
"""The code of the CUDA kernels, run on the CPU thread by thread.

Most machines that test this project have no GPU. The launchers and the hardware are
not covered here (tests with ``device=cuda`` do that), the choice of a kernel, the
arithmetic and the indexing are: inputs lie between walls of NaN, outputs between walls
that must stay as they are.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
from ctypes import c_bool, c_char, c_double, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch

from ops_dcnv3 import dcnv3_reference
from ops_dcnv3.geometry import make_geometry
from tests.ops import not_finite
from tests.ops.branch import branch, branch_arguments
from tests.ops.cases import CASE_IDS, CASES, Case
from tests.paths import ROOT
from tests.tolerances import BACKWARD, FORWARD, relative_error

HERE = Path(__file__).parent / 'cuda_on_cpu'
CUDA = ROOT / 'ops_dcnv3' / 'csrc' / 'cuda'
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALF = pytest.mark.parametrize('dtype', DTYPES[2:], ids=lambda d: str(d)[6:])
EVERY_DTYPE = pytest.mark.parametrize('dtype', DTYPES, ids=lambda d: str(d)[6:])
SOFTMAX = pytest.mark.parametrize('softmax', [False, True])
WALL = 64
COMPILER = os.environ.get('CXX', 'c++').split()[0]

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason='needs a C++ compiler'
)


class Geometry(ctypes.Structure):
    """dcnv3::Geometry."""

    _fields_ = [
        *((name, c_int64) for name in ('batch', 'height', 'width')),
        *((name, c_int64) for name in ('out_height', 'out_width')),
        *((name, c_int64) for name in ('groups', 'group_channels')),
        *((name, c_int32) for name in ('kernel_h', 'kernel_w')),
        *((name, c_int64) for name in ('stride_h', 'stride_w')),
        *((name, c_int64) for name in ('pad_h', 'pad_w')),
        *((name, c_int64) for name in ('dilation_h', 'dilation_w')),
        ('offset_scale', c_double),
        *((name, c_bool) for name in ('remove_center', 'softmax')),
    ]


class Call(ctypes.Structure):
    """Call of harness.cpp."""

    _fields_ = [
        ('geometry', Geometry),
        *((name, c_void_p) for name in ('input', 'offset', 'mask', 'grad_output')),
        ('results', c_void_p * 3),
        *((name, c_int32) for name in ('scalar', 'point')),
        *((name, c_bool) for name in ('any_taps', 'narrow')),
        *((name, c_bool) for name in ('deterministic', 'reversed')),
        *((('kernel'), c_char * 64), ('error', c_char * 256)),
    ]


class BranchCall(ctypes.Structure):
    """BranchCall of harness.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ('batch', 'height', 'width', 'channels')),
        *((name, c_int64) for name in ('kernel_h', 'kernel_w')),
        ('eps', c_double),
        *(('input', c_void_p), ('parameters', c_void_p * 4), ('output', c_void_p)),
        *((name, c_int32) for name in ('scalar', 'parameter')),
        *(('reversed', c_bool), ('kernel', c_char * 64), ('error', c_char * 256)),
    ]


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp('cuda_on_cpu') / 'harness.so'
    subprocess.run(
        [
            COMPILER,
            *('-O1', '-std=c++17', '-shared', '-fPIC', '-Wall', '-Werror'),
            '-Wno-unknown-pragmas',
            *(f'-I{CUDA}', f'-isystem{Path(torch.__file__).parent / "include"}'),
            *(str(HERE / 'harness.cpp'), '-o', str(path)),
        ],
        check=True,
    )
    return ctypes.CDLL(str(path))


def walled(tensor=None, *, shape=None, dtype=None, fill=float('nan')):
    """Copy a tensor (or make one of ``fill``) between two walls of NaN."""
    shape = tensor.shape if tensor is not None else shape
    dtype = tensor.dtype if tensor is not None else dtype
    size = shape.numel()
    storage = torch.full((size + 2 * WALL,), float('nan'), dtype=dtype)
    inner = storage[WALL : WALL + size].view(shape)
    inner.copy_(tensor) if tensor is not None else inner.fill_(fill)
    return inner, storage


def make_call(tensors, kwargs, softmax=False, **flags):
    """Return a Call with everything but the results."""
    settings = dict(kernel_size=3, stride=1, padding=1, dilation=1)
    settings |= dict(offset_scale=1.0, remove_center=False) | kwargs
    geometry = make_geometry(**settings)
    input, offset = tensors[:2]
    n, h, w, channels = input.shape
    sizes = [n, h, w, *geometry.output_size(h, w)]
    sizes += [geometry.groups, channels // geometry.groups]
    for values in geometry[:4]:
        sizes.extend(values)
    call = Call(**flags)
    call.geometry = Geometry(
        *sizes, geometry.offset_scale, geometry.remove_center, softmax
    )
    call.input, call.offset, call.mask = (x.data_ptr() for x in tensors[:3])
    call.scalar = DTYPES.index(input.dtype)
    call.point = DTYPES.index(offset.dtype)
    return call


def run(library, tensors, kwargs, grad_output=None, kernel=None, **flags):
    """Run the forward kernel, or with ``grad_output`` the backward kernels."""
    backward = grad_output is not None
    sources = [walled(x)[0] for x in (*tensors, *([grad_output] if backward else []))]
    call = make_call(sources, kwargs, **flags)
    g = call.geometry
    input, offset, mask = tensors
    if backward:
        call.grad_output = sources[3].data_ptr()
        acc = torch.promote_types(input.dtype, torch.float32)
        # Sums start at zero; what is written once must overwrite NaN.
        once = flags.get('deterministic', False)
        wanted = [(input.shape, input.dtype, float('nan'))]
        wanted = wanted if once else [(input.shape, acc, 0.0)]
        wanted += [(x.shape, x.dtype, float('nan')) for x in (offset, mask)]
    else:
        shape = torch.Size((g.batch, g.out_height, g.out_width, input.shape[3]))
        wanted = [(shape, input.dtype, float('nan'))]
    results = [walled(shape=s, dtype=d, fill=f) for s, d, f in wanted]
    for i, (inner, _) in enumerate(results):
        call.results[i] = inner.data_ptr()
    status = library.run_on_cpu(ctypes.byref(call))
    assert status == 0, call.error.decode()
    assert kernel in (None, call.kernel.decode())
    for inner, storage in results:
        walls = storage[:WALL], storage[WALL + inner.numel() :]
        assert all(wall.isnan().all() for wall in walls)
    return [inner for inner, _ in results]


def exact(tensors, kwargs, softmax=False, grad_output=None):
    """What the reference says in float64: the output, or the gradients."""
    leaves = [x.detach().double().requires_grad_() for x in tensors]
    input, offset, mask = leaves
    if softmax:
        split = mask.unflatten(-1, (kwargs['groups'], -1))
        mask = split.softmax(-1).flatten(-2)
    output = dcnv3_reference(input, offset, mask, **kwargs)
    if grad_output is None:
        return output
    output.backward(grad_output.double())
    return [x.grad for x in leaves]


def check_forward(library, tensors, kwargs, **flags):
    (output,) = run(library, tensors, kwargs, **flags)
    expected = exact(tensors, kwargs, flags.get('softmax', False))
    assert relative_error(output, expected) < FORWARD[output.dtype]


def check_backward(library, tensors, kwargs, **flags):
    softmax = flags.get('softmax', False)
    shape = exact(tensors, kwargs, softmax).shape
    grad_output = torch.randn(shape).to(tensors[0].dtype)
    expected = exact(tensors, kwargs, softmax, grad_output)
    grads = run(library, tensors, kwargs, grad_output, **flags)
    for grad, wanted in zip(grads, expected, strict=True):
        assert relative_error(grad, wanted) < BACKWARD[grad.dtype]


@SOFTMAX
@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_forward(case, softmax, library):
    for dtype in DTYPES:
        check_forward(library, case.tensors(dtype), case.kwargs, softmax=softmax)


@SOFTMAX
@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_backward(case, softmax, library):
    for dtype in DTYPES:
        tensors = case.tensors(dtype)
        check_backward(library, tensors, case.kwargs, softmax=softmax)


@pytest.mark.parametrize('case', CASES, ids=CASE_IDS)
def test_deterministic(case, library):
    """Without atomics the order of threads and of blocks is no matter."""
    for dtype, softmax in zip(DTYPES, (False, True, True, False), strict=True):
        tensors = case.tensors(dtype)
        flags = dict(deterministic=True, softmax=softmax)
        check_backward(library, tensors, case.kwargs, **flags)
        grad_output = torch.randn(exact(tensors, case.kwargs).shape).to(dtype)
        results = [
            run(library, tensors, case.kwargs, grad_output, reversed=order, **flags)
            for order in (False, True)
        ]
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second)


def test_deterministic_over_many_tiles(library):
    """Tiles that overhang the image, and more channels than a tile has."""
    settings = dict(stride=(2, 1), offset_scale=3.0)
    case = Case('tiles', size=(19, 35), batch=1, groups=1, group_channels=37)
    case.settings = settings
    for dtype in (torch.float64, torch.float16):
        check_backward(library, case.tensors(dtype), case.kwargs, deterministic=True)


def test_order_of_threads_does_not_matter(library):
    """No barrier is missing: outside of atomics no thread waits for luck."""
    for kernel, softmax in itertools.product((3, 5, (3, 5)), (False, True)):
        settings = dict(kernel_size=kernel, padding=2)
        case = Case('order', size=(5, 6), group_channels=24, settings=settings)
        tensors = case.tensors(torch.float32)
        (output,) = run(library, tensors, case.kwargs, softmax=softmax)
        outputs = [output]
        flags = dict(softmax=softmax, reversed=True)
        outputs += run(library, tensors, case.kwargs, **flags)
        assert torch.equal(*outputs)
        grad_output = torch.randn(output.shape)
        results = [
            run(
                library,
                tensors,
                case.kwargs,
                grad_output,
                softmax=softmax,
                reversed=order,
            )[1:]
            for order in (False, True)
        ]
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second)


@SOFTMAX
@EVERY_DTYPE
@pytest.mark.parametrize('size', [3, 5])
def test_kernels_of_fixed_size(size, dtype, softmax, library):
    """The special kernel is chosen where it fits, and all others agree."""
    settings = dict(kernel_size=size, padding=size // 2, dilation=(2, 1))
    settings |= dict(offset_scale=1.5)
    case = Case('fixed', groups=6, group_channels=24, settings=settings)
    tensors = case.tensors(dtype)
    points = 0 if dtype == torch.float64 else size**2
    for check, wide in (
        (check_forward, 16 // dtype.itemsize),
        (check_backward, 16 // max(4, dtype.itemsize)),
    ):
        for flags, kernel in (
            (dict(), f'points {points}, channels {wide}'),
            (dict(any_taps=True), f'points 0, channels {wide}'),
            (dict(narrow=True), 'points 0, channels 1'),
        ):
            flags |= dict(kernel=kernel, softmax=softmax)
            check(library, tensors, case.kwargs, **flags)


@pytest.mark.parametrize('group_channels', [4, 8, 12, 16, 32, 40, 144, 264])
@HALF
def test_wide_and_narrow(group_channels, dtype, library):
    """All teams: of one thread, with idle threads, of a warp in several turns."""
    case = Case('wide', size=(3, 6), groups=2, group_channels=group_channels)
    for settings in (dict(), dict(kernel_size=(3, 5), padding=2)):
        case.settings = settings
        for softmax in (False, True):
            tensors = case.tensors(dtype)
            check_forward(library, tensors, case.kwargs, softmax=softmax)
            check_backward(library, tensors, case.kwargs, softmax=softmax)


@SOFTMAX
@HALF
def test_half_features_with_float_offsets(dtype, softmax, library):
    case = Case('mixed', group_channels=16)
    input, offset, mask = case.tensors(torch.float32)
    tensors = (input.to(dtype), offset, mask)
    check_forward(library, tensors, case.kwargs, softmax=softmax)
    check_backward(library, tensors, case.kwargs, softmax=softmax)
    flags = dict(softmax=softmax, deterministic=True)
    check_backward(library, tensors, case.kwargs, **flags)


@pytest.mark.parametrize('any_taps', [False, True])
@pytest.mark.parametrize('deterministic', [False, True])
def test_bad_positions(deterministic, any_taps, library):
    case = Case('bad', batch=1, group_channels=4)
    input, offset, mask = case.tensors(torch.float32)
    offset[..., 0] = float('nan')
    offset[..., 3] = float('inf')
    offset[..., 5] = -1e30
    mask[..., 0] = float('nan')
    tensors = (input, offset, mask)
    (output,) = run(library, tensors, case.kwargs, any_taps=any_taps)
    assert output.isfinite().all()
    assert relative_error(output, exact(tensors, case.kwargs)) < 1e-6
    flags = dict(deterministic=deterministic, any_taps=any_taps)
    grads = run(library, tensors, case.kwargs, torch.ones_like(output), **flags)
    assert all(x.isfinite().all() for x in grads)
    assert not grads[1][..., :6].any()
    assert not grads[2][..., :3].any()


@pytest.mark.parametrize('any_taps', [False, True])
@pytest.mark.parametrize('deterministic', [False, True])
def test_softmax_counts_points_outside(deterministic, any_taps, library):
    """They add nothing, but take their share; large logits do not overflow."""
    case = Case('outside', batch=1, group_channels=4, spread=9.0)
    input, offset, mask = case.tensors(torch.float32)
    mask = mask * 30 + 200
    tensors = (input, offset, mask)
    flags = dict(softmax=True, any_taps=any_taps)
    check_forward(library, tensors, case.kwargs, **flags)
    flags |= dict(deterministic=deterministic)
    check_backward(library, tensors, case.kwargs, **flags)


@SOFTMAX
@pytest.mark.parametrize('any_taps', [False, True])
@pytest.mark.parametrize('deterministic', [False, True])
def test_not_finite(deterministic, any_taps, softmax, library):
    """NaN and infinity go where the reference has them, and no further."""
    kwargs = not_finite.CASE.kwargs
    flags = dict(any_taps=any_taps, softmax=softmax)
    for operand in not_finite.OPERANDS:
        for value in not_finite.NOT_FINITE:
            *tensors, grad_output = not_finite.tensors_with(
                operand, value, torch.float32
            )
            outputs = run(library, tensors, kwargs, **flags)
            flags_of_backward = flags | dict(deterministic=deterministic)
            outputs += run(library, tensors, kwargs, grad_output, **flags_of_backward)
            expected = [exact(tensors, kwargs, softmax).detach()]
            expected += exact(tensors, kwargs, softmax, grad_output)
            not_finite.assert_same_where_finite(outputs, expected)


@pytest.mark.parametrize('any_taps', [False, True])
def test_softmax_of_nan(any_taps, library):
    """A NaN logit makes its group's output NaN, and no other."""
    case = Case('nan', batch=1, groups=2, group_channels=4)
    input, offset, mask = case.tensors(torch.float32)
    mask[0, 2, 3, 9 + 4] = float('nan')
    flags = dict(softmax=True, any_taps=any_taps)
    (output,) = run(library, (input, offset * 0, mask), case.kwargs, **flags)
    assert output[0, 2, 3, 4:].isnan().all()
    assert output.isnan().sum() == 4


def large_geometry(**sizes):
    values = dict(batch=1, height=8, width=8, out_height=8, out_width=8)
    values |= dict(groups=4, group_channels=16, kernel_h=3, kernel_w=3)
    values |= dict(stride_h=1, stride_w=1, pad_h=1, pad_w=1)
    values |= dict(dilation_h=1, dilation_w=1, offset_scale=1.0)
    return Geometry(**(values | sizes))


def site(library, geometry, index, narrow):
    out = (c_int64 * 5)()
    library.site_on_cpu(ctypes.byref(geometry), c_int64(index), int(narrow), out)
    return tuple(out)


@pytest.mark.parametrize('narrow', [False, True])
@pytest.mark.parametrize('size', [(1, 1), (3, 7), (4, 4), (9, 5), (14, 2)])
def test_every_site_once(size, narrow, library):
    for batch, groups in ((1, 1), (3, 7), (2, 40), (2, 37)):
        h, w = size
        g = large_geometry(batch=batch, out_height=h, out_width=w, groups=groups)
        count = batch * h * w * groups
        sites = [site(library, g, i, narrow) for i in range(count)]
        assert len(set(sites)) == count
        for n, ho, wo, group, q in sites:
            assert 0 <= n < batch
            assert 0 <= ho < h
            assert 0 <= wo < w
            assert 0 <= group < groups
            assert q == ((n * h + ho) * w + wo) * groups + group


@pytest.mark.parametrize(
    'sizes',
    [
        dict(out_height=50_000, out_width=10_737, batch=1, groups=4),
        dict(out_height=7, out_width=300_000_000, batch=1, groups=1),
        dict(out_height=70_001, out_width=70_003, batch=3, groups=5),
        dict(out_height=3, out_width=2**40, batch=1, groups=1),
    ],
)
def test_sites_of_large_tensors(sizes, library):
    """Strips of 4 rows, column by column, in plain Python's integers."""
    g = large_geometry(**sizes)
    h, w, groups = g.out_height, g.out_width, g.groups
    count = g.batch * h * w * groups
    bundle = max(b for b in range(1, groups + 1) if groups % b == 0 and b <= 16)
    for index in (0, 1, count // 7, count // 2 + 1, count - 2, count - 1):
        rest, in_bundle = divmod(index, bundle)
        rest, pixel = divmod(rest, h * w)
        n, bundle_index = divmod(rest, groups // bundle)
        strip, in_strip = divmod(pixel, 4 * w)
        wo, row = divmod(in_strip, min(4, h - 4 * strip))
        ho, group = 4 * strip + row, bundle_index * bundle + in_bundle
        expected = (n, ho, wo, group, ((n * h + ho) * w + wo) * groups + group)
        for narrow in [False] + [True] * bool(library.fits_on_cpu(ctypes.byref(g))):
            assert site(library, g, index, narrow) == expected


def test_limits_of_32_bits(library):
    def fits(**sizes):
        return bool(library.fits_on_cpu(ctypes.byref(large_geometry(**sizes))))

    assert fits()
    assert fits(height=4000, width=8000)
    assert not fits(height=5800, width=5800)  # elements of an image
    assert not fits(height=2**26, width=1, groups=1, group_channels=1)  # places
    assert fits(batch=20_000, out_height=128, out_width=128, groups=6)
    assert not fits(batch=20_000, out_height=128, out_width=128, groups=7)  # sites
    assert not fits(height=2**40, width=2**40)
    assert not fits(batch=2**40)


def test_more_than_2_31_elements(library):
    """Few samples of a huge image; its untouched pages take no memory."""
    side = 5800
    shape = (1, side, side, 64)
    input = torch.from_numpy(np.zeros(shape, np.float16))
    assert input.numel() > 2**31
    last = torch.randn(1, 9, 10, 64).half()
    input[:, -9:, -10:] = last
    kwargs = dict(groups=4, stride=side - 3, padding=0)
    # Positions near 5800 that float32 holds exactly, between pixels.
    offset = ((torch.randn(1, 2, 2, 4 * 9 * 2) * 8).round() / 8 - 2.0625).half()
    mask = torch.randn(1, 2, 2, 4 * 9).half()
    output = torch.full((1, 2, 2, 64), float('nan'), dtype=torch.float16)
    call = make_call((input, offset, mask), kwargs)
    call.results[0] = output.data_ptr()
    assert library.run_on_cpu(ctypes.byref(call)) == 0, call.error
    assert call.kernel == b'points 0, channels 8'
    # The last output pixel sees nothing but the last corner of the image.
    part = [x[:, 1:, 1:] for x in (offset, mask)]
    shifted = part[0].unflatten(-1, (-1, 2)) + torch.tensor([7, 6])
    expected = exact(
        (last, shifted.flatten(-2), part[1]), dict(groups=4, padding=0, stride=99)
    )
    assert relative_error(output[:, 1:, 1:], expected) < FORWARD[torch.float16]

    grad_output = torch.randn(output.shape).half()
    results = [torch.from_numpy(np.zeros(shape, np.float32))]
    results += [torch.zeros_like(x) for x in (offset, mask)]
    call.grad_output = grad_output.data_ptr()
    for i, result in enumerate(results):
        call.results[i] = result.data_ptr()
    assert library.run_on_cpu(ctypes.byref(call)) == 0, call.error
    wanted = exact(
        (last, shifted.flatten(-2), part[1]),
        dict(groups=4, padding=0, stride=99),
        grad_output=grad_output[:, 1:, 1:],
    )
    actual = results[0][:, -9:, -10:], results[1][:, 1:, 1:], results[2][:, 1:, 1:]
    for grad, expected in zip(actual, wanted, strict=True):
        assert relative_error(grad, expected) < BACKWARD[torch.float16]


BRANCHES = [
    # In single precision; more channels a thread in half precision.
    ((2, 5, 9, 16), (3, 3), 'side 3, channels 4, run 4'),
    ((1, 9, 13, 40), (3, 3), 'side 3, channels 4, run 4'),  # 40: no power of two
    ((2, 1, 1, 8), (3, 3), 'side 3, channels 4, run 4'),
    ((1, 3, 2, 264), (3, 3), 'side 3, channels 4, run 4'),  # more than a warp
    ((1, 6, 5, 24), (5, 5), 'side 5, channels 2, run 4'),
    # More vectors than threads, as in InternImage-H.
    ((1, 4, 5, 640), (5, 5), 'side 5, channels 2, run 4'),
    ((1, 2, 3, 3080), (5, 5), 'side 5, channels 2, run 1'),  # as in InternImage-G
    ((1, 7, 6, 21), (3, 3), 'side 0, channels 1, run 1'),
    ((1, 4, 5, 16), (3, 5), 'side 0, channels 1, run 1'),
    ((1, 2, 3, 3), (7, 5), 'side 0, channels 1, run 1'),  # larger than the image
]


def run_branch(library, tensors, backwards=False):
    """Run the kernel of the branch; return its output and which kernel it was."""
    input, weight = tensors[:2]
    call = BranchCall(*input.shape, *weight.shape[2:], 1e-6, reversed=backwards)
    sources = [walled(x)[0] for x in tensors]
    call.input = sources[0].data_ptr()
    for i, source in enumerate(sources[1:]):
        call.parameters[i] = source.data_ptr()
    call.scalar, call.parameter = (DTYPES.index(x.dtype) for x in (input, weight))
    output, storage = walled(shape=input.shape, dtype=input.dtype)
    call.output = output.data_ptr()
    status = library.branch_on_cpu(ctypes.byref(call))
    assert status == 0, call.error.decode()
    for wall in storage[:WALL], storage[WALL + output.numel() :]:
        assert wall.isnan().all()
    return output, call.kernel.decode()


@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize(('size', 'kernel', 'expected_kernel'), BRANCHES)
def test_branch(size, kernel, expected_kernel, backwards, library):
    for dtype in DTYPES:
        tensors = branch_arguments(size, kernel, dtype)
        output, kernel_name = run_branch(library, tensors, backwards)
        if dtype == torch.float32:
            assert kernel_name == expected_kernel
        expected = branch(*(x.double() for x in tensors), 1e-6)
        assert relative_error(output, expected) < FORWARD[dtype]


@HALF
@pytest.mark.parametrize('kernel', [(3, 3), (5, 5)])
def test_branch_with_float_parameters(dtype, kernel, library):
    """As under autocast."""
    input, *parameters = branch_arguments((2, 5, 9, 16), kernel)
    input = input.to(dtype)
    output, _ = run_branch(library, [input, *parameters])
    expected = branch(*(x.double() for x in (input, *parameters)), 1e-6)
    assert relative_error(output, expected) < FORWARD[dtype]


def test_branch_of_large_mean(library):
    """The variance does not come from a difference of large squares."""
    tensors = branch_arguments((1, 4, 6, 16), (3, 3))
    tensors[2] += 1000
    output, _ = run_branch(library, tensors)
    expected = branch(*(x.double() for x in tensors), 1e-6)
    assert relative_error(output, expected) < 1e-4  # of the sums around 1000
