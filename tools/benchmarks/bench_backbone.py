# SPDX-License-Identifier: Apache-2.0
"""Time a backbone against others of its size, in images per second.

Compared are the maps of the last stage, without a classifier. ConvNeXt and Swin
compute something else, so only ours, with its own operator and with the PyTorch
reference, and the published code are checked.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import published
import torch
from models import (
    FORWARD,
    TRAINING,
    check_all,
    count_copies,
    draw_weights,
    forward_call,
    training_call,
    with_operator,
)
from peers import PUBLISHED, REFERENCE
from record import OURS, Benchmark, Row, make_parser, new_row
from shapes import ARCHS
from timing import say
from torch import Tensor, nn

from internimage.backbone import InternImage


class Model(NamedTuple):
    """One of our backbones.

    ``letter`` is its variant, with the settings of classification but for
    ``overrides``; ``peers`` are models of about its size, by timm's names.
    """

    name: str
    letter: str
    overrides: dict[str, Any]
    peers: tuple[str, ...] = ()


#: What timm has of about the size of a variant.
SIZES = {
    't': ('convnext_tiny', 'swin_tiny_patch4_window7_224'),
    's': ('convnext_small', 'swin_small_patch4_window7_224'),
    'b': ('convnext_base', 'swin_base_patch4_window7_224'),
    'l': ('convnext_large', 'swin_large_patch4_window7_224'),
    'xl': ('convnext_xlarge',),
}
FAMILIES = {'convnext': 'ConvNeXt', 'swin': 'Swin'}
MODELS = {
    letter: Model(letter.upper(), letter, {}, SIZES.get(letter, ())) for letter in ARCHS
} | {
    # As detectors and segmentors have it.
    't-scale': Model('T with layer scale', 't', {'layer_scale': 1.0}, SIZES['t']),
    # The blocks of H in a network that a CPU holds and runs in a second.
    'h-short': Model(
        'H of 12 blocks',
        'h',
        {'depths': (2, 2, 6, 2), 'level2_post_norm_block_ids': (5,)},
    ),
}


class Participant(NamedTuple):
    """A model and the function of it that is timed."""

    model: nn.Module
    run: Callable[[Tensor], Tensor]
    checked: bool


def make_ours(arch: str | dict[str, Any], **overrides: Any) -> InternImage:
    """Return our backbone with random weights, its points spread as by training."""
    model = InternImage(arch, out_indices=(3,), **overrides)
    draw_weights(model)
    return model


def make_published(
    benchmark: Benchmark, compared: Model, ours: InternImage
) -> Participant:
    """Return the published backbone with our weights, whose names are the same.

    Raises:
        ImportError: It is not there.
    """
    settings = InternImage.arch_settings[ARCHS[compared.letter]] | compared.overrides
    model = published.build_backbone(
        benchmark.args.published, benchmark.device, settings
    )
    left = model.load_state_dict(ours.state_dict(), strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    model = model.to(benchmark.device, benchmark.dtype)
    run: Any = model.forward_features_seq_out  # returns the maps, channels last
    return Participant(model, lambda x: run(x)[-1].permute(0, 3, 1, 2), True)


def make_timm(benchmark: Benchmark, name: str, image: Sequence[int]) -> Participant:
    """Return a model of timm with random weights.

    Raises:
        ImportError: timm is not installed.
    """
    import timm

    # Swin is made for one size of image.
    more: dict[str, Any] = {'img_size': tuple(image)} if name.startswith('swin') else {}
    model: Any = timm.create_model(name, num_classes=0, **more)
    model = model.to(benchmark.device, benchmark.dtype)
    return Participant(model, model.forward_features, False)


def find_participants(
    benchmark: Benchmark, compared: Model, ours: InternImage, image: Sequence[int]
) -> tuple[dict[str, Participant], dict[str, str]]:
    """Return who takes part in the comparison, and why others do not."""
    own = Participant(ours, lambda x: ours(x)[-1], True)
    found, missing = {OURS: own}, {}
    if benchmark.wants(REFERENCE):
        found[REFERENCE] = own._replace(run=with_operator(REFERENCE, own.run))
    makers: dict[str, Callable[[], Participant]] = {
        PUBLISHED: partial(make_published, benchmark, compared, ours)
    }
    for name in compared.peers:
        family = FAMILIES[name.split('_')[0]]
        label = f'{family}-{compared.letter.upper()}'
        makers[label] = partial(make_timm, benchmark, name, image)
    for name, make in makers.items():
        if benchmark.wants(name):
            try:
                found[name] = make()
            except ImportError as error:
                missing[name] = str(error)
    return found, missing


def run_case(
    benchmark: Benchmark, compared: Model, batch: int, image: Sequence[int]
) -> None:
    """Check and time all participants on one size of batch."""
    torch.manual_seed(0)
    small = benchmark.args.small
    ours = make_ours(
        dict(channels=16, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8))
        if small
        else ARCHS[compared.letter],
        **({} if small else compared.overrides),
    ).to(benchmark.device, benchmark.dtype)
    x = torch.randn(batch, 3, *image, device=benchmark.device).to(benchmark.dtype)
    found, missing = find_participants(benchmark, compared, ours.eval(), image)
    for participant in found.values():
        participant.model.eval()
    checked = {name: p.run if p.checked else None for name, p in found.items()}
    errors, wrong = check_all(checked, ours, x)
    missing |= wrong
    found = {name: p for name, p in found.items() if name not in wrong}
    name = 'small' if benchmark.args.small else compared.name
    name_of_case = f'InternImage-{name} {image[0]}x{image[1]}'
    for which in benchmark.args.passes:
        calls, rows = {}, {}
        for name, (model, run, _) in found.items():
            row = new_row(name_of_case, batch, which, name, error=errors[name])
            row['parameters'] = sum(p.numel() for p in model.parameters())
            if which == FORWARD:
                call = forward_call(run, x)
            else:
                call = training_call(run, model, x)
            calls[name], rows[name] = call, row
        for name, reason in missing.items():
            rows[name] = new_row(name_of_case, batch, which, name, missing=reason)
        benchmark.time(calls, rows, partial(add_speed, batch=batch))
        if which == FORWARD and benchmark.device.type == 'cpu':
            rows[OURS]['copies'] = count_copies(calls[OURS])
            say(f'{"":51}copies in a forward pass of ours: {rows[OURS]["copies"]}')


def add_speed(row: Row, batch: int) -> None:
    """Add how many images a participant takes in a second."""
    row['images_per_s'] = batch / row['median_s']


def main(argv: Sequence[str] | None = None) -> Path:
    """Run and write; return the path of the JSON file."""
    parser = make_parser('Time a backbone against others of its size.')
    cuda = torch.cuda.is_available()
    parser.set_defaults(dtype='bfloat16' if cuda else 'float32')
    parser.add_argument(
        '--arch', nargs='+', default=['t'], choices=list(MODELS), help='variants'
    )
    parser.add_argument(
        '--image',
        nargs=2,
        type=int,
        default=[224, 224],
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the image',
    )
    parser.add_argument(
        '--passes', nargs='+', choices=[FORWARD, TRAINING], default=[FORWARD, TRAINING]
    )
    parser.add_argument(
        '--small', action='store_true', help='a tiny backbone of ours, to try this out'
    )
    args = parser.parse_args(argv)
    height, width = args.image
    part = '' if height == width == 224 else f'_{height}x{width}'
    benchmark = Benchmark('backbone', args, part)
    for name in args.arch:
        for batch in args.batch:
            benchmark.attempt(run_case, MODELS[name], batch, args.image)
    return benchmark.write()


if __name__ == '__main__':
    main()
