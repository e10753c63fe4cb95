# SPDX-License-Identifier: Apache-2.0
"""DINO as the published weights know it."""

from mmdet.models import DINO
from mmdet.models.layers import MLP
from mmdet.registry import MODELS
from torch import Tensor


class ReferencePointHead(MLP):
    """Turn the encoding of a box into the positional part of its query.

    The published head, and mmdet's up to 3.3, takes ``embed_dims / 2`` sines and
    cosines per coordinate; mmdet 3.5 computes ``embed_dims``. The k-th of n frequencies
    is ``10000 ** (-2k / n)``, so that every second one of the larger set is, bit for
    bit, the smaller set.

    Args:
        embed_dims: Width of a query.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__(2 * embed_dims, embed_dims, embed_dims, num_layers=2)

    def forward(self, encoding: Tensor) -> Tensor:
        """Map ``(..., 4 * embed_dims)`` to ``(..., embed_dims)``."""
        sine_and_cosine = encoding.unflatten(-1, (-1, 2))
        return super().forward(sine_and_cosine[..., ::2, :].flatten(-2))


@MODELS.register_module()
class InternImageDINO(DINO):
    """DINO (arXiv:2203.03605) with the reference point head of the published weights.

    All arguments are those of mmdet's ``DINO``. Weights made with mmdet 3.0 to 3.3 fit
    as well; those of mmdet 3.5's own ``DINO`` do not.

    Source: OpenGVLab/InternImage@31c962d,
        detection/mmdet_custom/models/utils/transformer.py.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        self.decoder.ref_point_head = ReferencePointHead(self.embed_dims)
