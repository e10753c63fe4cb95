# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from internimage import CBInternImage, InternImage
from tests.golden import assert_matches_golden, fill, fill_value, golden_input
from tests.paths import DATA

GOLDEN = np.load(DATA / 'detectors.npz')
(CASE,) = (
    case
    for case in json.loads(str(GOLDEN['cases']))
    if case['case'].startswith('cb_backbone/')
)

# Lopsided on purpose: no two levels alike, H != W, and sizes that no stride divides.
SMALL = {'channels': 6, 'depths': (1, 2, 4, 1), 'groups': (1, 2, 3, 6)}
IMAGE = torch.randn(2, 3, 70, 45, generator=torch.Generator().manual_seed(0))


def small(**kwargs) -> CBInternImage:
    return fill(CBInternImage(SMALL, **kwargs))


def test_output_is_the_published_one():
    model = CBInternImage(CASE['arch'], out_indices=CASE['out_indices']).eval()
    model.load_state_dict(
        {
            name: torch.from_numpy(fill_value(name, shape))
            for name, shape in CASE['keys']
        }
    )
    with torch.no_grad():
        outputs = model(golden_input(CASE['input_tag'], CASE['input_shape']))
    assert [len(branch) for branch in outputs] == [3, 3]
    for branch, levels in enumerate(outputs):
        for level, output in enumerate(levels):
            name = f'{CASE["case"]}/out{branch}_{level}'
            assert_matches_golden(output, GOLDEN, name)


def test_every_codebase_finds_it():
    config = ConfigDict(type='CBInternImage', arch=SMALL, with_cp=True)
    model = MODELS.build(config)
    assert model.arch.level_channels == (6, 12, 24, 48)
    assert all(level.with_cp for branch in model.cb_modules for level in branch.levels)


def test_starts_as_two_branches_with_one_stem():
    model = CBInternImage(SMALL).eval()
    model.init_weights()
    alone = InternImage(SMALL).eval()
    first, second = model.cb_modules
    lead = {k: v for k, v in second.state_dict().items() if k.startswith('levels.')}
    alone.load_state_dict({**first.state_dict(), **lead})
    assert all(not getattr(second, f'gamma{level}').any() for level in range(4))
    with torch.no_grad():
        outputs = model(IMAGE)
        for actual, expected in zip(outputs[0], first(IMAGE)[1:], strict=True):
            assert torch.equal(actual, expected)
        for actual, expected in zip(outputs[1], alone(IMAGE)[1:], strict=True):
            torch.testing.assert_close(actual, expected)


def test_first_branch_helps_each_level_with_the_deeper_ones():
    model = small().eval()
    shapes = {name: tuple(linear.shape) for name, linear in model.state_dict().items()}
    assert shapes['cb_linears.0.3.weight'] == (6, 48, 1, 1)
    assert 'cb_linears.0.0.weight' not in shapes
    second = model.cb_modules[1]
    with torch.no_grad():
        before = model(IMAGE)[1]
        second.gamma3.zero_()
        without_last = model(IMAGE)[1]
        for level in range(3):
            getattr(second, f'gamma{level}').zero_()
        without_all = model(IMAGE)[1]
    assert torch.equal(before[1], without_last[1])
    assert not torch.equal(before[2], without_last[2])
    assert not torch.equal(before[0], without_all[0])


def test_factor_is_rounded_to_half_precision():
    model = small().eval()
    gamma = model.cb_modules[1].gamma0
    with torch.no_grad():
        gamma.fill_(1.0)
        expected = model(IMAGE)[1][0]
        gamma.fill_(1.0 + 2**-12)  # a quarter of half precision's step
        assert torch.equal(model(IMAGE)[1][0], expected)
        gamma.fill_(1.0 + 2**-9)
        assert not torch.equal(model(IMAGE)[1][0], expected)


def test_every_parameter_learns():
    model = small().train()
    features = [level for branch in model(IMAGE) for level in branch]
    sum((level * torch.randn_like(level)).sum() for level in features).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert param.grad.any(), name


def test_checkpointing_changes_no_gradient():
    gradients = []
    for with_cp in (False, True):
        model = small(with_cp=with_cp).train()
        sum(level.square().mean() for level in model(IMAGE)[1]).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient)


def test_pretrained_file_fills_both_branches(tmp_path):
    file = str(tmp_path / 'pretrained.pth')
    published = fill(InternImage(SMALL)).state_dict()
    torch.save({'model': published}, file)
    model = CBInternImage(SMALL, init_cfg={'type': 'Pretrained', 'checkpoint': file})
    model.init_weights()
    for branch in model.cb_modules:
        for name, value in branch.state_dict().items():
            if not name.startswith('gamma'):
                assert torch.equal(value, published[name]), name


@pytest.mark.parametrize('levels', [((0, 1),), ((0, 4), (1,)), ((), (1,)), ((0,), ())])
def test_wrong_levels_are_refused(levels):
    with pytest.raises(ValueError, match='out_indices: expected'):
        CBInternImage(SMALL, out_indices=levels)


def test_unknown_argument_is_refused():
    with pytest.raises(ValueError, match='cb_del_stages'):
        CBInternImage(SMALL, cb_del_stages=1)


def test_levels_of_the_first_branch_as_asked():
    model = small(out_indices=((0, 3), (1, 2))).eval()
    with torch.no_grad():
        first, second = model(IMAGE)
    assert [x.shape[1] for x in first] == [6, 48]
    assert [x.shape[1] for x in second] == [12, 24]


def test_frozen_stages_freeze_both_branches():
    model = small(frozen_stages=2).train()
    frozen = [branch.levels[1] for branch in model.cb_modules]
    for module in (*frozen, model.cb_modules[0].patch_embed):
        assert not module.training
        assert not any(param.requires_grad for param in module.parameters())
    assert all(param.requires_grad for param in model.cb_linears.parameters())


def test_layer_decay_does_not_reach_it():
    """As published: the rule looks for ``backbone.levels``."""
    detector = nn.Module()
    detector.backbone = CBInternImage(SMALL)
    for name, _ in detector.named_parameters():
        assert detector.backbone.get_layer_depth(name) == (9, 10)
