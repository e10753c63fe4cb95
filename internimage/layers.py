# SPDX-License-Identifier: Apache-2.0
"""What InternImage is built from beside DCNv3. Activations are channels-last.

Attribute names are those of the released weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ops_dcnv3.context import have_all_modules_hooks, is_traced, is_transformed
from ops_dcnv3.geometry import check_channels_last, check_floating
from ops_dcnv3.layers import (
    build_act_layer,
    build_norm_layer,
    check_matches,
    has_linear_kernel,
    is_exact_gelu,
    is_plain_linear,
    is_untouched,
    keeps_for_backward,
    linear,
    linear_of_gelu,
    parameters_of_norm,
    plain_parameters,
)
from ops_dcnv3.registration import run_below_autograd


class Stem(nn.Module):
    """Turn an image into ``channels`` features at a quarter of its size.

    Args:
        channels: Output channels; the first of two convolutions has half as many.
        act_layer: Activation between the convolutions.
        norm_layer: Norm after each convolution: 'LN' or 'BN'.
        in_channels: Channels of the image.
    """

    def __init__(
        self, channels: int, act_layer: str, norm_layer: str, in_channels: int = 3
    ) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1)
        self.norm1 = build_norm_layer(
            hidden, norm_layer, 'channels_first', 'channels_first'
        )
        self.act = build_act_layer(act_layer)
        self.conv2 = nn.Conv2d(hidden, channels, 3, stride=2, padding=1)
        self.norm2 = build_norm_layer(
            channels, norm_layer, 'channels_first', 'channels_last'
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, ceil(H/4), ceil(W/4), channels)``."""
        self._check(image)
        x = _to_channels_last_memory(image)
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))

    def _check(self, image: Tensor) -> None:
        check_floating('image', image)
        channels = _size_of(self.conv1, 'in_channels')
        # A trace holds sizes as tensors, of which Python can not decide.
        if not is_traced() and (
            image.dim() != 4 or (channels is not None and image.shape[1] != channels)
        ):
            raise ValueError(
                f'image: expected (N, C, H, W), channels first, with C = {channels}, '
                f'got {tuple(image.shape)}'
            )
        check_matches('image', image, 'conv1', self.conv1)


def _size_of(layer: nn.Module, name: str) -> int | None:
    """Return a size that a layer tells; adapters in its place may not tell any."""
    size = getattr(layer, name, None)
    return size if isinstance(size, int) else None


def _to_channels_last_memory(x: Tensor) -> Tensor:
    """Lay an ``(N, C, H, W)`` tensor out so that changes of layout are free views.

    Only a matter of speed, and not known to the transforms of ``torch.func``.
    """
    if is_transformed():
        return x
    return x.contiguous(memory_format=torch.channels_last)


# Measured: 256 to 512 channels at 14 x 14 take 0.8 instead of 4 ms and more; at 50 x 84
# they would take a tenth longer.
_MANY_WEIGHTS = 2**20
_FEW_PIXELS = 2048


