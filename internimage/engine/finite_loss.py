# SPDX-License-Identifier: Apache-2.0
"""A loss that is not a number stops the training before it spoils the weights."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from internimage.checkpoint.weights import is_finite


class NonFiniteError(RuntimeError):
    """A loss or a weight is NaN or infinite."""


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop at a NaN or infinite loss, before the step that would spread it.

    The message names the iteration, the losses and the images of the batch. mmdet's
    ``CheckInvalidLossHook`` looks each 50 iterations, after the step, at the sum.

    Losses are read where PyTorch calls ``Optimizer.step``, in the step's pre-hook. By
    then the device has long computed them, so reading waits for less than the clipping
    of gradients does, which also reads from the device before each step. In mixed
    precision an infinite *gradient* is the business of the loss scaler, which then
    makes no step: that does not stop the training, an infinite loss does.

    Before a checkpoint is saved, the weights are looked at too, so that no spoilt one
    takes the place of a good one.

    Args:
        max_skips: So many steps with such a loss are left out (weights and optimizer
            stay as they are), each with a warning, before one stops the training. They
            are counted over the whole run, resumed or not. Running means of batch
            normalisation have seen the batch all the same. In a distributed job all
            processes leave it out together.

    Raises:
        NonFiniteError: A loss is not finite, and no skip is left; a weight is not
            finite when a checkpoint is to be saved.
    """

    priority = 'VERY_HIGH'  # before what keeps averages of weights

    def __init__(self, max_skips: int = 0) -> None:
        if isinstance(max_skips, bool) or not isinstance(max_skips, int):
            raise TypeError(f'max_skips: expected a number of steps, got {max_skips!r}')
        if max_skips < 0:
            raise ValueError(f'max_skips: expected 0 or more, got {max_skips}')
        self.max_skips = max_skips
        self._handles: list[RemovableHandle] = []
        self._losses: list[
            tuple[str, Tensor]
        ] = []  # of the iteration, until they are read
        self._batch: Any = None
        self._is_spoilt = False  # whether the gradients are

    def before_train(self, runner: Any) -> None:
        def check_before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self._check(runner)
            if self._is_spoilt:  # a parameter without a gradient is left alone
                optimizer.zero_grad(set_to_none=True)

        model = runner.model
        self._handles = [model.register_forward_hook(self._keep_losses)]
        wrapper = runner.optim_wrapper
        is_dict = isinstance(wrapper, OptimWrapperDict)
        for one in wrapper.values() if is_dict else [wrapper]:
            register = getattr(one.optimizer, 'register_step_pre_hook', None)
            if register is None:
                raise TypeError(
                    'FiniteLossHook: expected an optimizer of PyTorch, got '
                    f'{type(one.optimizer).__name__}'
                )
            self._handles.append(register(check_before_step))

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None
    ) -> None:
        self._batch = data_batch

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        # What no step has asked for: gradients are still gathered, or the loss scaler
        # of mixed precision has made none.
        self._check(runner)
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict) or wrapper.should_update():
            self._is_spoilt = False
        self._batch = None

    def after_train(self, runner: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        spoilt = [
            name
            for name, parameter in runner.model.named_parameters()
            if not is_finite(parameter)
        ]
        if spoilt:
            more = f' and {len(spoilt) - 3} more' if len(spoilt) > 3 else ''
            raise NonFiniteError(
                f'iteration {checkpoint["meta"]["iter"]}: not saved: the weights '
                f'{", ".join(spoilt[:3])}{more} are NaN or infinite; go on from an '
                'earlier checkpoint with a lower learning rate or clipped gradients'
            )

    def _keep_losses(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Take note of the losses that a forward pass in training returns."""
        if not module.training or not isinstance(outputs, dict):
            return
        for name, value in outputs.items():
            if 'loss' not in name:  # as mmengine chooses what to add up
                continue
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, Tensor):
                    loss = part.detach().float()
                    self._losses.append((name, loss.mean() if loss.ndim else loss))

    def _check(self, runner: Any) -> None:
        """Read the losses kept since the last time; stop or skip if one is not finite.

        Raises:
            NonFiniteError: A loss is not finite, and no skip is left.
        """
        if not self._losses:
            return
        names, losses = zip(*self._losses, strict=True)
        values = torch.stack(losses)  # to read them at once
        self._losses = []
        bad = {
            name: value
            for name, value in zip(names, values.tolist(), strict=True)
            if not math.isfinite(value)
        }
        if not self._somebody(bool(bad), values.device):
            return
        self._is_spoilt = True
        info = runner.message_hub.runtime_info
        num_skips = info.get('num_skipped_steps', 0)
        found = ', '.join(f'{name} is {value}' for name, value in bad.items())
        found = found or 'a loss of another process is not finite'
        message = (
            f'iteration {runner.iter + 1}: {found}; '
            f'images: {", ".join(_image_paths(self._batch)) or "unknown"}'
        )
        if num_skips >= self.max_skips:
            skipped = f' ({num_skips} steps were skipped before)' if num_skips else ''
            raise NonFiniteError(
                f'{message}; stopped before the step, the weights are those of the '
                f'iteration before{skipped}: look at these images and their '
                'annotations, lower the learning rate, or skip such steps with '
                'default_hooks.finite_loss.max_skips'
            )
        runner.message_hub.update_info('num_skipped_steps', num_skips + 1)
        runner.logger.warning(
            f'{message}; step skipped, {num_skips + 1} of at most {self.max_skips}'
        )

    def _somebody(self, is_bad: bool, device: torch.device) -> bool:
        """Whether this process has a bad loss; if steps are skipped, any process."""
        if self.max_skips == 0 or not is_distributed():
            return is_bad
        flag = torch.tensor(float(is_bad), device=device)
        all_reduce(flag, op='max')
        return bool(flag.item())


def _image_paths(batch: Any) -> Iterator[str]:
    """Yield the paths of the images of a batch, however it is nested."""
    path = getattr(batch, 'img_path', None)
    if isinstance(path, str):
        yield path
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _image_paths(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _image_paths(value)
