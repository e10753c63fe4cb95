# SPDX-License-Identifier: Apache-2.0
"""Say how many parameters and FLOPs a config's model has, as published tables do.

``internimage/complexity.py`` says what is counted and what is not.
"""

import copy
from collections.abc import Sequence

import torch
from _cli import make_config_parser, read_config
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from internimage.complexity import Complexity, count_complexity


def default_shape(config: Config) -> tuple[int, int] | None:
    """Return the height and width that most published tables count such a model at.

    None if there is no test pipeline that tells.
    """
    if config.default_scope == 'mmdet':
        return 800, 1280
    loader = config.get('test_dataloader')
    for step in reversed(loader.dataset.pipeline if loader else ()):
        if step.type in ('CenterCrop', 'Resize'):
            size = step.get('crop_size') or step.get('scale')
            width, height = (size, size) if isinstance(size, int) else size
            return height, width
    return None


def count(config: Config, shape: tuple[int, int]) -> Complexity:
    """Count the parameters and FLOPs of the model of a config."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        try:
            # From a copy, as some models change what they are built from.
            with torch.device('meta'):
                model = MODELS.build(copy.deepcopy(config.model))
            return count_complexity(model, shape)
        except RuntimeError:
            # Some need values: NeedsValuesError, or as they compute while being built.
            return count_complexity(MODELS.build(config.model), shape)


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = make_config_parser(
        'Count the parameters and FLOPs of a model, in seconds, most of any size.'
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='height and width of the image (default: 800 1280 for detectors, '
        'otherwise the size in the test pipeline)',
    )
    args = parser.parse_args(argv)
    config = read_config(args)
    shape = args.shape or default_shape(config)
    if shape is None:
        parser.error('the config has no test pipeline with a size: name it by --shape')
    result = count(config, shape)
    print(f'Image              {shape[0]} x {shape[1]}')
    print(f'Parameters         {result.parameters / 1e6:.1f} M')
    print(f'FLOPs              {result.flops / 1e9:.1f} G, as published tables count')
    print(f'  of the sampling  {result.sampling / 1e9:.1f} G')
    print(f'All multiply-adds  {result.multiply_adds / 1e9:.1f} G, of functions too')


if __name__ == '__main__':
    main()
