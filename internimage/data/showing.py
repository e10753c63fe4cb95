# SPDX-License-Identifier: Apache-2.0
"""What command lines do with a look at data: show it, or end with what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mmengine.config import Config

from .checking import check_datasets
from .report import DataError

# Where the number of a process in its job is, by torchrun, Slurm and Open MPI.
_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def show_datasets(config: Config, splits: Sequence[str] = ('train', 'val')) -> None:
    """Look at the data of a config and print what is found, in one process of a job.

    Others wait for that one when they meet. Call it before a runner is built.

    Args:
        config: As for :func:`check_datasets`.
        splits: Likewise.

    Raises:
        SystemExit: Data are refused; what is wrong is on standard error, the code is 2.
    """
    if config.get('launcher', 'none') != 'none':
        rank = next((os.environ[name] for name in _RANKS if name in os.environ), '0')
        if rank != '0':
            return
    try:
        for report in check_datasets(config, splits):
            sys.stdout.write(f'{report}\n')
        sys.stdout.flush()
    except DataError as error:
        sys.stderr.write(f'error: {error}\n')
        raise SystemExit(2) from error