class Downsample(nn.Module):
    """Halve the size of a map and double its channels.

    Args:
        channels: Input channels.
        norm_layer: Norm after the convolution: 'LN' or 'BN'.
    """

    def __init__(self, channels: int, norm_layer: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, 2, padding=1, bias=False)
        self.norm = build_norm_layer(
            2 * channels, norm_layer, 'channels_first', 'channels_last'
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` to ``(N, ceil(H/2), ceil(W/2), 2C)``."""
        if not is_traced():
            check_channels_last('x', x, _size_of(self.conv, 'in_channels'))
        check_matches('x', x, 'conv', self.conv)
        x = x.permute(0, 3, 1, 2)
        if self._is_faster_channels_first(x):
            return self.norm(_to_channels_last_memory(self.conv(x.contiguous())))
        return self.norm(self.conv(x))

    def _is_faster_channels_first(self, x: Tensor) -> bool:
        """Tell whether it is, with two changes of layout, as for small maps on a CPU.

        oneDNN lays the weights out anew at each call, and for channels last so slowly
        that it shows where they are many and pixels few.
        """
        return (
            x.device.type == 'cpu'
            and x.dtype == torch.float32
            and not torch.is_autocast_enabled('cpu')
            and not is_traced()
            and not is_transformed()
            and 2 * (3 * x.shape[1]) ** 2 >= _MANY_WEIGHTS
            and x.numel() <= _FEW_PIXELS * x.shape[1]
        )


class Mlp(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        channels: Input and output channels.
        hidden_channels: Channels between the layers.
        act_layer: Name of the activation.
        recompute: For less memory, run a GELU again in the backward pass instead of
            keeping what it computes.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        act_layer: str,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = build_act_layer(act_layer)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
        self._check(x)
        if has_linear_kernel(x) and (parameters := self._plain_parameters()):
            return self._run_at_once(x, parameters, ([], 0.0), add_input=False)
        check_matches('x', x, 'fc1', self.fc1)
        if (
            self.recompute
            and keeps_for_backward()
            and is_untouched(self.fc1, nn.Linear)
            and is_exact_gelu(self.act)
            and is_plain_linear(self.fc2)
        ):
            return linear_of_gelu(self.fc2, linear(self.fc1, x))
        return linear(self.fc2, self.act(linear(self.fc1, x)))

    def add_branch(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Return ``x + self(norm(x))``, in one call where there is a kernel for it.

        Args:
            x: ``(..., C)``.
            norm: A LayerNorm over channels, of ``build_norm_layer``.
        """
        self._check(x)
        if has_linear_kernel(x):
            parameters, of_norm = self._plain_parameters(), parameters_of_norm(norm)
            if parameters and of_norm:
                return self._run_at_once(x, parameters, of_norm, add_input=True)
        return x + self(norm(x))

    def _check(self, x: Tensor) -> None:
        check_floating('x', x)
        channels = _size_of(self.fc1, 'in_features')
        if not is_traced() and (
            x.dim() == 0 or (channels is not None and x.shape[-1] != channels)
        ):
            raise ValueError(
                f'x: expected (..., C), channels last, with C = {channels}, '
                f'got {tuple(x.shape)}'
            )

    def _run_at_once(
        self,
        x: Tensor,
        parameters: list[Tensor],
        of_norm: tuple[list[Tensor], float],
        add_input: bool,
    ) -> Tensor:
        operator = torch.ops.ops_dcnv3.mlp_forward.default
        return run_below_autograd(operator, x, parameters, *of_norm, add_input)

    def _plain_parameters(self) -> list[Tensor] | None:
        """Return weights and biases in order, if nobody sees or changed the layers."""
        modules: Any = self._modules
        if not is_exact_gelu(modules['act']):
            return None
        of_fc1 = plain_parameters(modules['fc1'], nn.Linear)
        of_fc2 = plain_parameters(modules['fc2'], nn.Linear)
        return of_fc1 + of_fc2 if of_fc1 and of_fc2 else None


class DropPath(nn.Module):
    """Zero a residual branch for random samples of a batch while training.

    The branch is scaled by ``1 / (1 - rate)`` where it is kept, so that its mean
    does not change.

    Args:
        rate: Probability to drop a sample, in [0, 1).

    Source: Deep Networks with Stochastic Depth, arXiv:1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, ...)`` to the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep_rate = 1 - self.rate
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep_rate)
        return x * (kept / keep_rate)

    def can_be_skipped(self) -> bool:
        """Tell whether a call would return its input, and nobody would see it."""
        return (
            (not self.training or self.rate == 0)
            and is_untouched(self, DropPath)
            and not have_all_modules_hooks()
        )

    def extra_repr(self) -> str:
        """Show the rate."""
        return f'rate={self.rate:.3g}'
