# SPDX-License-Identifier: Apache-2.0
"""Train the model of a config, for any OpenMMLab codebase. ``mim train`` runs this."""

import errno
import sys
from collections.abc import Sequence

from _cli import load_config, make_parser
from mmengine.config import Config
from mmengine.runner import Runner

from internimage.data import show_datasets
from internimage.engine import (
    NonFiniteError,
    ResumeError,
    SaveError,
    choose_resumable,
    complete_hooks,
)
from internimage.engine.batch_size import check_batch_size


def set_resume(config: Config, checkpoint: str) -> None:
    """Go on from a checkpoint, or with 'auto' from the newest whole one, if any."""
    if checkpoint == 'auto':
        # At the first start there is nothing to resume: as without the option, the
        # weights to start from are loaded.
        found = choose_resumable(config)
        if found is None:
            config.resume = False
            return
        checkpoint = found
    config.resume = True
    config.load_from = checkpoint


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
        help='go on from this checkpoint, or from the newest in the work folder that '
        'is whole',
    )
    args = parser.parse_args(argv)
    config = load_config(args)
    complete_hooks(config)

    if args.amp:
        config.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            parser.error('--auto-scale-lr: no auto_scale_lr.base_batch_size in config')
        config.auto_scale_lr.enable = True

    try:
        check_batch_size(config)
    except ValueError as error:
        parser.error(str(error))
    show_datasets(config)
    try:
        if args.resume:
            set_resume(config, args.resume)
        Runner.from_cfg(config).train()
    except (NonFiniteError, ResumeError, SaveError) as error:
        sys.exit(f'train: {error}')
    except OSError as error:  # of a log file
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f'train: {error}: make room and go on with --resume')


if __name__ == '__main__':
    main()
