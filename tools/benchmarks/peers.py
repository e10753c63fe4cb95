# SPDX-License-Identifier: Apache-2.0
"""Who can be compared: each as a call that computes the same thing as ours.

Peers are used where they can be imported, and are named as missing otherwise. None of
their code is here; what their functions take is. Each gets tensors in its own layout
beforehand, so that no conversion is timed.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import published
import torch
from record import OURS
from shapes import Shape
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ops_dcnv3 import dcnv3, dcnv3_reference, dcnv3_softmax, library

REFERENCE = 'PyTorch reference'
PUBLISHED_PATH = 'published PyTorch path'
PUBLISHED_V3 = 'published DCNv3'
PUBLISHED_V4 = 'published DCNv4'
#: Of a layer or a model.
PUBLISHED = 'published code'
MMCV = 'mmcv DCNv2'

Tensors = tuple[Tensor, ...]


class Problem(NamedTuple):
    """One call of the operator, with its arguments.

    ``input`` is ``(N, H, W, C)``, ``offset`` ``(N, H, W, G*P*2)``, ``mask``
    ``(N, H, W, G*P)``: weights, or with ``softmax`` what becomes weights by it.
    """

    shape: Shape
    input: Tensor
    offset: Tensor
    mask: Tensor
    softmax: bool

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of ``dcnv3``."""
        return {'groups': self.shape.groups, 'offset_scale': self.shape.offset_scale}

    def weights(self, mask: Tensor) -> Tensor:
        """Return the weights of the points, ``(N, H, W, G*P)``."""
        if not self.softmax:
            return mask
        mask = mask.unflatten(-1, (self.shape.groups, self.shape.points))
        return F.softmax(mask, -1).flatten(-2)


class Adapted(NamedTuple):
    """A participant: a function of its own tensors, and the way back to our layout."""

    tensors: Tensors
    run: Callable[..., Tensor]
    output: Callable[[Tensor], Tensor] = lambda output: output
    grads: Callable[[Tensors], Tensors] = lambda grads: grads


Adapter = Callable[[Problem], Adapted]


def make_problem(
    shape: Shape, device: torch.device, dtype: torch.dtype, softmax: bool
) -> Problem:
    """Draw random arguments.

    Points are about a pixel from the regular grid, and never close to a pixel's
    centre: gradients jump there, and rounding would decide to which side.
    """
    n, h, w, c = shape.batch, shape.height, shape.width, shape.channels
    points = shape.groups * shape.points
    shift = torch.randn(n, h, w, points * 2, device=device).floor()
    shift += torch.rand_like(shift) * 0.9 + 0.05
    logits = torch.randn(n, h, w, points, device=device)
    problem = Problem(
        shape,
        torch.randn(n, h, w, c, device=device).to(dtype),
        (shift / shape.offset_scale).to(dtype),
        logits.to(dtype),
        True,
    )
    if softmax:
        return problem
    return problem._replace(mask=problem.weights(logits).to(dtype), softmax=False)


def _layout(shape: Shape) -> tuple[int, ...]:
    """Return what all published functions take: kernel to dilation, groups, D."""
    return 3, 3, 1, 1, 1, 1, 1, 1, shape.groups, shape.channels // shape.groups


def adapt_ours(problem: Problem) -> Adapted:
    """Adapt the operator of this project, which takes the softmax itself."""
    ours = dcnv3_softmax if problem.softmax else dcnv3
    return Adapted(
        (problem.input, problem.offset, problem.mask),
        lambda x, offset, mask: ours(x, offset, mask, **problem.settings),
    )


def adapt_reference(problem: Problem) -> Adapted:
    """Adapt our definition in plain PyTorch."""
    return Adapted(
        (problem.input, problem.offset, problem.mask),
        lambda x, offset, mask: dcnv3_reference(
            x, offset, problem.weights(mask), **problem.settings
        ),
    )


