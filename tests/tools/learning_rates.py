# SPDX-License-Identifier: Apache-2.0
"""The learning rate of a config over a whole training, without the training."""

import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS


def learning_rates(config: Config, epoch_length: int) -> list[float]:
    """Return the rate of each iteration, as a factor on that of the config.

    Args:
        config: Its ``train_cfg`` and ``param_scheduler`` are used.
        epoch_length: Number of iterations of an epoch.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    train_cfg = config.train_cfg
    by_epoch = 'max_epochs' in train_cfg
    total = train_cfg.max_epochs * epoch_length if by_epoch else train_cfg.max_iters
    schedulers = []
    for settings in config.param_scheduler:
        settings = dict(settings)
        settings.pop('_scope_', None)
        kind = PARAM_SCHEDULERS.get(settings.pop('type'))
        if settings.pop('convert_to_iter_based', False):
            scheduler = kind.build_iter_from_epoch(
                optimizer, **settings, epoch_length=epoch_length
            )
        else:
            scheduler = kind(optimizer, **settings)
        schedulers.append(scheduler)
    rates = []
    for iteration in range(1, total + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return rates


def check_rise_and_fall(rates: list[float]) -> None:
    """Assert that a rate comes near to that of the config early, and falls to 0."""
    highest = max(rates)
    assert highest > 0.9
    assert rates.index(highest) < 0.2 * len(rates)
    assert rates[0] < 0.1
    assert rates[-1] < 0.1
