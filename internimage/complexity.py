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
Where what follows the backbone does not run there, as mmcv's deformable convolutions do
not, or where what runs depends on boxes that were found, it runs on the CPU.
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

from .backbone import InternImage
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


class NeedsValuesError(RuntimeError):
    """The model has to run, and its parameters have no values to run with."""


def count_complexity(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    """Count the parameters of a model, and the FLOPs of one image.

    Counted is what runs at test time, so no auxiliary heads, up to where the work
    depends on the picture. The second stage of a detector runs on as many boxes and
    masks as ``test_cfg`` allows at most: 1000 and 100 in the published models.

    Args:
        model: Of mmpretrain, mmdet or mmseg, on any device; a copy is counted.
        shape: Height and width of the image.

    Raises:
        NeedsValuesError: The model is on the meta device, and parts of it do not run
            there; build it on the CPU.
        ValueError: A two-stage detector has no RPN.
    """
    part = _tested_part(model)
    if hasattr(part, 'roi_head') and not part.with_rpn:
        raise ValueError(
            f'{type(part).__name__}: expected a detector with an RPN; the boxes of one '
            'without come from a file, and how many is not known'
        )
    reason = 'what runs depends on the boxes that it finds'
    if not _depends_on_boxes(part):
        try:
            return _count(_OnMeta(copy.deepcopy(model)), shape)
        except RuntimeError as error:  # NotImplementedError is one
            reason = f'{type(error).__name__}: {error}'.strip()
    parameters = part.named_parameters()
    if any(p.is_meta for name, p in parameters if not name.startswith('backbone.')):
        raise NeedsValuesError(
            f'{type(model).__name__}: expected a model on the CPU, as parts of it do '
            f'not run on the meta device, got one there ({reason})'
        )
    return _count(_OnCpu(copy.deepcopy(model)), shape)


def _count(model: '_Pass', shape: tuple[int, int]) -> Complexity:
    products = FlopCounterMode(display=False)
    with _sampling_counted(model) as samplings, products, _RealSizes(), torch.no_grad():
        layers, _ = get_model_complexity_info(
            model,
            (_in_channels(model), *shape),
            print_per_layer_stat=False,
            as_strings=False,
        )
    sampling = sum(samplings)
    return Complexity(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=int(layers) + sampling,
        sampling=sampling,
        multiply_adds=products.get_total_flops() // 2 + sampling,
    )


def _in_channels(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, InternImage):
            return module.in_channels
    return 3


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

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def _run(self, model: Any, image: Tensor) -> None:
        """Run all layers of a model of one stage."""
        metainfo = _metainfo(image)
        if hasattr(model, 'encode_decode'):
            # Of mmseg, whose mode='tensor' gives its Mask2FormerHead too few arguments.
            model.encode_decode(image, [metainfo])
        else:
            model(image, [BaseDataElement(metainfo=metainfo)], mode='tensor')


class _OnMeta(_Pass):
    """On the meta device."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.to('meta'))

    def forward(self, image: Tensor) -> None:
        model = _tested_part(self.model)
        if hasattr(model, 'roi_head'):
            _run_two_stages(model, image)
        else:
            self._run(model, image)


class _OnCpu(_Pass):
    """The backbone on the meta device, the rest with random features on the CPU."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        part = _tested_part(model)
        if hasattr(part, 'backbone'):
            backbone, part.backbone = part.backbone, None
            part.cpu().backbone = _RandomFeatures(backbone)
        if hasattr(getattr(part, 'rpn_head', None), 'init_proposal_bboxes'):
            part.rpn_head.init_weights()  # learned boxes: any others may be no boxes
        for module in part.modules():
            if isinstance(getattr(module, 'test_cfg', None), dict):
                _let_everything_pass(module.test_cfg)
        if hasattr(part, 'roi_head') and part.roi_head.with_mask:
            for head in _as_list(part.roi_head.mask_head):
                head.predict_by_feat = _paste_nothing

    def forward(self, image: Tensor) -> None:
        model = _tested_part(self.model)
        image = torch.zeros(image.shape)
        if not _depends_on_boxes(model):
            self._run(model, image)
            return
        from mmdet.structures import DetDataSample

        sample = DetDataSample(metainfo=_metainfo(image))
        model.predict(image, [sample], rescale=False)


def _metainfo(image: Tensor) -> dict[str, Any]:
    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    sizes = dict.fromkeys(names, tuple(image.shape[2:]))
    return {**sizes, 'scale_factor': (1.0, 1.0)}


class _RandomFeatures(nn.Module):
    """Random features of the shapes that a backbone returns."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.to('meta')

    def forward(self, image: Tensor) -> Any:
        generator = torch.Generator().manual_seed(0)
        return tree_map_only(
            Tensor,
            lambda x: torch.randn(x.shape, generator=generator),
            self.backbone(image.to('meta')),
        )


def _let_everything_pass(cfg: dict[str, Any]) -> None:
    """Change the settings of a test so that all boxes stay that it allows at most."""
    for key, value in cfg.items():
        if isinstance(value, dict):
            _let_everything_pass(value)
        elif key in ('score_thr', 'min_bbox_size'):
            cfg[key] = -1
        elif key in ('iou_threshold', 'iou_thr'):
            cfg[key] = 2.0  # which no two boxes reach


def _paste_nothing(mask_preds: Any, results_list: Any, *_: Any, **__: Any) -> Any:
    """Leave masks out of the results: no layer runs, and random boxes have no place."""
    return results_list


def _tested_part(model: Any) -> Any:
    """Return what is tested of a model: of a semi-supervised one, one detector."""
    if hasattr(model, 'semi_test_cfg'):
        return getattr(model, model.semi_test_cfg.get('predict_on', 'teacher'))
    return model


def _depends_on_boxes(model: Any) -> bool:
    """Tell whether what runs depends on boxes in another way than by their number."""
    if not hasattr(model, 'roi_head'):
        # CondInst and YOLACT predict parameters of masks together with boxes.
        return bool(getattr(model, 'mask_head', None)) and model.with_bbox
    roi_head = model.roi_head
    extractors = _as_list(roi_head.bbox_roi_extractor)
    return (
        type(roi_head).__name__ not in ('StandardRoIHead', 'CascadeRoIHead')
        or roi_head.with_shared_head
        or hasattr(model, 'semantic_head')
        or any(type(part).__name__ != 'SingleRoIExtractor' for part in extractors)
    )


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
