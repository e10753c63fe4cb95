# SPDX-License-Identifier: Apache-2.0
"""Train the model of a config, for any OpenMMLab codebase. ``mim train`` runs this."""

from collections.abc import Sequence

from _cli import load_config, make_parser
from mmengine.runner import Runner, find_latest_checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    parser = make_parser('Train the model of a config.')
    parser.add_argument(
        '--amp', action='store_true', help='train in automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the real total batch size over the one '
        'that the config was made for',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint, or from the latest in the work folder',
    )
    args = parser.parse_args(argv)
    config = load_config(args)

    if args.amp:
        config.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            parser.error('--auto-scale-lr: no auto_scale_lr.base_batch_size in config')
        config.auto_scale_lr.enable = True
    if args.resume == 'auto':
        # At the first start there is nothing to resume: as without the option, the
        # weights to start from are loaded.
        config.resume = find_latest_checkpoint(config.work_dir) is not None
        if config.resume:
            config.load_from = None
    elif args.resume:
        config.resume = True
        config.load_from = args.resume

    Runner.from_cfg(config).train()


if __name__ == '__main__':
    main()
