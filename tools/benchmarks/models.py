# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of layers and models share: random weights, checks, counts."""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import MMLogger
from peers import REFERENCE, reference_operator
from record import OURS, WrongResultError, relative_error
from timing import Call
from torch import Tensor, nn

from ops_dcnv3 import DCNv3

FORWARD = 'forward'
TRAINING = 'forward+backward'

#: Relative errors (norms) of a whole model's features that are allowed. Roundings add
#: up over some 30 blocks; half precision compares with float64 of the same weights.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 6e-2,
    torch.float16: 1e-2,
}


def spread_points(model: nn.Module) -> None:
    """Give offsets and masks the random weights that training would give them.

    They start at zero, where every point hits a pixel: such reads are too regular to
    time. The branch before them has unit variance before its GELU, about 0.4 after
    it, so offsets get a standard deviation of about one pixel.
    """
    for layer in model.modules():
        if isinstance(layer, DCNv3):
            std = (0.4 * layer.channels) ** -0.5
            for linear in (layer.offset, layer.mask):
                nn.init.normal_(linear.weight, std=std)


def draw_weights(model: Any) -> None:
    """Initialise a model of mmengine, and spread its points."""
    # Its log has a line for each parameter.
    MMLogger.get_current_instance().setLevel('WARNING')
    model.init_weights()
    spread_points(model)


def error_of(function: Callable[[Tensor], Tensor], ours: nn.Module, x: Tensor) -> float:
    """Return how far features are from those of our float64 model with the reference.

    Args:
        function: What is checked.
        ours: Our model, whose weights it has; of several maps the last is compared.
        x: Input of both.
    """
    exact = copy.deepcopy(ours).double()
    with torch.no_grad(), reference_operator():
        expected = exact(x.double())
        expected = expected[-1] if isinstance(expected, tuple) else expected
    with torch.no_grad():
        return relative_error(function(x), expected)


def forward_call(function: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    """Return a call of the forward pass that keeps nothing for a backward pass."""

    def call() -> None:
        with torch.inference_mode():
            function(x)

    return call


def training_call(
    function: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor
) -> Call:
    """Return a call of forward and backward that returns gradients of parameters.

    A parameter that the output does not depend on has none: heads of peers.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]

    def call() -> None:
        output = function(x)
        loss = output.float().square().mean()
        torch.autograd.grad(loss, parameters, allow_unused=True)

    return call


def with_operator(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function in which our layers take the operator of this participant."""
    if name != REFERENCE:
        return function

    def with_reference(*args: Any) -> Any:
        with reference_operator():
            return function(*args)

    return with_reference


def check_all(
    functions: dict[str, Callable[[Tensor], Tensor] | None],
    ours: nn.Module,
    x: Tensor,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return the error of each participant, and why some must not be timed.

    Args:
        functions: What is timed, by participant; None where it computes something else.
        ours: Our model, in whose weights the others compute.
        x: Input of all; its first sample is compared.

    Raises:
        WrongResultError: Ours is wrong.
    """
    errors: dict[str, float | None] = {}
    wrong = {}
    for name, function in functions.items():
        error = None if function is None else error_of(function, ours, x[:1])
        errors[name] = error
        if error is not None and error > TOLERANCE[x.dtype]:
            wrong[name] = f'wrong result: error {error:.1e}'
    if OURS in wrong:
        raise WrongResultError(f'{type(ours).__name__}: {wrong[OURS]}')
    return errors, wrong


def count_copies(call: Call) -> dict[str, int]:
    """Return how often a call copies a tensor, by the name of the operation."""
    names = ('aten::copy_', 'aten::contiguous', 'aten::clone')
    # The profiler complains on stderr where there is no driver.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    activity = torch.profiler.ProfilerActivity.CPU
    call()
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
    counts = {event.key: event.count for event in profile.key_averages()}
    return {name: counts.get(name, 0) for name in names}
