# SPDX-License-Identifier: Apache-2.0
"""What InternImage is built from beside DCNv3. Activations are channels-last.

Attribute names are those of the released weights.
"""

import torch
from torch import Tensor, nn

from ops_dcnv3 import (
    AsBuilt,
    build_act_layer,
    build_norm_layer,
    check_channels_last,
    check_floating,
    check_matches,
    is_traced,
    is_transformed,
    linear,
    recomputed,
)


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


#: Measured: 256 channels of 14 x 14 take 0.8 instead of 5 ms; of 50 x 76 they would
#: take a fifth longer.
_FEW_PIXELS = 2048


def _has_few_pixels_on_cpu(x: Tensor) -> bool:
    """Tell whether a convolution of ``(N, C, H, W)`` is faster channels first.

    oneDNN lays the weights out anew at each call, and for channels last so slowly that
    it shows where pixels are few. Compilers and traces have one way for all sizes.
    """
    return (
        x.device.type == 'cpu'
        and not torch.compiler.is_compiling()
        and not is_traced()
        and x.numel() <= _FEW_PIXELS * x.shape[1]
    )


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
        if _has_few_pixels_on_cpu(x):
            return self.norm(_to_channels_last_memory(self.conv(x.contiguous())))
        return self.norm(self.conv(x))


class Mlp(AsBuilt):
    """Two linear layers with an activation between them.

    Args:
        channels: Input and output channels.
        hidden_channels: Channels between the layers.
        act_layer: Name of the activation.
        recompute: For less memory, run the activation again in the backward pass
            instead of keeping what it computes, while the module is as it was built.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        act_layer: str,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        self._recomputes = recompute
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = build_act_layer(act_layer)
        self.fc2 = nn.Linear(hidden_channels, channels)
        self.remember_build()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
        self._check(x)
        hidden = linear(self.fc1, x)
        if self._recomputes:
            return recomputed(self, self._end, hidden)
        return self._end(hidden)

    def _end(self, hidden: Tensor) -> Tensor:
        return linear(self.fc2, self.act(hidden))

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
        check_matches('x', x, 'fc1', self.fc1)


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

    @property
    def is_active(self) -> bool:
        """Whether samples are dropped now."""
        return self.training and self.rate > 0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, ...)`` to the same shape."""
        if not self.is_active:
            return x
        keep_rate = 1 - self.rate
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep_rate)
        return x * (kept / keep_rate)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f'rate={self.rate:.3g}'
