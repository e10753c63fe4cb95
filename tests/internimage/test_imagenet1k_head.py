# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.registry import DefaultScope

pytest.importorskip('mmpretrain')

from internimage.classification.imagenet1k_head import ROWS_22K, ImageNet1kHead


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def state_dict(num_classes: int) -> dict[str, torch.Tensor]:
    row = torch.arange(num_classes, dtype=torch.float32)
    return {'fc.weight': row[:, None].repeat(1, 3), 'fc.bias': row}


def test_rows_follow_the_order_of_both():
    assert len(ROWS_22K) == 1000
    assert list(ROWS_22K) == sorted(ROWS_22K)
    # tench, church, parachute: n01440764, n03028079, n03888257
    assert [ROWS_22K[i] for i in (0, 497, 701)] == [359, 5613, 9042]


def test_takes_classes_out_of_22k():
    head, weights = ImageNet1kHead(1000, 3), state_dict(21841)
    head.load_state_dict(weights)
    expected = torch.tensor(ROWS_22K, dtype=torch.float32)
    assert torch.equal(head.fc.bias, expected)
    assert torch.equal(head.fc.weight, expected[:, None].repeat(1, 3))
    assert len(weights['fc.bias']) == 21841


def test_loads_1k_as_it_is():
    head, weights = ImageNet1kHead(1000, 3), state_dict(1000)
    head.load_state_dict(weights)
    assert torch.equal(head.fc.bias, weights['fc.bias'])


def test_leaves_other_tasks_alone():
    head = ImageNet1kHead(10, 3)
    with pytest.raises(RuntimeError, match='size mismatch'):
        head.load_state_dict(state_dict(21841))
