# SPDX-License-Identifier: Apache-2.0
"""Time the layer DCNv3: projections, depthwise branch, operator."""

from collections.abc import Sequence
from pathlib import Path

import published
import torch
from models import (
    FORWARD,
    TRAINING,
    check_all,
    forward_call,
    spread_points,
    training_call,
    with_operator,
)
from peers import REFERENCE
from record import OURS, Benchmark, make_parser, new_row
from shapes import ARCHS, Shape, find_shapes
from torch import nn

from internimage.backbone import InternImage
from ops_dcnv3 import DCNv3

PUBLISHED = 'published layer'


def make_layer(shape: Shape) -> DCNv3:
    """Return the layer of a stage, in float32 on the CPU."""
    arch = InternImage.arch_settings.get(ARCHS.get(shape.name.rstrip('1234'), ''), {})
    layer = DCNv3(
        shape.channels,
        groups=shape.groups,
        offset_scale=shape.offset_scale,
        dw_kernel_size=arch.get('dw_kernel_size'),
        center_feature_scale=arch.get('center_feature_scale', False),
    )
    spread_points(layer)
    return layer


def make_published(benchmark: Benchmark, ours: DCNv3) -> nn.Module:
    """Return the published layer with our weights, whose names are the same.

    Raises:
        ImportError: It is not there.
    """
    kind = published.load_layer(benchmark.args.published, benchmark.device)
    layer = kind(
        channels=ours.channels,
        group=ours.geometry.groups,
        offset_scale=ours.geometry.offset_scale,
        dw_kernel_size=ours.get_parameter('dw_conv.0.weight').shape[-1],
        center_feature_scale=ours.center_feature_scale,
    )
    layer.load_state_dict(ours.state_dict())
    return layer.to(benchmark.device, benchmark.dtype)


def run_case(benchmark: Benchmark, shape: Shape) -> None:
    """Check and time all participants on one shape."""
    ours = make_layer(shape).to(benchmark.device, benchmark.dtype)
    size = (shape.batch, shape.height, shape.width, shape.channels)
    x = torch.randn(size, device=benchmark.device).to(benchmark.dtype)
    layers: dict[str, nn.Module] = {OURS: ours}
    missing = {}
    if benchmark.wants(REFERENCE):
        layers[REFERENCE] = ours
    if benchmark.wants(PUBLISHED):
        try:
            layers[PUBLISHED] = make_published(benchmark, ours)
        except ImportError as error:
            missing[PUBLISHED] = str(error)
    runs = {name: with_operator(name, layer) for name, layer in layers.items()}
    errors, wrong = check_all({**runs}, ours, x)
    missing |= wrong
    for which in benchmark.args.passes:
        calls, rows = {}, {}
        for name in [*runs, *(name for name in missing if name not in runs)]:
            row = new_row(shape.name, shape.batch, which, name, size=list(shape[2:6]))
            rows[name] = row | {'error': errors.get(name)}
            if name in missing:
                rows[name]['missing'] = missing[name]
            elif which == FORWARD:
                calls[name] = forward_call(runs[name], x)
            else:
                calls[name] = training_call(runs[name], layers[name], x)
        benchmark.time(calls, rows)


def main(argv: Sequence[str] | None = None) -> Path:
    """Run and write; return the path of the JSON file."""
    parser = make_parser('Time the layer around the operator.')
    parser.add_argument('--shapes', nargs='+', default=['t'], help='as bench_operator')
    parser.add_argument(
        '--image', nargs=2, type=int, default=(224, 224), metavar=('H', 'W')
    )
    parser.add_argument(
        '--passes', nargs='+', choices=[FORWARD, TRAINING], default=[FORWARD, TRAINING]
    )
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    benchmark = Benchmark('module', args)
    done = set()
    for batch in args.batch:
        for shape in find_shapes(args.shapes, batch, tuple(args.image)):
            if shape not in done:
                benchmark.attempt(run_case, shape)
            done.add(shape)
    return benchmark.write()


if __name__ == '__main__':
    main()
