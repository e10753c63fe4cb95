# SPDX-License-Identifier: Apache-2.0
"""Layers and backbone under the transforms of PyTorch, against its plain autograd."""

import copy
import warnings
from pickle import dumps, loads

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.func import functional_call, grad, jacrev, jvp, vmap

from internimage import InternImage
from internimage.blocks import Block
from internimage.layers import Mlp
from ops_dcnv3 import DCNv3, dcnv3_softmax, why_not_fused
from ops_dcnv3.linear import linear_to_float32
from tests.tolerances import BACKWARD, FORWARD, relative_error

ARCH = dict(channels=6, depths=(1, 2), groups=(1, 3), out_indices=(0, 1))


class Flat(nn.Module):
    """A backbone whose outputs are one tensor."""

    def __init__(self, **settings) -> None:
        super().__init__()
        arch = {k: v for k, v in ARCH.items() if k != 'out_indices'}
        self.backbone = InternImage(arch, out_indices=ARCH['out_indices'], **settings)

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([x.flatten(1) for x in self.backbone(image)], 1)


class Operator(nn.Module):
    """The bare operator, on logits, as a function of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.empty(1, 4, 5, 3 * 9 * 2))
        self.logits = nn.Parameter(torch.empty(1, 4, 5, 3 * 9))

    def forward(self, x: Tensor) -> Tensor:
        return dcnv3_softmax(x, self.offset, self.logits, groups=3)


def make_block(**settings) -> Block:
    arch = {'channels': 6, 'depths': (1,), 'groups': (3,)} | settings
    return InternImage(arch, out_indices=(0,)).levels[0].blocks[0]


MAKERS = {
    'operator': Operator,
    'dcnv3': lambda: DCNv3(6, groups=3),
    'dcnv3_center': lambda: DCNv3(6, groups=3, center_feature_scale=True),
    'mlp': lambda: Mlp(6, 10, 'GELU'),
    'block': make_block,
    'block_center': lambda: make_block(res_post_norm=True, center_feature_scale=True),
    'backbone': lambda: Flat(),
    'checkpointed': lambda: Flat(with_cp=True, layer_scale=0.5),
    'post_norm': lambda: Flat(post_norm=True, center_feature_scale=True),
}
EVERY_MODULE = pytest.mark.parametrize('name', MAKERS)
EVERY_MODE = pytest.mark.parametrize('training', [False, True])


def make(name: str, training: bool = True) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = MAKERS[name]().double().train(training)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    size = (1, 3, 21, 37) if isinstance(module, Flat) else (1, 4, 5, 6)
    return module, torch.randn(3, *size, dtype=torch.float64)


def loss_of(module: nn.Module):
    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,)).square().sum()

    return loss


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert relative_error(actual, expected) < BACKWARD[torch.float64]


@EVERY_MODE
@EVERY_MODULE
def test_per_sample_gradients(name, training):
    module, batch = make(name, training)
    parameters = {key: p.detach() for key, p in module.named_parameters()}
    every = vmap(grad(loss_of(module)), in_dims=(None, 0))(parameters, batch)
    for index, x in enumerate(batch):
        module.zero_grad()
        module(x).square().sum().backward()
        one = grad(loss_of(module))(parameters, x)
        for key, parameter in module.named_parameters():
            assert_near(every[key][index], parameter.grad)
            assert_near(one[key], parameter.grad)


@pytest.mark.parametrize('with_gradients', [False, True])
@EVERY_MODULE
def test_vmap_and_jvp(name, with_gradients):
    module, batch = make(name)
    x, tangent = batch[0], batch[1]
    with torch.set_grad_enabled(with_gradients):
        assert_near(vmap(module)(batch), torch.stack([module(x) for x in batch]))
        output, change = jvp(module, (x,), (tangent,))
    assert_near(output, module(x))
    # Forward and reverse mode have the same matrix.
    weights = torch.randn_like(output)
    x.requires_grad_()
    (pulled,) = torch.autograd.grad(module(x), x, weights)
    assert_near((weights * change).sum(), (pulled * tangent).sum())


@EVERY_MODULE
def test_jacobian(name):
    module, batch = make(name)
    x = batch[0]
    total = jacrev(lambda x: module(x).flatten()[::50].sum())(x)
    rows = jacrev(lambda x: module(x).flatten()[::50])(x)
    assert_near(rows.sum(0), total)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(module(x).flatten()[::50].sum(), x)
    assert_near(total, expected)


@EVERY_MODE
@EVERY_MODULE
def test_functional_call(name, training):
    """With other parameters, which the backward pass has as well."""
    module, batch = make(name, training)
    others = {
        key: torch.randn_like(p).mul_(0.2).requires_grad_()
        for key, p in module.named_parameters()
    }
    results = []
    for kind in (None, Tensor, nn.Parameter):
        x = batch[0].clone().requires_grad_()
        if kind is None:
            changed = copy.deepcopy(module)
            changed.load_state_dict({k: v.detach() for k, v in others.items()}, False)
            output, wanted = changed(x), [x, *changed.parameters()]
        else:
            given = {
                key: p if kind is Tensor else nn.Parameter(p.detach())
                for key, p in others.items()
            }
            output, wanted = functional_call(module, given, x), [x, *given.values()]
        grads = torch.autograd.grad(output.square().sum(), wanted, allow_unused=True)
        results.append((output, *(g for g in grads if g is not None)))
    expected, *others_ = results
    for actual in others_:
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_near(one, other)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda x: loads(dumps(x))])
@EVERY_MODE
@EVERY_MODULE
def test_copies(name, training, copied):
    module, batch = make(name, training)
    other = copied(module)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)  # a copy shares nothing
    original, _ = make(name, training)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert torch.equal(other(batch[0]), original(batch[0]))


def test_a_copy_is_fused_as_the_original():
    block = make_block().eval()
    with torch.no_grad():
        assert all(
            not why_not_fused(x, torch.empty(1)) for x in (block, loads(dumps(block)))
        )


@pytest.mark.parametrize(
    ('backend', 'name'),
    [
        *(('aot_eager', name) for name in ('operator', 'dcnv3_center', 'mlp')),
        *(('aot_eager', name) for name in ('block', 'backbone')),
        # One that ends Inductor if it keeps views, as block and backbone do.
        pytest.param('inductor', 'block_center', marks=pytest.mark.slow),
    ],
)
def test_compiled_with_dynamic_sizes(name, backend):
    """Forward and backward, for two sizes of a batch."""
    module, batch = make(name)
    module = module.float()
    compiled = torch.compile(module, dynamic=True, backend=backend)
    for repeats in (2, 3):
        results = []
        for call in (compiled, module):
            x = torch.cat([batch[0].float() + i for i in range(repeats)])
            if name == 'operator':
                x = x.mean(0, keepdim=True)
            module.zero_grad()
            output = call(x.requires_grad_())
            output.square().sum().backward()
            results.append((output, x.grad, *(p.grad for p in module.parameters())))
        for actual, expected in zip(*results, strict=True):
            if expected is not None:
                assert relative_error(actual, expected) < BACKWARD[torch.float32]


def test_samples_of_a_vmap_drop_their_own_paths():
    torch.manual_seed(0)
    model = Flat(drop_path_rate=0.6, drop_path_type='uniform').train()
    images = torch.randn(1, 1, 3, 21, 37).expand(8, 1, 3, 21, 37)
    outputs = vmap(model, randomness='different')(images)
    assert len({output.sum().item() for output in outputs}) > 4
    same = vmap(model, randomness='same')(images)
    torch.testing.assert_close(same, same[:1].expand_as(same))


class LowRank(nn.Module):
    """An adapter that shows nothing of the layer that it wraps."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down = nn.Linear(inner.in_features, 2, bias=False)
        self.up = nn.Linear(2, inner.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.up(self.down(x))


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_adapter_on_any_layer(autocast, dtype):
    """Also where offsets are predicted in float32, beside a network in bfloat16."""
    torch.manual_seed(0)
    block = InternImage(dict(channels=8, depths=(1,), groups=(2,)), out_indices=(0,))
    block = block.levels[0].blocks[0]
    x = torch.randn(2, 5, 7, 8)
    if dtype and not autocast:
        block, x = block.to(dtype), x.to(dtype)
    names = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    assert 'dcn.offset' in names
    assert len(names) == 6
    for name in names:
        adapted = copy.deepcopy(block)
        parent, _, key = name.rpartition('.')
        adapter = LowRank(adapted.get_submodule(name)).to(x.dtype)
        setattr(adapted.get_submodule(parent), key, adapter)
        merged = copy.deepcopy(block)
        with torch.no_grad():
            change = adapter.up.weight @ adapter.down.weight
            merged.get_submodule(name).weight += change
        with torch.autocast('cpu', dtype, enabled=autocast and dtype is not None):
            output, expected = adapted(x), merged(x)
        assert relative_error(output, expected) < (1e-5 if dtype is None else 3e-2)
        output.float().square().sum().backward()
        assert adapter.up.weight.grad.any()


def test_offsets_stay_exact_in_bfloat16_with_a_hook():
    torch.manual_seed(0)
    layer = DCNv3(8, groups=2).bfloat16().eval()
    nn.init.normal_(layer.offset.weight, std=2.0)
    branch = torch.randn(2, 3, 4, 8).bfloat16()
    exact = layer.offset.float()(branch.float())
    layer.bfloat16()
    seen: list[Tensor] = []
    for is_hooked in (False, True):
        if is_hooked:
            layer.offset.register_forward_hook(lambda *args: seen.append(args[-1]))
        output = linear_to_float32(layer.offset, branch, is_inference=False)
        assert output.dtype == torch.float32
        assert relative_error(output, exact) < FORWARD[torch.float32]
    assert len(seen) == 1


def test_dynamic_quantisation():
    torch.manual_seed(0)
    model = Flat(layer_scale=0.5).eval()
    for module in model.modules():
        if isinstance(module, DCNv3):
            nn.init.normal_(module.offset.weight, std=0.02)
    image = torch.randn(1, 3, 21, 37)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch moves it to another package
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        with torch.no_grad():
            output = quantised(image)
    assert not any(type(m) is nn.Linear for m in quantised.modules())
    assert relative_error(output, model(image)) < 0.1


@pytest.mark.parametrize('strict', [False, True])
@EVERY_MODE
def test_exported_with_gradients(training, strict):
    torch.manual_seed(0)
    layer = DCNv3(8, groups=2).train(training)
    nn.init.normal_(layer.offset.weight, std=0.2)
    sizes = {0: Dim('n'), 1: Dim('h'), 2: Dim('w')}
    program = export(
        layer, (torch.randn(2, 5, 7, 8),), dynamic_shapes=(sizes,), strict=strict
    )
    gradients = []
    for call in (program.module(), layer):
        x = torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(1))
        output = call(x.requires_grad_())
        output.square().sum().backward()
        gradients.append((output, x.grad))
    for actual, expected in zip(*gradients, strict=True):
        assert relative_error(actual, expected) < BACKWARD[torch.float32]


@pytest.mark.slow
def test_compiled_training_with_dynamic_sizes():
    """By Inductor: what is in front of it is the same for all compilers."""
    torch.manual_seed(0)
    layer = DCNv3(8, groups=2)
    nn.init.normal_(layer.offset.weight, std=0.2)
    results = []
    for call in (torch.compile(layer, dynamic=True, fullgraph=True), layer):
        x = torch.randn(2, 5, 7, 8, generator=torch.Generator().manual_seed(1))
        output = call(x.requires_grad_())
        layer.zero_grad()
        output.square().sum().backward()
        results.append((output, x.grad, layer.offset.weight.grad))
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < BACKWARD[torch.float32]