def adapt_mmcv(problem: Problem) -> Adapted:
    """Adapt modulated_deform_conv2d of mmcv, with identity matrices as weights.

    Its maps are channels first, its points row-major, its pairs (y, x), and it scales
    no offsets. Each group is a group of the convolution as well.
    """
    from mmcv.ops import modulated_deform_conv2d

    n, h, w, c = problem.input.shape
    groups, scale = problem.shape.groups, problem.shape.offset_scale
    taps = torch.arange(3, device=problem.input.device) - 1
    grid = torch.stack(torch.meshgrid(taps, taps, indexing='ij'), -1)  # column, row

    def points_first(x: Tensor) -> Tensor:
        # (N, H, W, G * columns * rows * Z) -> (N, G * rows * columns * Z, H, W)
        x = x.reshape(n, h, w, groups, 3, 3, -1).permute(0, 3, 5, 4, 6, 1, 2)
        return x.flip(4).reshape(n, -1, h, w).contiguous()

    def points_last(x: Tensor) -> Tensor:
        x = x.reshape(n, groups, 3, 3, -1, h, w).flip(4)
        return x.permute(0, 5, 6, 1, 3, 2, 4).reshape(n, h, w, -1)

    shift = problem.offset.reshape(n, h, w, groups, 3, 3, 2) * scale
    shift = shift + (scale - 1) * grid.to(shift.dtype)
    weight = torch.eye(c // groups, device=taps.device, dtype=problem.input.dtype)
    weight = weight.repeat(groups, 1)[..., None, None].expand(-1, -1, 3, 3).contiguous()

    def run(x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        if problem.softmax:
            mask = F.softmax(mask.unflatten(1, (groups, 9)), 2).flatten(1, 2)
        return modulated_deform_conv2d(
            x, offset, mask, weight, None, 1, 1, 1, groups, groups
        )

    return Adapted(
        (
            problem.input.permute(0, 3, 1, 2).contiguous(),
            points_first(shift),
            points_first(problem.mask),
        ),
        run,
        lambda output: output.permute(0, 2, 3, 1),
        lambda grads: (
            grads[0].permute(0, 2, 3, 1),
            points_last(grads[1]) * scale,
            points_last(grads[2]),
        ),
    )


def adapt_published_path(core: Callable[..., Tensor]) -> Adapter:
    """Return an adapter of ``dcnv3_core_pytorch``, of detection or classification."""
    takes_remove_center = 'remove_center' in inspect.signature(core).parameters
    more = (False,) if takes_remove_center else ()

    def adapt(problem: Problem) -> Adapted:
        shape = problem.shape
        settings = (*_layout(shape), shape.offset_scale, *more)
        return Adapted(
            (problem.input, problem.offset, problem.mask),
            lambda x, offset, mask: core(x, offset, problem.weights(mask), *settings),
        )

    return adapt


class _CompiledV3(torch.autograd.Function):
    """The two functions of the published extension, as one with gradients."""

    @staticmethod
    def forward(
        ctx: Any, module: ModuleType, settings: tuple, *tensors: Tensor
    ) -> Tensor:
        ctx.module, ctx.settings = module, settings
        ctx.save_for_backward(*tensors)
        # Before what later versions add: at most how many images at once.
        steps = tensors[0].shape[0]
        return module.dcnv3_forward(*tensors, *settings, steps, *_remove_center(module))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        tensors, grad = ctx.saved_tensors, grad.contiguous()
        steps = tensors[0].shape[0]
        grads = ctx.module.dcnv3_backward(
            *tensors, *ctx.settings, grad, steps, *_remove_center(ctx.module)
        )
        return None, None, *grads


def _remove_center(module: ModuleType) -> tuple[bool, ...]:
    """Return a 16th argument, where the extension is of a version that has it."""
    signature = module.dcnv3_forward.__doc__ or ''
    return (False,) if 'arg15' in signature else ()


def adapt_published_v3(module: ModuleType) -> Adapter:
    """Return an adapter of the compiled extension ``DCNv3``."""

    def adapt(problem: Problem) -> Adapted:
        shape = problem.shape
        settings = (*_layout(shape), shape.offset_scale)
        return Adapted(
            (problem.input, problem.offset, problem.mask),
            lambda x, offset, mask: _CompiledV3.apply(
                module, settings, x, offset, problem.weights(mask)
            ),
        )

    return adapt


#: Of a block of threads on CUDA.
_MOST_THREADS = 1024


def launch_of_v4(shape: Shape, stride: int, threads: int) -> tuple[int, int]:
    """Return launch parameters with which DCNv4's kernels work, near those proposed.

    A block takes whole pixels, which must be of one image: their number has to divide
    the image's. The published choice looks at the batch's pixels, and gives wrong
    results or blocks that are too large at some stages.

    Args:
        shape: Of the call.
        stride: Channels of a thread.
        threads: Of a block.
    """
    while shape.channels // stride > _MOST_THREADS:
        stride *= 2
    of_a_pixel = shape.channels // stride
    most = max(1, min(threads, _MOST_THREADS) // of_a_pixel)
    image = shape.height * shape.width
    pixels = max(n for n in range(1, most + 1) if image % n == 0)
    return stride, pixels * of_a_pixel


def adapt_published_v4(module: Any) -> Adapter:
    """Return an adapter of ``DCNv4Function``, which takes offsets and masks as one.

    The last axis has 18 offsets and 9 masks of each group, and zeros up to a multiple
    of 8. Packed beforehand; with softmax, packed in the call, as the published
    InternImage does with ``use_dcn_v4_op``.

    Args:
        module: ``DCNv4.functions.dcnv4_func``, whose tables get launch parameters that
            work where its own do not.
    """
    function = module.DCNv4Function

    def adapt(problem: Problem) -> Adapted:
        shape = problem.shape
        settings = (*_layout(shape), shape.offset_scale, 256, False)
        size = *shape[1:4], shape.groups, shape.channels // shape.groups
        for find, table in (
            (module.findspec, module.TABLE),
            (module.find_spec_bwd, module.BWDTABLE),
        ):
            table['x'.join(map(str, size))] = launch_of_v4(shape, *find(*size))

        def pack(offset: Tensor, mask: Tensor) -> Tensor:
            parts = [x.unflatten(-1, (shape.groups, -1)) for x in (offset, mask)]
            packed = torch.cat(parts, -1).flatten(-2)
            return F.pad(packed, (0, -packed.shape[-1] % 8))

        def unpack(grad: Tensor) -> Tensors:
            grad = grad[..., : shape.groups * 27].unflatten(-1, (shape.groups, 27))
            return grad[..., :18].flatten(-2), grad[..., 18:].flatten(-2)

        if problem.softmax:
            return Adapted(
                (problem.input, problem.offset, problem.mask),
                lambda x, offset, mask: function.apply(
                    x, pack(offset, problem.weights(mask)), *settings
                ),
            )
        return Adapted(
            (problem.input, pack(problem.offset, problem.mask)),
            lambda x, packed: function.apply(x, packed, *settings),
            grads=lambda grads: (grads[0], *unpack(grads[1])),
        )

    return adapt


def find_adapters(
    folder: Path | None, device: torch.device
) -> dict[str, Adapter | str]:
    """Return each participant's adapter, or the reason why it has none.

    Args:
        folder: Of the published ``ops_dcnv3``, if there is one.
        device: Where the operators are to run.
    """
    found: dict[str, Adapter | str] = {OURS: adapt_ours, REFERENCE: adapt_reference}
    try:
        found[PUBLISHED_PATH] = adapt_published_path(published.load_core(folder))
    except ImportError as error:
        found[PUBLISHED_PATH] = f'{error}; --published <folder> gives it'
    try:
        importlib.import_module('mmcv.ops')
        found[MMCV] = adapt_mmcv
    except ImportError as error:
        found[MMCV] = str(error)
    if device.type != 'cuda':
        found[PUBLISHED_V3] = found[PUBLISHED_V4] = 'runs on CUDA only'
        return found
    try:
        module = importlib.import_module('DCNv3')
        found[PUBLISHED_V3] = adapt_published_v3(module)
    except ImportError as error:
        found[PUBLISHED_V3] = str(error)
    try:
        module = importlib.import_module('DCNv4.functions.dcnv4_func')
        found[PUBLISHED_V4] = adapt_published_v4(module)
    except ImportError as error:
        found[PUBLISHED_V4] = str(error)
    return found


@contextmanager
def reference_operator() -> Iterator[None]:
    """Let every DCNv3 layer compute by the PyTorch reference, in this context."""
    kept = library.has_kernels_for, library.warn_slow
    library.has_kernels_for = lambda device_type: False
    library.warn_slow = lambda device_type: None  # type: ignore[assignment]
    try:
        yield
    finally:
        library.has_kernels_for, library.warn_slow = kept
