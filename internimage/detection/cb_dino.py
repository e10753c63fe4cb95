# SPDX-License-Identifier: Apache-2.0
"""DINO on a composite backbone: both branches are trained, the second is tested."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import ChannelMapper, DINOHead
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from ops_dcnv3.arguments import choice, integer, number

from .dino import InternImageDINO

Features = tuple[Tensor, ...]

# Rule -> what it freezes, and what of that it leaves trainable: parts of parameter
# names. Levels count from 0 in parameter names and from 1 in the published rules
# ('expect' is their spelling of 'except').
_FREEZING_RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'freeze_backbone': (('backbone',), ()),
    'freeze_backbone_encoder': (('backbone', 'encoder'), ()),
    'freeze_backbone_neck': (('backbone', 'neck'), ()),
    'freeze_backbone_expect_level_4': (
        ('backbone',),
        ('backbone.cb_modules.1.levels.3',),
    ),
    'freeze_backbone_expect_level_3_4': (
        ('backbone',),
        ('backbone.cb_modules.1.levels.2', 'backbone.cb_modules.1.levels.3'),
    ),
    'freeze_backbone_expect_0_level_1_2_3': (
        ('backbone',),
        ('backbone.cb_modules.0.levels.0', 'backbone.cb_modules.1.levels.0'),
    ),
    'freeze_cb_first_backbone': (('backbone.cb_modules.0',), ()),
    'freeze_cb_first_backbone_expect_level_4': (
        ('backbone.cb_modules.0',),
        ('levels.3',),
    ),
    'freeze_stage_1': (('patch_embed', 'levels.0.'), ()),
    'freeze_stage_1_2': (('patch_embed', 'levels.0.', 'levels.1.'), ()),
}


@MODELS.register_module()
class CBChannelMapper(ChannelMapper):
    """Bring the features of both branches to one width, with the same weights.

    Args:
        cb_idx: Which branch to return in evaluation mode.
        **kwargs: Those of mmdet's ``ChannelMapper``.
    """

    def __init__(self, cb_idx: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cb_idx = integer('cb_idx', cb_idx, '0 or 1', lambda index: index in (0, 1))

    def forward(self, inputs: Sequence[Features]) -> list[Features] | Features:
        """Map the features of each branch.

        Args:
            inputs: For each branch, its levels, each ``(N, C_i, H_i, W_i)``.

        Returns:
            For each branch ``num_outs`` maps ``(N, out_channels, H_i, W_i)``; in
            evaluation mode those of branch ``cb_idx`` alone.
        """
        if self.training:
            return [super(CBChannelMapper, self).forward(x) for x in inputs]
        return super().forward(inputs[self.cb_idx])


@MODELS.register_module()
class CBDINOHead(DINOHead):
    """DINO's head, for a batch that holds every image once per branch.

    Args:
        cb_first_weight: Factor on the losses of the first branch; those of the second
            have 1.
        **kwargs: Those of mmdet's ``DINOHead``.
    """

    def __init__(self, cb_first_weight: float = 0.5, **kwargs: Any) -> None:
        first_weight = number('cb_first_weight', cb_first_weight)
        super().__init__(**kwargs)
        self.cb_first_weight = first_weight

    def loss(
        self,
        hidden_states: Tensor,
        references: list[Tensor],
        enc_outputs_class: Tensor,
        enc_outputs_coord: Tensor,
        batch_data_samples: SampleList,
        dn_meta: dict[str, int],
    ) -> dict[str, Tensor]:
        """Compute the losses of each branch on its own, as mmdet's head does.

        The published head takes the batch for one image of two branches; this one
        takes N images of the first branch, then the same images of the second.

        Args:
            hidden_states: ``(decoder layers, 2N, queries, C)``.
            references: Per decoder layer and before them, ``(2N, queries, 4)``.
            enc_outputs_class: ``(2N, matching queries, classes)``.
            enc_outputs_coord: ``(2N, matching queries, 4)``.
            batch_data_samples: 2N of them.
            dn_meta: The number of denoising queries and of their groups.

        Returns:
            The losses by name, with ``cb0.`` or ``cb1.`` before it.
        """
        num_images = len(batch_data_samples) // 2
        losses = {}
        for branch, weight in enumerate((self.cb_first_weight, 1.0)):
            part = slice(branch * num_images, (branch + 1) * num_images)
            branch_losses = super().loss(
                hidden_states[:, part],
                [reference[part] for reference in references],
                enc_outputs_class[part],
                enc_outputs_coord[part],
                batch_data_samples[part],
                dn_meta,
            )
            for name, loss in branch_losses.items():
                losses[f'cb{branch}.{name}'] = weight * loss
        return losses


@MODELS.register_module()
class CBDINO(InternImageDINO):
    """DINO on ``CBInternImage``, with ``CBChannelMapper`` and ``CBDINOHead``.

    In training the transformer and the head see every image twice, with the features of
    either branch; in testing once, with those of the second.

    Args:
        rule: What to freeze: one of the published rules, such as 'freeze_backbone' or
            'freeze_backbone_expect_level_4'; None for nothing. What is frozen gets no
            gradients; it stays in training mode, as published.
        **kwargs: Those of mmdet's ``DINO``.

    Raises:
        TypeError: ``rule`` is no text.
        ValueError: An unknown rule; the message lists the known ones.

    Source: OpenGVLab/InternImage@31c962d,
        detection/mmdet_custom/models/detectors/cbnet_dino.py.
    """

    def __init__(self, rule: str | None = None, **kwargs: Any) -> None:
        if rule is not None:
            choice('rule', rule, _FREEZING_RULES)
        super().__init__(**kwargs)
        if rule is None:
            return
        frozen, trainable = _FREEZING_RULES[rule]
        for name, param in self.named_parameters():
            if _has_any(name, frozen) and not _has_any(name, trainable):
                param.requires_grad_(False)

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Compute the losses of both branches.

        Args:
            batch_inputs: ``(N, 3, H, W)``, normalised.
            batch_data_samples: Their annotations.

        Returns:
            The losses by name; see :meth:`CBDINOHead.loss`.
        """
        branches = self.extract_feat(batch_inputs)
        features = tuple(torch.cat(levels) for levels in zip(*branches, strict=True))
        samples = [*batch_data_samples, *batch_data_samples]
        head_inputs = self.forward_transformer(features, samples)
        return self.bbox_head.loss(**head_inputs, batch_data_samples=samples)


def _has_any(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)
