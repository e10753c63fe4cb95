# SPDX-License-Identifier: Apache-2.0
"""What segmentation's pipelines make of an image, of odd size, and of its labels.

And what test-time augmentation makes of the predictions for its views.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from torch import Tensor

from tests.our_configs import read_config
from tests.paths import CONFIGS

pytest.importorskip('mmseg')
import mmcv
import mmseg.datasets
import mmseg.models  # noqa: F401
from mmcv.transforms import Compose
from mmseg.structures import SegDataSample

LEAVES = sorted((CONFIGS / 'segmentation').glob('*.py'))
SHAPE = (203, 331)
WHITE = (slice(150, 203), slice(20, 120))  # rows and columns of class 7

# Published, as settings or, where no config with them is published, in a comment.
SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
RATIOS = {
    'upernet_internimage-l_8xb2-160k_ade20k-640x640': (0.75, 1.0, 1.25),
    'mask2former_internimage-h_16xb1-80k_ade20k-896x896': (
        *(768 / 896, 832 / 896, 1.0, 960 / 896, 1024 / 896),
    ),
}

every_config = pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)


def read(path: Path) -> Config:
    # Mask2Former's head is not needed here.
    return read_config(path, import_custom_modules=False)


def crop_of(path: Path) -> int:
    return int(path.stem.rpartition('x')[2])


@pytest.fixture
def sample(tmp_path: Path) -> dict[str, Any]:
    """Return what a data set tells of an image; its labels are 1 and 8 in the file."""
    image = np.zeros((*SHAPE, 3), np.uint8)
    image[WHITE] = 255
    labels = np.ones(SHAPE, np.uint8)
    labels[WHITE] = 8
    labels[0] = 0  # no class
    mmcv.imwrite(image, str(tmp_path / 'image.png'))
    mmcv.imwrite(labels, str(tmp_path / 'labels.png'))
    return {
        'img_path': str(tmp_path / 'image.png'),
        'seg_map_path': str(tmp_path / 'labels.png'),
        'reduce_zero_label': True,
        'label_map': None,
        'seg_fields': [],
    }


def run(pipeline: Sequence[dict], sample: dict[str, Any]) -> dict[str, Any]:
    with DefaultScope.overwrite_default_scope('mmseg'):
        return Compose(pipeline)(sample)


def rounded_up(size: float) -> int:
    return -(-int(size + 0.5) // 32) * 32


def expected_shape(scale: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the largest image in ``scale``, then of multiples of 32."""
    long, short = max(scale), min(scale)
    factor = min(long / max(SHAPE), short / min(SHAPE))
    return rounded_up(SHAPE[0] * factor), rounded_up(SHAPE[1] * factor)


def assert_labels_are_untouched(result: SegDataSample):
    labels = result.gt_sem_seg.data[0]
    assert labels.shape == SHAPE
    assert (labels[0] == 255).all()
    assert (labels[WHITE] == 7).all()
    assert (labels[1:] == 7).sum() == (labels == 7).sum() == 53 * 100


@every_config
def test_test_image_has_sides_of_multiples_of_32(path: Path, sample: dict[str, Any]):
    config, crop = read(path), crop_of(path)
    assert config.test_dataloader.dataset.pipeline == config.test_pipeline
    result = run(config.test_pipeline, sample)
    assert result['inputs'].shape == (3, *expected_shape((4 * crop, crop)))
    # Stretched, and not padded: the image reaches the border.
    assert result['inputs'][:, -1, crop // 4] == pytest.approx(255)
    assert_labels_are_untouched(result['data_samples'])


@every_config
def test_views_are_the_published_ones(path: Path, sample: dict[str, Any]):
    config, crop = read(path), crop_of(path)
    scales = [
        (int(4 * crop * ratio), int(crop * ratio))
        for ratio in RATIOS.get(path.stem, SIX)
    ]
    views = run(config.tta_pipeline, sample)
    shapes = [tuple(view.shape[1:]) for view in views['inputs']]
    assert shapes == [expected_shape(scale) for scale in scales for _ in range(2)]
    flips = [view.flip for view in views['data_samples']]
    assert flips == [False, True] * len(scales)
    for view in views['data_samples']:
        assert_labels_are_untouched(view)


@every_config
def test_training_image_is_cropped_and_padded(path: Path, sample: dict[str, Any]):
    config, crop = read(path), crop_of(path)
    assert config.train_dataloader.dataset.pipeline == config.train_pipeline
    with DefaultScope.overwrite_default_scope('mmseg'):
        preprocess = MODELS.build(config.model.data_preprocessor)
    for _ in range(2):
        result = run(config.train_pipeline, {**sample, 'seg_fields': []})
        assert max(result['inputs'].shape[1:]) <= crop
        batch = {'inputs': [result['inputs']], 'data_samples': [result['data_samples']]}
        batch = preprocess(batch, training=True)
        height, width = result['inputs'].shape[1:]
        assert batch['inputs'].shape == (1, 3, crop, crop)
        # After the normalisation, so 0 is the mean colour.
        assert not batch['inputs'][..., height:, :].any()
        labels = batch['data_samples'][0].gt_sem_seg.data
        assert labels.shape == (1, crop, crop)
        assert (labels[..., width:] == 255).all()
        assert set(labels.unique().tolist()) <= {0, 7, 255}


class WhiteFinder(BaseModel):
    """Finds class 7 where an image is white, and undoes its flip as a segmentor does.

    Of views of the usual size it is sure; of the others it is not, and wrong.
    """

    out_channels = 150

    def __init__(self, height: int) -> None:
        super().__init__()
        self.height = height

    def forward(
        self, inputs: Sequence[Tensor], data_samples: list[SegDataSample], mode: str
    ) -> list[SegDataSample]:
        for image, sample in zip(inputs, data_samples, strict=True):
            is_sure = image.shape[1] == self.height
            white = torch.nn.functional.interpolate(image[None] / 255.0, SHAPE)[0, 0]
            if sample.flip:
                white = white.flip(1)
            logits = torch.zeros(self.out_channels, *SHAPE)
            logits[7] = (white > 0.5) * (20.0 if is_sure else -20.0)
            sample.seg_logits = PixelData(data=logits)
        return data_samples


@pytest.mark.parametrize('method', ['upernet_internimage-l', 'mask2former'])
def test_predictions_of_views_are_averaged(method: str, sample: dict[str, Any]):
    path = next(path for path in LEAVES if path.stem.startswith(method))
    config = read(path)
    views = run(config.tta_pipeline, sample)
    with DefaultScope.overwrite_default_scope('mmseg'):
        finder = WhiteFinder(expected_shape((4 * crop_of(path), crop_of(path)))[0])
        model = MODELS.build({**config.tta_model, 'module': finder})
    (result,) = model.test_step({key: [[v] for v in views[key]] for key in views})
    labels = result.pred_sem_seg.data
    assert labels.shape[-2:] == SHAPE
    is_white = torch.zeros(SHAPE, dtype=torch.bool)
    is_white[WHITE] = True
    # All but the border, where resized views differ.
    assert ((labels == 7) != is_white).sum() < 400
    assert_labels_are_untouched(result)
