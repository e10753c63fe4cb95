# SPDX-License-Identifier: Apache-2.0
"""What no output depends on is neither run nor trained, and loads as published."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from torch import nn

from internimage import CBInternImage, InternImage
from tests.golden import fill

SMALL = {'channels': 6, 'depths': (1, 2, 2, 1), 'groups': (1, 2, 3, 6)}
IMAGE = torch.randn(1, 3, 37, 45, generator=torch.Generator().manual_seed(0))

# Levels -> prefixes of what is not needed for them.
LEVELS = [
    ((0,), ('levels.0.downsample', 'levels.1', 'levels.2', 'levels.3')),
    ((0, 1), ('levels.1.downsample', 'levels.2', 'levels.3')),
    ((1, 2), ('levels.2.downsample', 'levels.3')),
    ((3,), ()),
    ((0, 1, 2, 3), ()),
]


def run(model: nn.Module) -> list[str]:
    """Return the names of the modules that run."""
    names = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: names.append(name))
    model(IMAGE)
    return names


def train_in_parallel(model: nn.Module) -> None:
    """Take two steps as distributed training does: it waits for every gradient."""
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        wrapped = MMDistributedDataParallel(model, find_unused_parameters=False)
        for _ in range(2):
            outputs = wrapped(IMAGE)
            if isinstance(outputs[0], tuple):
                outputs = [level for branch in outputs for level in branch]
            sum(output.square().mean() for output in outputs).backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(('out_indices', 'unused'), LEVELS)
def test_levels_after_the_last_one_returned(out_indices, unused):
    whole = fill(InternImage(SMALL)).eval()
    model = InternImage(SMALL, out_indices=out_indices).eval()
    model.load_state_dict(whole.state_dict(), strict=True)
    expected = [whole(IMAGE)[index] for index in out_indices]
    torch.testing.assert_close(list(model(IMAGE)), expected)
    assert not any(name.startswith(unused) for name in run(model) if unused)

    for mode in (True, False, True):
        model.train(mode)
        for name, param in model.named_parameters():
            assert param.requires_grad != (bool(unused) and name.startswith(unused))
    train_in_parallel(model)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_weights_of_the_whole_backbone_are_read_and_written(tmp_path):
    whole = fill(InternImage(SMALL)).state_dict()
    torch.save({'model': whole}, tmp_path / 'x.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    model = InternImage(SMALL, out_indices=(1,), init_cfg=init_cfg)
    model.init_weights()
    torch.testing.assert_close(dict(model.state_dict()), dict(whole))


@pytest.mark.parametrize('other', [{'layer_scale': 1.0}, {'post_norm': True}])
def test_norms_that_published_models_do_not_apply(other):
    model = fill(InternImage(SMALL, res_post_norm=True, **other))
    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    assert not any('.res_post_norm' in name for name in trained)
    assert not any('.res_post_norm' in name for name in run(model))
    train_in_parallel(model)
    assert all('.res_post_norm' in name for name in model.state_dict().keys() - trained)


@pytest.mark.parametrize(
    ('out_indices', 'unused'),
    [
        (((0, 1, 2, 3), (1, 2, 3)), ()),
        (((0,), (3,)), ()),
        (
            ((0, 3), (1, 2)),
            (
                'cb_modules.1.levels.2.downsample',
                'cb_modules.1.levels.3',
                'cb_modules.1.gamma3',
            ),
        ),
        (
            ((3,), (0,)),
            (
                'cb_modules.1.levels.0.downsample',
                *(f'cb_modules.1.levels.{level}' for level in (1, 2, 3)),
                *(f'cb_modules.1.gamma{level}' for level in (1, 2, 3)),
                *(f'cb_linears.{level}' for level in (1, 2, 3)),
            ),
        ),
    ],
)
def test_levels_of_the_composite_backbone(out_indices, unused):
    whole = fill(CBInternImage(SMALL, out_indices=((0, 1, 2, 3), (0, 1, 2, 3)))).eval()
    model = CBInternImage(SMALL, out_indices=out_indices).eval()
    model.load_state_dict(whole.state_dict(), strict=True)
    for outputs, everything, levels in zip(
        model(IMAGE), whole(IMAGE), out_indices, strict=True
    ):
        if len(outputs) < len(levels):
            levels = levels[1:]
        expected = [everything[level] for level in levels]
        torch.testing.assert_close(list(outputs), expected)
    assert not any(name.startswith(unused) for name in run(model) if unused)
    model.train()
    for name, param in model.named_parameters():
        assert param.requires_grad != (bool(unused) and name.startswith(unused)), name
    train_in_parallel(model)
