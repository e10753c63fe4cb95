# SPDX-License-Identifier: Apache-2.0
"""Batches that are too small for batch norm."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

# Heads of mmseg that pool each image to one position and normalise it; those of the
# first line only if 1 is in their `pool_scales`, as by default.
_PYRAMID_HEADS = ('UPerHead', 'PSPHead', 'APCHead')
_POOLING_HEADS = ('ASPPHead', 'DepthwiseSeparableASPPHead')
_SYNCHRONISED = ('SyncBN', 'MMSyncBN')

# Launcher -> what tells the number of processes.
_WORLD_SIZES = {
    'pytorch': 'WORLD_SIZE',
    'slurm': 'SLURM_NTASKS',
    'mpi': 'OMPI_COMM_WORLD_SIZE',
}


def check_batch_size(config: Mapping[str, Any]) -> None:
    """Refuse to train by one image what normalises one value per image and channel.

    PyTorch does that too, at the first iteration: after the model is built, its weights
    are downloaded and the data is read. The recipes for one image per GPU rely on
    SyncBN, which has one image on one GPU as well.

    Args:
        config: Of a training; its ``launcher`` says how many processes there are.

    Raises:
        ValueError: A head needs more images than the config gives it.
    """
    loader = config.get('train_dataloader') or {}
    if loader.get('batch_size') != 1:
        return
    for name, head in _heads(config.get('model') or {}, 'model'):
        norm = (head.get('norm_cfg') or {}).get('type')
        is_synchronised = norm in _SYNCHRONISED
        if is_synchronised and _num_processes(config) != 1:
            continue
        if is_synchronised or norm in ('BN', 'BN2d'):
            raise ValueError(
                'train_dataloader.batch_size: expected 2 or more'
                f'{" on one device" if is_synchronised else ""}, got 1; {name} '
                f'({_type_name(head)}) pools an image to one position, and {norm} has '
                'nothing to compare it with. Use train_dataloader.batch_size=2'
                f', {"" if is_synchronised else "SyncBN on "}more devices or another '
                f"{name}.norm_cfg, such as dict(type='GN', num_groups=32)"
            )


def _heads(cfg: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the settings of heads that pool to one position, by their place."""
    if isinstance(cfg, list | tuple):
        for index, part in enumerate(cfg):
            yield from _heads(part, f'{name}.{index}')
    if not isinstance(cfg, Mapping):
        return
    kind = _type_name(cfg)
    is_pyramid = kind in _PYRAMID_HEADS and 1 in cfg.get('pool_scales', (1, 2, 3, 6))
    if is_pyramid or kind in _POOLING_HEADS:
        yield name, cfg
    for key, part in cfg.items():
        yield from _heads(part, f'{name}.{key}')


def _type_name(cfg: Mapping[str, Any]) -> str:
    kind = cfg.get('type')
    return getattr(kind, '__name__', str(kind)).split('.')[-1]


def _num_processes(config: Mapping[str, Any]) -> int | None:
    """Return how many there are; None if that is not known."""
    launcher = config.get('launcher', 'none')
    if launcher == 'none':
        return 1
    number = os.environ.get(_WORLD_SIZES.get(launcher, ''))
    return int(number) if number else None
