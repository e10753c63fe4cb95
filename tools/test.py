# SPDX-License-Identifier: Apache-2.0
"""Test the model of a config, for any OpenMMLab codebase. ``mim test`` runs this."""

import sys
from argparse import Namespace
from collections.abc import Sequence

from _cli import load_config, make_parser
from mmengine.config import Config
from mmengine.runner import Runner

from internimage.data import show_datasets
from internimage.engine import SaveError


def dump_predictions(config: Config, path: str) -> None:
    """Save all predictions to the pickle file ``path``."""
    # The metric of mmdet packs masks, which mmengine's own saves as they are.
    kind = 'DumpDetResults' if config.get('default_scope') == 'mmdet' else 'DumpResults'
    metrics = config.test_evaluator
    metrics = metrics if isinstance(metrics, list) else [metrics]
    config.test_evaluator = [*metrics, dict(type=kind, out_file_path=path)]


def draw_predictions(config: Config, args: Namespace) -> None:
    """Turn the visualization hook on; each codebase spells its options differently."""
    hook = config.default_hooks.visualization
    hook.update(show=args.show, wait_time=args.wait_time)
    if config.get('default_scope') == 'mmpretrain':
        hook.update(enable=True, out_dir=args.show_dir)
    elif config.get('default_scope') == 'mmseg':
        hook.draw = True
        config.visualizer.save_dir = args.show_dir
    else:
        hook.update(draw=True, test_out_dir=args.show_dir)


def main(argv: Sequence[str] | None = None) -> None:
    """Test as the command line says."""
    parser = make_parser('Test the model of a config on its test set.')
    parser.add_argument('checkpoint', help='weights to test, a file or an address')
    parser.add_argument('--out', metavar='FILE.pkl', help='save the predictions here')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='save the drawn predictions here')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds to show an image for'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='augment test images as tta_model and tta_pipeline of the config say',
    )
    args = parser.parse_args(argv)
    config = load_config(args)
    config.load_from = args.checkpoint

    if args.out:
        dump_predictions(config, args.out)
    if args.show or args.show_dir:
        draw_predictions(config, args)
    if args.tta:
        if 'tta_model' not in config or 'tta_pipeline' not in config:
            parser.error('--tta: no tta_model and tta_pipeline in config')
        config.model = dict(config.tta_model, module=config.model)
        config.test_dataloader.dataset.pipeline = config.tta_pipeline

    show_datasets(config, ['test'])
    try:
        Runner.from_cfg(config).test()
    except SaveError as error:
        sys.exit(f'test: {error}')


if __name__ == '__main__':
    main()
