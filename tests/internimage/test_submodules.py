# SPDX-License-Identifier: Apache-2.0
"""Whatever a user does to a part of the network takes effect, in every mode.

Shortcuts run several layers in one call; they must see that somebody hooked, replaced,
subclassed, wrapped or parametrised one of them.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from internimage import InternImage
from internimage.backbone import Block
from ops_dcnv3 import DCNv3

ARCH = dict(channels=8, depths=(2, 1), groups=(2, 4))
VARIANTS = {
    'plain': {},
    'layer_scale': dict(layer_scale=0.5),
    'post_norm': dict(post_norm=True),
    'both': dict(layer_scale=0.5, post_norm=True),
    'res_post_norm': dict(res_post_norm=True, center_feature_scale=True),
    'other_layers': dict(norm_layer='BN', act_layer='SiLU', dw_kernel_size=5),
}
EVERY_VARIANT = pytest.mark.parametrize('variant', VARIANTS)
#: Of (training, gradients).
MODES = [(False, False), (False, True), (True, True)]
EVERY_MODE = pytest.mark.parametrize(('training', 'gradients'), MODES)
INPUT = torch.randn(2, 5, 7, 8, generator=torch.Generator().manual_seed(0))


def make_block(variant: str, training: bool) -> Block:
    torch.manual_seed(0)
    model = InternImage(ARCH, out_indices=(1,), **VARIANTS[variant])
    block = model.levels[0].blocks[1]
    for module in block.modules():
        if isinstance(module, DCNv3):
            nn.init.normal_(module.offset.weight, std=0.2)
    return block.train(training)


def names_of_parts(module: nn.Module) -> list[str]:
    named = module.named_modules()
    return [n for n, part in named if n and not isinstance(part, nn.ModuleList)]


def expected_calls(name: str) -> int:
    """Both halves of a block have the same drop path."""
    return 2 if name == 'drop_path' else 1


class Wrapped(nn.Module):
    """Another module in the place of one, without any of its attributes."""

    def __init__(self, inner: nn.Module, calls: list) -> None:
        super().__init__()
        self.inner = inner
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append('wrapped')
        return self.inner(x)


def hook(root, name, calls):
    part = root.get_submodule(name)
    return part.register_forward_hook(lambda *_: calls.append('hook')).remove


def set_forward(root, name, calls):
    """What offloading does."""
    part = root.get_submodule(name)
    forward = part.forward

    def watched(*args):
        calls.append('forward')
        return forward(*args)

    part.forward = watched
    return lambda: delattr(part, 'forward')


def wrap(root, name, calls):
    """What adapters and quantisation do."""
    part = root.get_submodule(name)
    parent, _, key = name.rpartition('.')
    siblings = root.get_submodule(parent)._modules
    siblings[key] = Wrapped(part, calls)
    return lambda: siblings.__setitem__(key, part)


def subclass(root, name, calls):
    part = root.get_submodule(name)
    base = type(part)

    def forward(self, *args):
        calls.append('subclass')
        return base.forward(self, *args)

    part.__class__ = type('Sub', (base,), {'forward': forward})
    return lambda: setattr(part, '__class__', base)


def assert_calls_are_seen(root, name, change, run, expected):
    calls = []
    undo = change(root, name, calls)
    output = run()
    undo()
    assert len(calls) == expected_calls(name), name
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('change', [hook, set_forward, wrap, subclass])
@EVERY_MODE
@EVERY_VARIANT
def test_every_part_is_called(variant, training, gradients, change):
    block = make_block(variant, training)
    with torch.set_grad_enabled(gradients):
        expected = block(INPUT)
        for name in names_of_parts(block):
            assert_calls_are_seen(block, name, change, lambda: block(INPUT), expected)


@EVERY_VARIANT
def test_every_part_has_a_backward_hook(variant):
    """Once each, so nothing is run again in the backward pass either."""
    block, calls = make_block(variant, True), []
    for name in names_of_parts(block):
        part = block.get_submodule(name)
        handles = [
            part.register_full_backward_pre_hook(lambda *_: calls.append('before')),
            part.register_full_backward_hook(lambda *_: calls.append('hook')),
        ]
        block(INPUT.clone().requires_grad_()).square().sum().backward()
        for handle in handles:
            handle.remove()
        assert calls == ['before', 'hook'] * expected_calls(name), name
        calls.clear()


@EVERY_MODE
@EVERY_VARIANT
@pytest.mark.parametrize(
    'register',
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ],
)
def test_hooks_on_all_modules(variant, training, gradients, register):
    block, calls = make_block(variant, training), []
    handle = register(lambda module, *_: calls.append(module))
    try:
        with torch.set_grad_enabled(gradients):
            block(INPUT)
    finally:
        handle.remove()
    assert set(calls) == set(block.modules())
    assert len(calls) == len(set(calls)) + 1  # drop_path, in both halves


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize(('training', 'gradients'), [MODES[0], MODES[2]])
@EVERY_VARIANT
def test_every_parameter_can_be_parametrised(variant, training, gradients):
    block = make_block(variant, training)
    for full_name, parameter in list(block.named_parameters()):
        name, _, key = full_name.rpartition('.')
        part = block.get_submodule(name)
        with torch.set_grad_enabled(gradients):
            parametrize.register_parametrization(part, key, Halved())
            output = block(INPUT)
            parametrize.remove_parametrizations(part, key, leave_parametrized=False)
            with torch.no_grad():
                parameter.div_(2)
            expected = block(INPUT)
            with torch.no_grad():
                parameter.mul_(2)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@EVERY_MODE
def test_every_weight_can_be_pruned(training, gradients):
    block = make_block('plain', training)
    for name in names_of_parts(block):
        part = block.get_submodule(name)
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
            prune.l1_unstructured(part, 'weight', 0.5)
            with torch.set_grad_enabled(gradients):
                output = block(INPUT)
                prune.remove(part, 'weight')
                torch.testing.assert_close(output, block(INPUT), rtol=1e-4, atol=1e-5)


@EVERY_VARIANT
def test_drop_path_that_trains_in_evaluation(variant):
    """What ensembles of one network do: its own mode counts, not that of the block."""
    block = make_block(variant, False)
    block.drop_path.rate = 0.999
    with torch.no_grad():
        assert not torch.equal(block(INPUT), INPUT)
        block.drop_path.train()
        assert torch.equal(block(INPUT), INPUT)


@pytest.mark.parametrize('change', [hook, wrap])
def test_every_part_between_blocks(change):
    torch.manual_seed(0)
    model = InternImage(ARCH, out_indices=(0, 1), layer_scale=0.5).eval()
    image = torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        expected = model(image)
        for name in names_of_parts(model):
            if '.blocks' not in name and name not in ('levels.0', 'levels.1'):
                assert_calls_are_seen(
                    model, name, change, lambda: model(image), expected
                )
