# SPDX-License-Identifier: Apache-2.0
"""Time a training step of Mask R-CNN: forward, losses, backward, AdamW.

Images, boxes and masks are random. Compared are the compiled operator and the PyTorch
reference in the same model; both start from the same seed, so that drop path and the
sampling of boxes are the same.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from models import TOLERANCE, draw_weights, error_of, with_operator
from peers import REFERENCE
from record import OURS, ROOT, Benchmark, WrongResultError, make_parser, new_row
from timing import Call
from torch import nn

CONFIG = ROOT / 'configs/detection/mask-rcnn_internimage-t_fpn_1x_coco.py'
STEP = 'training step'
OBJECTS = 8
#: What makes the model small enough to try this benchmark out in seconds.
SMALL = {
    'model.backbone.arch': dict(
        channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8], _delete_=True
    ),
    'model.neck.in_channels': [16, 32, 64, 128],
    'model.roi_head.bbox_head.fc_out_channels': 32,
    'model.roi_head.mask_head.num_convs': 1,
    'model.train_cfg.rcnn.sampler.num': 16,
}


def make_model(config: Config) -> Any:
    """Build the detector of a config with random weights, its points spread."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
    draw_weights(model)
    return model


def make_batch(batch: int, height: int, width: int) -> dict[str, Any]:
    """Return random images with random boxes and their masks, as a data loader does.

    Args:
        batch: Number of images.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    inputs, samples = [], []
    for _ in range(batch):
        corner = torch.rand(OBJECTS, 2) * 0.7
        size = 0.1 + torch.rand(OBJECTS, 2) * 0.2
        boxes = torch.cat([corner, corner + size], 1)
        boxes = boxes * torch.tensor([width, height, width, height])
        masks = np.zeros((OBJECTS, height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 1
        shape = (height, width)
        sample = DetDataSample(
            metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape)
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.randint(80, (OBJECTS,)),
            masks=BitmapMasks(masks, height, width),
        )
        sample.ignored_instances = InstanceData(bboxes=boxes[:0])
        samples.append(sample)
        inputs.append(torch.randint(256, (3, height, width), dtype=torch.uint8))
    return dict(inputs=inputs, data_samples=samples)


def make_step(model: Any, data: dict[str, Any], dtype: torch.dtype) -> Call:
    """Return one training step as the runner does it; half precision by autocast."""
    # A learning rate of 0: every step does the same work.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    device = next(model.parameters()).device.type

    def step() -> None:
        torch.manual_seed(0)
        batch = model.data_preprocessor(copy.deepcopy(data), True)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            losses = model(**batch, mode='loss')
        loss, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def check(model: nn.Module, size: Sequence[int], dtype: torch.dtype) -> float:
    """Return the relative error of the backbone's last map, in float32."""
    backbone: Any = model.backbone
    device = next(model.parameters()).device
    image = torch.randn(1, 3, *size, device=device)
    backbone.eval()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        error = error_of(lambda x: backbone(x)[-1], backbone, image)
    backbone.train()
    if error > TOLERANCE[dtype]:
        raise WrongResultError(f'backbone: error {error:.1e}')
    return error


def run_case(benchmark: Benchmark, config: Config, batch: int, size: list[int]) -> None:
    """Check and time a training step with each operator."""
    torch.manual_seed(0)
    model = make_model(config).to(benchmark.device).train()
    error = check(model, size, benchmark.dtype)
    step = make_step(model, make_batch(batch, *size), benchmark.dtype)
    case = f'Mask R-CNN {size[0]}x{size[1]}'
    calls, rows = {}, {}
    for name in (OURS, REFERENCE):
        if name == OURS or benchmark.wants(name):
            calls[name] = with_operator(name, step)
            rows[name] = new_row(case, batch, STEP, name)
            rows[name]['error'] = error if name == OURS else None
    benchmark.time(calls, rows)


def main(argv: Sequence[str] | None = None) -> Path:
    """Run and write; return the path of the JSON file."""
    cuda = torch.cuda.is_available()
    parser = make_parser('Time a training step of Mask R-CNN with InternImage-T.')
    parser.set_defaults(batch=[2 if cuda else 1])
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        default=[800, 1344] if cuda else [480, 640],
        metavar=('H', 'W'),
        help='of the images, multiples of 32',
    )
    parser.add_argument('--config', default=str(CONFIG), help='of a two-stage detector')
    parser.add_argument(
        '--small', action='store_true', help='a tiny model, to try this out'
    )
    args = parser.parse_args(argv)
    if args.dtype == 'float64':
        parser.error('--dtype: expected float32, or bfloat16 or float16 by autocast')
    config = Config.fromfile(args.config)
    config.model.backbone.init_cfg = None
    if args.small:
        config.merge_from_dict(SMALL)
    args.config = Path(args.config).stem
    benchmark = Benchmark('detector', args)
    for batch in args.batch:
        benchmark.attempt(run_case, config, batch, args.size)
    return benchmark.write()


if __name__ == '__main__':
    main()
