# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs of a model, counted as in the published tables.

The rule is that of the published counter. mmcv's ``get_model_complexity_info`` counts
layers, a multiply-add as one: convolutions and their biases, linear layers, norms,
ReLUs, poolings. DCNv3's sampling is added as ``5 * N * K * C``: for each of ``N``
output pixels, ``K`` points and ``C`` channels, the four corners of the bilinear sample
and the mask. This gives the published figures of all detectors and segmentors to the
last digit, and those of the classifiers, but for InternImage-H: 1487 G at 640 x 640,
where 1478 G was published. Its backbone alone has 1481 G; the published figure seems
to leave out most of the projector behind it.

The rule sees layers only. It leaves out GELU, softmax, SyncBatchNorm, resizing, and
all that functions do: the products of attention, the sampling of other operators,
``center_feature_scale`` of InternImage-H and G. So all multiply-adds of convolutions
and matrix products are counted beside it, by PyTorch's ``FlopCounterMode``.

Models are counted on the meta device, where they take no memory and compute nothing.
Importing this module needs mmcv, which comes with every codebase.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ops_dcnv3 import DCNv3

from .codebases import require

try:
    from mmcv.cnn import get_model_complexity_info
except ModuleNotFoundError:
    require('internimage.complexity', 'mmcv')
    raise

aten = torch.ops.aten


class Complexity(NamedTuple):
    """Size of a model, and work of one pass over one image."""

    #: All of them, trained or frozen, those of auxiliary heads too.
    parameters: int
    #: As in the published tables.
    flops: int
    #: What DCNv3's sampling has in ``flops`` and in ``multiply_adds``.
    sampling: int
    #: Of all convolutions and matrix products, whoever calls them, and the sampling.
    multiply_adds: int


def count_complexity(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    """Count the parameters of a model, and the FLOPs of one image.

    Counted is what runs at test time, so no auxiliary heads, up to where the work
    depends on the picture. The second stage of a detector runs on as many boxes and
    masks as ``test_cfg`` allows at most: 1000 and 100 in the published models.

    Args:
        model: Of mmpretrain, mmdet or mmseg, on any device; a copy on the meta device
            is counted.
        shape: Height and width of the image.
    """
    model = copy.deepcopy(model).to('meta')
    products = FlopCounterMode(display=False)
    with _sampling_counted(model) as samplings, products, _RealSizes(), torch.no_grad():
        layers, _ = get_model_complexity_info(
            _Pass(model), (3, *shape), print_per_layer_stat=False, as_strings=False
        )
    sampling = sum(samplings)
    return Complexity(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=int(layers) + sampling,
        sampling=sampling,
        multiply_adds=products.get_total_flops() // 2 + sampling,
    )


@contextmanager
def _sampling_counted(model: nn.Module) -> Iterator[list[int]]:
    """Yield a list that gets the FLOPs of each sampling by a DCNv3 of the model."""
    counts: list[int] = []

    def count(layer: DCNv3, inputs: tuple[Tensor], output: Tensor) -> None:
        counts.append(5 * layer.geometry.num_points * output.numel())

    layers = [module for module in model.modules() if isinstance(module, DCNv3)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


class _Pass(nn.Module):
    """The pass of an image through a model that is counted."""

    model: Any  # its methods depend on the codebase

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> None:
        names = ('img_shape', 'pad_shape', 'batch_input_shape')
        sample = BaseDataElement(metainfo=dict.fromkeys(names, tuple(image.shape[2:])))
        if hasattr(self.model, 'roi_head'):
            _run_two_stages(self.model, image)
        elif hasattr(self.model, 'encode_decode'):
            # Of mmseg, whose mode='tensor' gives its Mask2FormerHead too few arguments.
            self.model.encode_decode(image, [sample.metainfo])
        else:
            self.model(image, [sample], mode='tensor')


def _run_two_stages(detector: Any, image: Tensor) -> None:
    """Run a two-stage detector of mmdet, its second stage on boxes without content.

    What its mode='tensor' does instead depends on the picture.
    """
    features = detector.extract_feat(image)
    if detector.with_rpn:
        detector.rpn_head(features)
    roi_head, limits = detector.roi_head, detector.test_cfg
    branches = [(roi_head.bbox_roi_extractor, roi_head.bbox_head, limits.rpn)]
    if roi_head.with_mask:
        branches.append((roi_head.mask_roi_extractor, roi_head.mask_head, limits.rcnn))
    for extractors, heads, limit in branches:
        # A cascade has one of each per step.
        for extractor, head in zip(_as_list(extractors), _as_list(heads), strict=True):
            size = extractor.roi_layers[0].output_size
            head(image.new_empty(limit.max_per_img, extractor.out_channels, *size))


def _as_list(module: Any) -> list[Any]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


class _RealSizes(TorchDispatchMode):
    """Keeps integers off the meta device, where they would lose their values.

    Transformers compute sizes with tensors, such as ``spatial_shapes``. Integers that
    are moved to the meta device stay on the CPU while this mode is active, and follow
    when an operation has another tensor on the meta device.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.is_meta for x in tensors):
            args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
        elif func is aten._to_copy.default and not tensors[0].is_floating_point():
            kwargs = {**kwargs, 'device': tensors[0].device}
        return func(*args, **kwargs)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.to('meta')
