# SPDX-License-Identifier: Apache-2.0
"""Mask2Former as the published weights were trained and tested."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from mmseg.models.decode_heads import Mask2FormerHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor

from ops_dcnv3.arguments import integer

from ..codebases import require


@MODELS.register_module()
class InternImageMask2FormerHead(Mask2FormerHead):
    """Mask2Former (arXiv:2112.01527) that predicts and learns as the published one.

    mmseg's head has the same layers, but it

    * resizes the masks before it multiplies them with the classes; here their product
      is resized, as in the published numbers;
    * takes the size of the whole padded image also for the windows of sliding-window
      inference;
    * counts an image without labels as one with a mask, which shrinks the losses of
      the masks in its batch;
    * computes the losses in half precision, where autocast says so.

    Args:
        num_classes: Number of classes, without the one for 'no object'.
        **kwargs: Those of mmseg's ``Mask2FormerHead``. ``loss_cls.class_weight`` lists
            a weight for each class, and one for 'no object' (published: 1 and 0.1).

    Raises:
        ModuleNotFoundError: mmdet is not installed.
        TypeError: ``num_classes`` is no integer.
        ValueError: As many class weights as that are expected, others were given.

    Source: OpenGVLab/InternImage@31c962d,
        segmentation/mmseg_custom/models/decode_heads/mask2former_head.py and
        segmentation/mmseg_custom/models/segmentors/encoder_decoder_mask2former.py.
    """

    # mmseg's other heads resize what they predict: to the size of the window, or of the
    # padded image. Its Mask2FormerHead is no subclass of theirs.
    predict_by_feat = BaseDecodeHead.predict_by_feat

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        require('InternImageMask2FormerHead', 'mmdet')  # for its layers and losses
        num_classes = integer('num_classes', num_classes)
        super().__init__(num_classes=num_classes, **kwargs)
        weights = self.class_weight
        if not isinstance(weights, list | tuple) or len(weights) != num_classes + 1:
            got = len(weights) if isinstance(weights, list | tuple) else repr(weights)
            raise ValueError(
                f'loss_cls.class_weight: expected {num_classes + 1} weights, for '
                f"{num_classes} classes and 'no object', got {got}; "
                'set it together with num_classes'
            )

    def forward(
        self, x: Sequence[Tensor], batch_data_samples: Any = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Compute classes and masks after each layer of the decoder, and before it.

        Args:
            x: Features ``(N, C_i, H_i, W_i)``, of strides 4, 8, 16 and 32.
            batch_data_samples: Not looked at. ``EncoderDecoder`` gives none for
                ``mode='tensor'``, though mmdet's head asks for it.

        Returns:
            Logits of the classes, each ``(N, queries, num_classes + 1)``, the last for
            'no object'; and logits of the masks, each ``(N, queries, H_0, W_0)``.
        """
        return super().forward(x, batch_data_samples)

    def predict(
        self, x: Sequence[Tensor], batch_img_metas: list[dict[str, Any]], test_cfg: Any
    ) -> Tensor:
        """Rate each class at each pixel of the network's input.

        mmseg's ``EncoderDecoder`` takes them for logits, in whole and in sliding-window
        inference and in ``SegTTAModel``: as published, augmented views are averaged
        after another softmax over the classes.

        Args:
            x: Features ``(N, C_i, H_i, W_i)``, of strides 4, 8, 16 and 32.
            batch_img_metas: The first one tells the size of the input.
            test_cfg: Not looked at.

        Returns:
            ``(N, num_classes, H, W)``: the probability of the class times that of the
            mask, summed over all queries. Between 0 and the number of queries.
        """
        all_classes, all_masks = self(x)
        classes = all_classes[-1].softmax(dim=-1)[..., :-1]
        masks = all_masks[-1].sigmoid()
        ratings = torch.einsum('nqc,nqhw->nchw', classes, masks)
        return self.predict_by_feat(ratings, batch_img_metas)

    def loss_by_feat(
        self,
        all_cls_scores: list[Tensor],
        all_mask_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Compute the losses of all layers, in single precision also under autocast.

        They are sums over thousands of points; so are the costs, which decide what
        query learns what mask.

        Args:
            all_cls_scores: As returned by :meth:`forward`.
            all_mask_preds: As returned by :meth:`forward`.
            batch_gt_instances: Per image the ``labels`` ``(masks,)`` in it, and their
                ``masks`` ``(masks, H, W)``. Pixels without label are in no mask.
            batch_img_metas: Per image.

        Returns:
            ``loss_cls``, ``loss_mask`` and ``loss_dice`` of the last layer; those of
            the others with ``d0.``, ``d1.``, ... before it.
        """
        with torch.autocast(all_cls_scores[0].device.type, enabled=False):
            return super().loss_by_feat(
                [scores.float() for scores in all_cls_scores],
                [masks.float() for masks in all_mask_preds],
                batch_gt_instances,
                batch_img_metas,
            )

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Match queries with masks.

        Args:
            *args: Those of mmdet's head.
            **kwargs: Likewise.

        Returns:
            What mmdet's head returns, with the number of matched masks for the factor
            to average by. mmdet adds one for each image without any.
        """
        labels, label_weights, masks, mask_weights, _, *rest = super().get_targets(
            *args, **kwargs
        )
        num_matched = sum(map(len, masks))
        return labels, label_weights, masks, mask_weights, num_matched, *rest
