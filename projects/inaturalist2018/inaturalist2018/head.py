# SPDX-License-Identifier: Apache-2.0
"""The classifier of InternImage-H for iNaturalist 2018.

Attribute names are those of the released weights. ``N`` batch, ``C`` channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from .encoding import DATE_SIZE, PLACE_SIZE


class ResidualMLP(nn.Module):
    """Add two layers' result to their input.

    Args:
        channels: Of input, output and what is between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_fn1 = nn.LayerNorm(channels)
        self.norm_fn2 = nn.LayerNorm(channels)
        self.w1 = nn.Linear(channels, channels)
        self.w2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels)`` to the same shape."""
        y = self.norm_fn1(self.w1(x).relu())
        return x + self.norm_fn2(self.w2(y).relu())


def build_encoder(in_channels: int, channels: int) -> nn.Sequential:
    """Build what turns ``(N, in_channels)`` numbers into ``(N, channels)`` features."""
    return nn.Sequential(
        nn.Linear(in_channels, channels),
        nn.ReLU(),
        nn.LayerNorm(channels),
        ResidualMLP(channels),
    )


@MODELS.register_module()
class MetaLinearClsHead(LinearClsHead):
    """Add what date and place say of a class to what the image says.

    Both are linear: the logits are their sum. Date and place come in the data samples
    as ``metadata``, which ``EncodeDateAndPlace`` makes. Without data samples they are
    unknown, which is all zeros.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image's features.
        meta_channels: Channels of the features of the date, and of those of the place.
        **kwargs: Of mmpretrain's ``LinearClsHead``: ``loss``, ``topk``, ``cal_acc``,
            ``init_cfg``.

    Source: OpenGVLab/InternImage@31c962d,
        classification/models/intern_image_meta_former.py.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        meta_channels: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.meta_head_1 = build_encoder(DATE_SIZE, meta_channels)
        self.meta_head_2 = build_encoder(PLACE_SIZE, meta_channels)
        self.meta_norm = nn.LayerNorm(2 * meta_channels, eps=1e-6)
        self.meta_head = nn.Linear(2 * meta_channels, num_classes)

    def forward(self, feats: tuple[Tensor], metadata: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            feats: The last is ``(N, in_channels)``.
            metadata: ``(N, 7)``, of the date 4 and of the place 3; None for unknown.

        Returns:
            ``(N, num_classes)``.
        """
        from_image = super().forward(feats)
        if metadata is None:
            metadata = from_image.new_zeros(len(from_image), DATE_SIZE + PLACE_SIZE)
        date, place = metadata.to(self.fc.weight).split([DATE_SIZE, PLACE_SIZE], dim=1)
        x = torch.cat([self.meta_head_1(date), self.meta_head_2(place)], dim=1)
        return from_image + self.meta_head(self.meta_norm(x))

    def loss(
        self, feats: tuple[Tensor], data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Compute the losses; see mmpretrain's ``ClsHead``."""
        logits = self(feats, stack_metadata(data_samples))
        return self._get_loss(logits, data_samples, **kwargs)

    def predict(
        self, feats: tuple[Tensor], data_samples: list[DataSample] | None = None
    ) -> list[DataSample]:
        """Compute scores and labels; see mmpretrain's ``ClsHead``."""
        metadata = None if data_samples is None else stack_metadata(data_samples)
        return self._get_predictions(self(feats, metadata), data_samples)


def stack_metadata(data_samples: Sequence[DataSample]) -> Tensor:
    """Return the date and place of all samples, ``(N, 7)``.

    Raises:
        ValueError: A sample has none.
    """
    if not all('metadata' in sample for sample in data_samples):
        raise ValueError(
            "data_samples: expected each to have 'metadata', got some without; put "
            'EncodeDateAndPlace before PackInputs in the pipeline, and '
            "algorithm_keys=('metadata',) into PackInputs"
        )
    return torch.stack([sample.metadata for sample in data_samples])
