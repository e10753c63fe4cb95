# SPDX-License-Identifier: Apache-2.0
"""What InternImage is built from beside DCNv3. Activations are channels-last.

Attribute names are those of the released weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ops_dcnv3.layers import (
    build_act_layer,
    build_norm_layer,
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
from ops_dcnv3.registration import is_traced


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
        # In this memory format every change of layout further on is a free view.
        x = image.contiguous(memory_format=torch.channels_last)
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


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
        x = x.permute(0, 3, 1, 2)
        if self._is_faster_channels_first(x):
            x = self.conv(x.contiguous())
            return self.norm(x.contiguous(memory_format=torch.channels_last))
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
            and self.conv.weight.numel() >= _MANY_WEIGHTS
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
        if has_linear_kernel(x) and (parameters := self._plain_parameters()):
            return torch.ops.ops_dcnv3.mlp_forward.default(
                x, parameters, [], 0.0, False
            )
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
        if has_linear_kernel(x):
            parameters, of_norm = self._plain_parameters(), parameters_of_norm(norm)
            if parameters and of_norm:
                return torch.ops.ops_dcnv3.mlp_forward.default(
                    x, parameters, *of_norm, True
                )
        return x + self(norm(x))

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

    def extra_repr(self) -> str:
        """Show the rate."""
        return f'rate={self.rate:.3g}'
