# SPDX-License-Identifier: Apache-2.0
"""Time the operator alone against every other way to compute it.

Each participant is first compared with the float64 reference. Ours must agree, or
nothing is timed; another one that does not is left out.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from peers import Adapted, Problem, find_adapters, make_problem
from record import (
    OURS,
    Benchmark,
    Row,
    WrongResultError,
    make_parser,
    new_row,
    relative_error,
)
from shapes import Shape, find_shapes
from timing import Call, copy_bandwidth, say
from torch import Tensor

from ops_dcnv3 import dcnv3_reference

FORWARD = 'forward'
BOTH = 'forward+backward'

#: Relative errors (norms) that are allowed to ours. One rounding of the result; sums
#: in float32 and positions that lose digits with their distance from zero.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 8e-3,
    torch.float16: 2e-3,
}
#: Peers may compute positions as fractions of the image, or sum in half precision.
PEER_FACTOR = 50


def check(problem: Problem, adapted: Adapted, backward: bool) -> float:
    """Return a participant's largest relative error, of its output and gradients.

    Compared are the first and the last image: the reference in float64 needs about 16
    times the memory of what it is given.
    """
    wanted = [x.double() for x in (problem.input, problem.offset, problem.mask)]
    tensors = [x.detach().requires_grad_(backward) for x in adapted.tensors]
    with torch.set_grad_enabled(backward):
        output = adapted.run(*tensors)
    grad = torch.randn_like(output)
    actual = [adapted.output(output.detach())]
    if backward:
        actual += adapted.grads(torch.autograd.grad(output, tensors, grad))
    errors = []
    for image in sorted({0, problem.shape.batch - 1}):
        part = slice(image, image + 1)
        inputs = [x[part].requires_grad_(backward) for x in wanted]
        x, offset, mask = inputs
        with torch.set_grad_enabled(backward):
            expected = dcnv3_reference(
                x, offset, problem.weights(mask), **problem.settings
            )
        results = [expected.detach()]
        if backward:
            own_grad = adapted.output(grad)[part].double()
            results += torch.autograd.grad(expected, inputs, own_grad)
        errors += [
            relative_error(mine[part], true)
            for mine, true in zip(actual, results, strict=True)
        ]
    return max(errors)


def make_calls(adapted: Adapted) -> dict[str, Call]:
    """Return what is timed, for each pass."""
    tensors = [x.detach() for x in adapted.tensors]
    leaves = [x.detach().requires_grad_() for x in adapted.tensors]
    with torch.no_grad():
        grad = torch.randn_like(adapted.run(*tensors))

    def forward() -> None:
        with torch.no_grad():
            adapted.run(*tensors)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(adapted.run(*leaves), leaves, grad)

    return {FORWARD: forward, BOTH: both}


def run_case(
    benchmark: Benchmark, shape: Shape, softmax: bool, bandwidth: float
) -> None:
    """Check and time all participants on one shape."""
    problem = make_problem(shape, benchmark.device, benchmark.dtype, softmax)
    adapters = find_adapters(benchmark.args.published, benchmark.device)
    tolerance = TOLERANCE[benchmark.dtype]
    missing: dict[str, str] = {}
    errors: dict[str, float] = {}
    calls: dict[str, dict[str, Call]] = {FORWARD: {}, BOTH: {}}
    for name, adapter in adapters.items():
        if name != OURS and not benchmark.wants(name):
            continue
        if isinstance(adapter, str):
            missing[name] = adapter
            continue
        try:
            adapted = adapter(problem)
            errors[name] = check(problem, adapted, backward=True)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if name == OURS:
                raise
            missing[name] = f'does not run: {str(error).splitlines()[0]}'
            continue
        if errors[name] > tolerance * (1 if name == OURS else PEER_FACTOR):
            missing[name] = f'wrong result: error {errors[name]:.1e}'
            if name == OURS:
                raise WrongResultError(f'{shape}: {missing[name]} > {tolerance:.0e}')
            continue
        for which, call in make_calls(adapted).items():
            calls[which][name] = call
    for which in benchmark.args.passes:
        rows = {}
        for name in [name for name in adapters if name in errors.keys() | missing]:
            row = new_row(shape.name, shape.batch, which, name, size=list(shape[2:6]))
            known = {'missing': missing[name]} if name in missing else {}
            rows[name] = row | known | {'error': errors.get(name)}
        benchmark.time(
            calls[which],
            rows,
            partial(add_floor, shape=shape, dtype=benchmark.dtype, bandwidth=bandwidth),
        )


def add_floor(row: Row, shape: Shape, dtype: torch.dtype, bandwidth: float) -> None:
    """Add what memory allows to the row of a participant that was timed."""
    values = shape.values(backward=False)
    if row['pass'] == BOTH:
        values += shape.values(backward=True)
    moved = values * dtype.itemsize
    row['floor_bytes'] = moved
    row['floor_s'] = moved / bandwidth
    row['floor_ratio'] = row['median_s'] * bandwidth / moved
    row['gb_per_s'] = moved / row['median_s'] / 1e9


def run_growth(benchmark: Benchmark, sizes: list[int], batches: list[int]) -> None:
    """Time ours on the first stage of T as images and batches grow.

    The time of a pixel should stay the same, but for what a call costs and for what
    no longer fits into caches.
    """
    cases = [('size', 1, size) for size in sizes]
    cases += [('batch', batch, 224) for batch in batches]
    for name, batch, size in cases:
        shape = find_shapes(['t1'], batch, (size, size))[0]
        problem = make_problem(shape, benchmark.device, benchmark.dtype, softmax=False)
        adapted = find_adapters(None, benchmark.device)[OURS]
        assert not isinstance(adapted, str)
        error = check(problem, adapted(problem), backward=False)
        if error > TOLERANCE[benchmark.dtype]:
            raise WrongResultError(f'{shape}: error {error:.1e}')
        calls = make_calls(adapted(problem))
        for which in benchmark.args.passes:
            row = new_row(f'growth of {name}: {size}', batch, which, OURS, error=error)
            benchmark.time(
                {OURS: calls[which]},
                {OURS: row},
                partial(add_pixel_time, pixels=shape.pixels),
            )
            say(f'{"":51}{row["ns_per_pixel"]:.1f} ns per pixel of the map')


def add_pixel_time(row: Row, pixels: int) -> None:
    """Add how long a pixel of the map takes."""
    row['ns_per_pixel'] = row['median_s'] / pixels * 1e9


def main(argv: Sequence[str] | None = None) -> Path:
    """Run and write; return the path of the JSON file."""
    parser = make_parser('Time the operator against every other way to compute it.')
    parser.add_argument(
        '--shapes',
        nargs='+',
        default=['t'],
        help="t, b, l, h (all stages), or one: 't1', '64x56x56x128'",
    )
    parser.add_argument(
        '--image', nargs=2, type=int, default=(224, 224), metavar=('H', 'W')
    )
    parser.add_argument(
        '--passes', nargs='+', choices=[FORWARD, BOTH], default=[FORWARD, BOTH]
    )
    parser.add_argument(
        '--softmax',
        action='store_true',
        help='everybody gets masks before their softmax, and has to take it',
    )
    parser.add_argument(
        '--growth', action='store_true', help='also time growing images and batches'
    )
    parser.add_argument(
        '--growth-sizes', nargs='*', type=int, default=[224, 448, 896, 1344, 2048]
    )
    parser.add_argument('--growth-batches', nargs='*', type=int, default=[1, 4, 16, 64])
    parser.add_argument(
        '--copy-mib',
        type=int,
        default=256,
        help='size of the copy that gives the floor',
    )
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    benchmark = Benchmark('operator-softmax' if args.softmax else 'operator', args)
    bandwidth = copy_bandwidth(benchmark.device, args.copy_mib * 2**20)
    benchmark.machine['copy_gb_per_s'] = round(bandwidth / 1e9, 1)
    say(f'{"copy":14}{bandwidth / 1e9:.1f} GB/s, read and written\n')
    done = set()
    for batch in args.batch:
        for shape in find_shapes(args.shapes, batch, tuple(args.image)):
            if shape not in done:  # the paper's shape has a batch of its own
                benchmark.attempt(run_case, shape, args.softmax, bandwidth)
            done.add(shape)
    if args.growth:
        run_growth(benchmark, args.growth_sizes, args.growth_batches)
    return benchmark.write()


if __name__ == '__main__':
    main()
