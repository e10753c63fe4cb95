# SPDX-License-Identifier: Apache-2.0
"""What the tools share: common options, and the config they lead to.

Found by its place: Python puts the folder of a script first on its search path.
"""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction


def make_config_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that takes a config and changes to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change settings, e.g. train_cfg.max_epochs=1 "img_scale=(640,480)"',
    )
    return parser


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every OpenMMLab tool that runs a model."""
    parser = make_config_parser(description)
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: work_dirs/<config name>)',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed job were started',
    )
    # torch.distributed.launch passes this option; torchrun sets LOCAL_RANK instead.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS
    )
    return parser


def read_config(args: argparse.Namespace) -> Config:
    """Read the config file and apply the options of ``make_config_parser`` to it."""
    try:
        config = Config.fromfile(args.config)
    except SyntaxError as error:
        if 'U+FEFF' not in str(error):
            raise
        raise SystemExit(
            f'error: {args.config}, or a file that it inherits, starts with a '
            'byte-order mark, which Python does not read: save it as UTF-8 without one'
        ) from None
    config.merge_from_dict(args.cfg_options)
    return config


def load_config(args: argparse.Namespace) -> Config:
    """Read the config file and apply the options of ``make_parser`` to it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = read_config(args)
    config.launcher = args.launcher
    config.work_dir = (
        args.work_dir
        or config.get('work_dir')
        or os.path.join('work_dirs', Path(args.config).stem)
    )
    return config
