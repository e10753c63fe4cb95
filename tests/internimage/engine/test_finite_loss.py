# SPDX-License-Identifier: Apache-2.0
"""A loss that is no number stops the training, or its step is left out."""

import logging
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from internimage.engine import FiniteLossHook, NonFiniteError, find_resumable
from tests.internimage.engine.toy import Toy, config, in_child, train


class Spoilt(Toy):
    """A model whose loss is not finite in some iterations, counted from 1."""

    def __init__(self, value: float, iterations: tuple[int, ...]) -> None:
        torch.manual_seed(1)
        super().__init__()
        self.value = value
        self.iterations = iterations
        self.count = 0

    def forward(self, inputs: list, data_samples: list, mode: str = 'tensor') -> Any:
        outputs = super().forward(inputs, data_samples, mode)
        if mode == 'loss':
            self.count += 1
            outputs['loss_b'] = [outputs['loss_a'] * 0.5, outputs['loss_a'] * 0.25]
            if self.count in self.iterations:
                outputs['loss_b'][1] = outputs['loss_a'] * self.value
        return outputs


class Record(Hook):
    """Keep the weights before each step and after the last."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        weights = [p.detach().flatten() for p in runner.model.parameters()]
        self.weights.append(torch.cat(weights))


def spoilt(folder: Path, value: float, *iterations: int, **changes: Any) -> dict:
    model = Spoilt(value, iterations)
    return config(folder, model=model, custom_hooks=[], **changes)


def expect_error(settings: dict, match: str, **arguments: Any) -> None:
    record = Record()
    settings['custom_hooks'] = [record]
    with pytest.raises(NonFiniteError, match=match):
        train(settings, **arguments)
    assert all(torch.isfinite(weights).all() for weights in record.weights)
    weights = [p.detach().flatten() for p in settings['model'].parameters()]
    assert torch.equal(torch.cat(weights), record.weights[-1])  # no step was made


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_stops_before_the_step(tmp_path: Path, value: float):
    settings = spoilt(tmp_path, value, 5)
    match = (
        rf'^iteration 5: loss_b is {value}; '
        r'images: images/\d.jpg, images/\d.jpg, images/\d.jpg; stopped before the step'
    )
    assert in_child(expect_error, settings, match) == 0
    # The last epoch's checkpoint is there, and good.
    assert find_resumable(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')


def test_stops_where_gradients_are_gathered(tmp_path: Path):
    """At the iteration of the loss, not at that of the step."""
    changes = {'optim_wrapper__accumulative_counts': 3}
    settings = spoilt(tmp_path, math.nan, 4, **changes)
    assert in_child(expect_error, settings, '^iteration 4: loss_b is nan') == 0


def skip(settings: dict, skipped: tuple[int, ...], log: Path, **arguments: Any) -> None:
    record = Record()
    settings['custom_hooks'] = [record]
    settings['default_hooks']['finite_loss']['max_skips'] = 2
    model = settings['model']
    train(settings, **arguments)
    weights = [p.detach().flatten() for p in model.parameters()]
    weights = [*record.weights, torch.cat(weights)]
    stayed = [torch.equal(a, b) for a, b in pairwise(weights)]
    assert [i for i, same in enumerate(stayed, 1) if same] == list(skipped)
    text = next(log.glob('*/*.log')).read_text()
    assert text.count('; step skipped, ') == len(model.iterations)


def test_skips_and_counts(tmp_path: Path):
    settings = spoilt(tmp_path, math.nan, 2, 7)
    assert in_child(skip, settings, (2, 7), tmp_path) == 0
    # AdamW has counted the steps that were made.
    saved = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)
    assert {int(s['step']) for s in saved['optimizer']['state'].values()} == {7}
    # The count goes on in a resumed run.
    settings = spoilt(tmp_path / 'more', math.nan, 2)
    settings['default_hooks']['finite_loss']['max_skips'] = 2
    settings['train_cfg']['max_epochs'] = 4
    settings['load_from'] = str(tmp_path / 'epoch_3.pth')
    match = r'^iteration 11: .* \(2 steps were skipped before\): look at'
    assert in_child(expect_error, settings, match, resume=True) == 0


def test_skips_a_step_of_several_iterations(tmp_path: Path):
    changes = {'optim_wrapper__accumulative_counts': 3, 'param_scheduler': None}
    settings = spoilt(tmp_path, math.inf, 4, **changes)
    # Weights change in iterations 3, (not 6) and 9.
    assert in_child(skip, settings, (1, 2, 4, 5, 6, 7, 8), tmp_path) == 0


class Scaled(OptimWrapper):
    """Makes no step if a gradient is not finite, as the scaler of mixed precision."""

    def step(self, **kwargs: Any) -> None:
        grads = [p.grad for group in self.param_groups for p in group['params']]
        if all(torch.isfinite(grad).all() for grad in grads):
            super().step(**kwargs)


class InfiniteGradient(Hook):
    """Give a parameter an infinite gradient in iteration 2."""

    def before_train(self, runner: Any) -> None:
        parameter = next(runner.model.parameters())
        parameter.register_hook(
            lambda grad: grad * math.inf if runner.iter == 1 else grad
        )


def scaled(settings: dict) -> None:
    optimizer = torch.optim.AdamW(settings['model'].parameters(), lr=0.1)
    settings['optim_wrapper'] = Scaled(optimizer)
    settings['param_scheduler'] = None


def train_scaled(settings: dict) -> None:
    scaled(settings)
    train(settings)


def test_an_infinite_gradient_is_the_business_of_the_scaler(tmp_path: Path):
    settings = spoilt(tmp_path, math.nan)
    settings['custom_hooks'] = [InfiniteGradient()]
    assert in_child(train_scaled, settings) == 0


def expect_error_scaled(settings: dict, match: str) -> None:
    scaled(settings)
    expect_error(settings, match)


def test_an_infinite_loss_stops_where_the_scaler_makes_no_step(tmp_path: Path):
    settings = spoilt(tmp_path, math.inf, 5)
    assert in_child(expect_error_scaled, settings, '^iteration 5: loss_b is inf') == 0


class Spoil(Hook):
    """Spoil a weight, as a step with a gradient that is not finite does."""

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter == 8:
            with torch.no_grad():
                runner.model.linear.weight[1, 0] = math.nan


def expect_refusal(settings: dict) -> None:
    settings['custom_hooks'] = [Spoil()]
    match = 'iteration 9: not saved: the weights linear.weight are NaN or infinite'
    with pytest.raises(NonFiniteError, match=match):
        train(settings)


def test_spoilt_weights_do_not_replace_good_ones(tmp_path: Path):
    changes = {'default_hooks__checkpoint__max_keep_ckpts': 1}
    assert in_child(expect_refusal, config(tmp_path, **changes)) == 0
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_2.pth']


def leave_no_trace(settings: dict) -> None:
    runner = Runner(**settings)
    runner.train()
    assert not runner.model._forward_hooks
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks


def test_leaves_no_trace(tmp_path: Path):
    settings = config(tmp_path)
    settings['log_level'] = logging.ERROR
    assert in_child(leave_no_trace, settings) == 0


@pytest.mark.parametrize('value', [-1, 1.5, True, '2'])
def test_max_skips_is_checked(value: Any):
    with pytest.raises((TypeError, ValueError), match=r'^max_skips: expected'):
        FiniteLossHook(value)
