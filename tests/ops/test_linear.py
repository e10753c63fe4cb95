# SPDX-License-Identifier: Apache-2.0
"""Linear layers, MLPs and whole layers by our kernels on a CPU."""

import pytest
import torch
from ops_dcnv3.layers import build_norm_layer, has_linear_kernel, linear
from torch import nn
from torch.autograd.profiler import profile
from torch.nn import functional as F

from internimage.layers import Mlp
from ops_dcnv3 import DCNv3
from tests.ops.branch import make_layer
from tests.tolerances import BACKWARD, FORWARD, relative_error

linear_forward = torch.ops.ops_dcnv3.linear_forward
mlp_forward = torch.ops.ops_dcnv3.mlp_forward
layer_forward = torch.ops.ops_dcnv3.layer_forward

#: Rows, and features before and after.
SIZES = [
    (1, 1, 1),
    (5, 3, 2),
    (7, 64, 72),  # not a whole tile of columns
    (13, 21, 65),
    (49, 700, 96),  # three blocks of features
    (50, 16, 333),
    (196, 48, 36),
    (2000, 24, 70),  # enough rows for each thread to work by itself
    (3200, 300, 20),  # more than stay in a cache
    (0, 16, 32),
]


def make(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize(('rows', 'before', 'after'), SIZES)
def test_linear(rows, before, after, with_bias):
    x, weight = make(rows, before), make(after, before)
    bias = make(after) if with_bias else None
    kept = x.clone(), weight.clone()
    exact = [None if t is None else t.double() for t in (x, weight, bias)]
    output = linear_forward(x, weight, bias)
    assert output.dtype == torch.float32
    assert relative_error(output, F.linear(*exact)) < FORWARD[torch.float32]
    assert torch.equal(x, kept[0])
    assert torch.equal(weight, kept[1])


def mlp_parameters(channels, hidden):
    return [
        make(hidden, channels),
        make(hidden),
        make(channels, hidden),
        make(channels),
    ]


@pytest.mark.parametrize('add_input', [False, True])
@pytest.mark.parametrize('with_norm', [False, True])
@pytest.mark.parametrize(
    ('rows', 'channels', 'hidden'),
    [
        (1, 1, 1),
        (5, 3, 7),
        (49, 40, 160),
        (2000, 24, 96),  # each thread by itself
        (3000, 20, 300),  # and several times
        (700, 8, 3000),  # all together, and twice
        (0, 16, 64),
    ],
)
def test_mlp(rows, channels, hidden, with_norm, add_input):
    x = make(rows, channels)
    parameters = mlp_parameters(channels, hidden)
    norm = [make(channels), make(channels + 1)[1:]] if with_norm else []
    exact, *exact_parameters = (t.double() for t in (x, *parameters))
    expected = exact
    if with_norm:
        weight, bias = (t.double() for t in norm)
        expected = F.layer_norm(expected, (channels,), weight, bias, 1e-3)
    expected = F.gelu(F.linear(expected, *exact_parameters[:2]))
    expected = F.linear(expected, *exact_parameters[2:])
    expected = expected + exact if add_input else expected
    output = mlp_forward(x, parameters, norm, 1e-3, add_input)
    assert relative_error(output, expected) < FORWARD[torch.float32]


def test_dimensions_and_strides():
    x, weight = make(2, 9, 5, 24), make(40, 24)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    wide = make(40, 30)
    wide[:, :24] = weight
    output = linear_forward(strided, wide[:, :24], None)
    assert relative_error(output, F.linear(x, weight)) < FORWARD[torch.float32]
    row = x[1, 2, 3]
    output = linear_forward(row, weight, None)
    assert relative_error(output, F.linear(row, weight)) < FORWARD[torch.float32]


def with_threads(call):
    """Return what a call returns with one, two and three threads."""
    default = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(call())
    finally:
        torch.set_num_threads(default)
    return outputs


@pytest.mark.parametrize('rows', [49, 1000])
def test_number_of_threads_changes_nothing(rows):
    x, parameters = make(rows, 300), mlp_parameters(300, 700)
    norm = [make(300), make(300)]
    for call in (
        lambda: linear_forward(x, parameters[0], None),
        lambda: mlp_forward(x, parameters, norm, 1e-6, True),
    ):
        first, *others = with_threads(call)
        assert all(torch.equal(other, first) for other in others)


def test_gelu_of_any_number():
    extremes = [-torch.inf, -1e30, -1e4, 1e4, 1e30, torch.inf, torch.nan]
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor(extremes)])
    one, zero = torch.ones(1, 1), torch.zeros(1)
    output = mlp_forward(x[:, None], [one, zero, one, zero], [], 0.0, False)[:, 0]
    expected = F.gelu(x.double()).float()
    expected[-7] = 0  # the limit; PyTorch says NaN
    # PyTorch's own is as far from it.
    torch.testing.assert_close(output, expected, rtol=0, atol=1.5e-6, equal_nan=True)


def test_not_a_number_stays_in_its_row():
    """Rows and columns beyond the last are computed, but not seen."""
    x, weight = make(7, 20), make(9, 20)
    x[6, 3] = torch.nan
    output = linear_forward(x, weight, None)
    assert output[6].isnan().all()
    assert output[:6].isfinite().all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((make(3, 4), make(5, 6), None), r'weight: expected \(out_features, 4\)'),
        ((make(3, 4), make(5), None), 'weight: expected'),
        ((make(3, 0), make(5, 0), None), 'at least one'),
        ((make(3, 4), make(5, 4), make(4)), 'bias: expected'),
        ((make(3, 4).double(), make(5, 4), None), 'input: expected float32'),
        ((make(3, 4), make(5, 4).bfloat16(), None), 'weight: expected float32'),
        ((torch.tensor(1.0), make(5, 4), None), 'no dimensions'),
    ],
)
def test_linear_errors(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        linear_forward(*arguments)


@pytest.mark.parametrize(
    ('change', 'norm', 'message'),
    [
        (lambda p: p.pop(), [], 'parameters: expected .* got 3 tensors'),
        (lambda p: p.__setitem__(1, make(4)), [], 'fc1.bias: expected'),
        (lambda p: p.__setitem__(2, make(4, 6)), [], r'fc2.weight: .* 7\)'),
        (lambda p: None, [make(4)], 'norm: expected .* got 1 tensors'),
        (lambda p: None, [make(4), make(5)], 'norm.bias: expected'),
        (lambda p: p.__setitem__(slice(2, 4), [make(5, 7), make(5)]), [], 'input: exp'),
    ],
)
def test_mlp_errors(change, norm, message):
    parameters = mlp_parameters(4, 7)
    change(parameters)
    with pytest.raises(RuntimeError, match=message):
        mlp_forward(make(3, 4), parameters, norm, 1e-6, True)


def layer_parameters(channels, points):
    """Weights and biases of a layer whose groups have so many points in all."""
    shapes = [(channels, 1, 3, 3), (channels,), (channels,), (channels,)]
    for width in (2 * points, points, channels, channels):
        shapes += [(width, channels), (width,)]
    return [make(*shape) for shape in shapes]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda p: p.pop(), r'parameters: expected .* got 11 tensors'),
        (lambda p: p.__setitem__(0, make(8, 1, 2, 3)), 'weight: expected .* odd, odd'),
        (lambda p: p.__setitem__(3, make(7)), r'norm_bias: expected \(8\)'),
        (lambda p: p.__setitem__(slice(4, 6), [make(9, 8), make(9)]), 'offset.weight'),
        (lambda p: p.__setitem__(slice(6, 8), [make(9, 8), make(9)]), 'mask.weight'),
        (lambda p: p.__setitem__(7, make(9)), 'mask.bias'),
        (lambda p: p.__setitem__(9, make(9)), 'input_proj.bias'),
        (lambda p: p.__setitem__(11, make(9)), 'output_proj.bias'),
        (lambda p: p.__setitem__(slice(8, 10), [make(9, 8), make(9)]), 'input_proj'),
        (lambda p: p.__setitem__(slice(10, 12), [make(9, 8), make(9)]), 'output_proj'),
        (lambda p: p.__setitem__(4, p[4].double()), 'offset.weight: expected float32'),
    ],
)
def test_layer_errors(change, message):
    parameters = layer_parameters(8, 18)
    settings = ([3, 3], [1, 1], [1, 1], [1, 1], 2, 1.0, False)
    x = make(1, 5, 7, 8)
    assert layer_forward(x, parameters, 1e-6, [], 0.0, True, *settings).shape == x.shape
    change(parameters)
    with pytest.raises(RuntimeError, match=message):
        layer_forward(x, parameters, 1e-6, [], 0.0, True, *settings)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (([3, 3], [2, 1], [1, 1], [1, 1], 2, 1.0, False), "input's size"),
        (([3, 3], [1, 1], [1, 0], [1, 1], 2, 1.0, False), "input's size"),
        (([3, 3], [1, 1], [1, 1], [1, 1], 3, 1.0, False), 'groups: expected'),
        (([3, 3], [1, 1], [1, 1], [1, 1], 4, 1.0, False), 'offset.weight'),
    ],
)
def test_layer_settings_errors(settings, message):
    parameters = layer_parameters(8, 18)
    with pytest.raises(RuntimeError, match=message):
        layer_forward(make(1, 5, 7, 8), parameters, 1e-6, [], 0.0, True, *settings)


def operators(call, *args):
    """Return the names of the operators that a call runs, and its output."""
    with torch.no_grad(), profile() as run:
        output = call(*args)
    return {event.name for event in run.function_events}, output


def make_norm(channels=24):
    norm = build_norm_layer(channels)
    nn.init.normal_(norm[0].weight)
    nn.init.normal_(norm[0].bias)
    return norm


def needs_fast_kernels():
    with torch.no_grad():
        if not has_linear_kernel(torch.empty(1)):
            pytest.skip('PyTorch has faster linear layers for this CPU')


@pytest.mark.parametrize('size', [(2, 11, 14, 24), (1, 37, 61, 24)])
@pytest.mark.parametrize('make_module', [make_layer, lambda: Mlp(24, 96, 'GELU')])
def test_layer_and_mlp_are_one_call_each(make_module, size):
    needs_fast_kernels()
    torch.manual_seed(0)
    module, norm = make_module(), make_norm()
    name = 'layer_forward' if isinstance(module, DCNv3) else 'mlp_forward'
    x = torch.randn(size)
    for call, args in ((module, (x,)), (module.add_branch, (x, norm))):
        names, output = operators(call, *args)
        assert f'ops_dcnv3::{name}' in names
        assert not names & {'aten::linear', 'aten::gelu', 'aten::native_layer_norm'}
        assert relative_error(output, call(*args)) < FORWARD[torch.float32]


@pytest.mark.parametrize(
    ('size', 'groups'),
    [
        ((2, 5, 7, 24), 3),  # all threads together
        ((2, 9, 14, 24), 3),  # each by itself, where they are one or two
        ((1, 61, 93, 24), 3),  # and several times
        ((1, 17, 31, 700), 35),  # each by itself in single projections
    ],
)
def test_number_of_threads_changes_nothing_of_a_layer(size, groups):
    needs_fast_kernels()
    torch.manual_seed(0)
    layer, norm = make_layer(size[-1], groups), make_norm(size[-1])
    x = torch.randn(size)
    with torch.no_grad():
        first, *others = with_threads(lambda: layer.add_branch(x, norm))
    assert all(torch.equal(other, first) for other in others)
    assert relative_error(first, layer.add_branch(x, norm)) < FORWARD[torch.float32]


def double_outputs(norm):
    norm.register_forward_hook(lambda module, args, output: 2 * output)


def drop_parameters(norm):
    norm[0] = nn.LayerNorm(24, elementwise_affine=False)


def drop_bias(norm):
    norm[0] = nn.LayerNorm(24, bias=False)


def replace_norm(norm):
    norm[0] = nn.RMSNorm(24)


def normalize_more(norm):
    norm[0] = nn.LayerNorm((14, 24))


def append(norm):
    norm.append(nn.Tanh())


@pytest.mark.parametrize(
    'change',
    [double_outputs, drop_parameters, drop_bias, replace_norm, normalize_more, append],
)
@pytest.mark.parametrize('make_module', [make_layer, lambda: Mlp(24, 96, 'GELU')])
def test_changes_of_a_norm_are_seen(make_module, change):
    torch.manual_seed(0)
    module, norm = make_module(), make_norm()
    change(norm)
    x = torch.randn(2, 11, 14, 24)
    with torch.no_grad():
        output = module.add_branch(x, norm)
    assert relative_error(output, x + module(norm(x))) < FORWARD[torch.float32]


def hook_calls(seen):
    return nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(module)
    )


def hook_before_calls(seen):
    return nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.append(module)
    )


@pytest.mark.parametrize('with_gradients', [False, True])
@pytest.mark.parametrize('hook', [hook_calls, hook_before_calls])
@pytest.mark.parametrize('make_module', [make_layer, lambda: Mlp(24, 96, 'GELU')])
def test_hooks_on_all_modules_are_called_once(make_module, hook, with_gradients):
    module, norm, seen = make_module(), make_norm(), []
    handle = hook(seen)
    try:
        with torch.set_grad_enabled(with_gradients):
            output = module.add_branch(torch.randn(2, 11, 14, 24), norm)
        if with_gradients:
            output.sum().backward()
    finally:
        handle.remove()
    assert len(seen) == len(set(seen))
    assert set(seen) == {*module.modules(), *norm.modules()}


class Half(torch.Tensor):
    """Weights with an ``F.linear`` of their own, as quantised ones."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, bias = (t.as_subclass(torch.Tensor) for t in args)
            return F.linear(x, weight / 2, bias)
        return super().__torch_function__(function, types, args, kwargs or {})


def with_own_weight(layer):
    weight = layer.weight.detach().as_subclass(Half)
    layer.weight = nn.Parameter(weight, requires_grad=False)


def hook(layer):
    layer.register_forward_hook(lambda module, args, output: output / 2)


def replace_forward(layer):
    forward = layer.forward
    layer.forward = lambda x: forward(x) / 2


@pytest.mark.parametrize('change', [with_own_weight, hook, replace_forward])
@pytest.mark.parametrize('name', ['fc1', 'fc2'])
def test_changes_of_a_layer_are_seen(name, change):
    torch.manual_seed(0)
    mlp = Mlp(24, 96, 'GELU')
    x = torch.randn(2, 11, 14, 24)
    with torch.no_grad():
        before = mlp(x)
        change(getattr(mlp, name))
        output = mlp(x)
        inner = mlp.fc1(x)
        expected = mlp.fc2(mlp.act(inner))
    assert relative_error(output, before) > 1e-2
    assert relative_error(output, expected) < FORWARD[torch.float32]


@pytest.mark.parametrize('name', ['offset', 'mask', 'input_proj', 'output_proj'])
@pytest.mark.parametrize('change', [with_own_weight, hook, replace_forward])
def test_changes_of_a_projection_are_seen(name, change):
    torch.manual_seed(0)
    layer = make_layer()
    x = torch.randn(2, 11, 14, 24)
    with torch.no_grad():
        before = layer(x)
        change(getattr(layer, name))
        output = layer(x)
    assert relative_error(output, before) > 1e-3
    assert relative_error(output, layer(x)) < FORWARD[torch.float32]


def test_vmap():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, 6, 24)
    for module in (make_layer(), Mlp(24, 96, 'GELU')):
        with torch.no_grad():
            output = torch.vmap(module)(x)
            expected = torch.stack([module(one) for one in x])
        assert relative_error(output, expected) < FORWARD[torch.float32]


def test_projection_without_bias():
    torch.manual_seed(0)
    layer = make_layer()
    layer.output_proj = nn.Linear(24, 24, bias=False)
    x = torch.randn(2, 11, 14, 24)
    with torch.no_grad():
        output = layer(x)
    assert relative_error(output, layer(x)) < FORWARD[torch.float32]


def gradients(call, x, layer, create_graph=False):
    tensors = [x, *layer.parameters()]
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    output = call(x)
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sin().sum()
    return output, *torch.autograd.grad(loss, wanted, create_graph=create_graph)


@pytest.mark.parametrize('frozen', [(), ('weight',), ('bias',), ('x',)])
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('rows', [1, 17])
def test_gradients(rows, with_bias, frozen):
    needs_fast_kernels()
    layer = nn.Linear(24, 40, bias=with_bias)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in frozen)
    x = make(rows, 12, 24).requires_grad_('x' not in frozen)
    expected = gradients(layer, x, layer)
    with profile() as run:
        actual = gradients(lambda x: linear(layer, x), x, layer)
    assert 'ops_dcnv3::linear_forward' in {event.name for event in run.function_events}
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < BACKWARD[torch.float32]
    with torch.no_grad():
        assert torch.equal(linear(layer, x), actual[0])


def test_second_derivatives():
    layer, x = nn.Linear(24, 40), make(5, 24).requires_grad_()
    seconds = []
    for call in (layer, lambda x: linear(layer, x)):
        _, first, *_ = gradients(call, x, layer, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), [x, layer.weight]))
    for one, other in zip(*seconds, strict=True):
        assert relative_error(one, other) < BACKWARD[torch.float32]


def test_a_vector_and_other_dtypes():
    layer = nn.Linear(24, 40)
    assert linear(layer, make(24)).shape == (40,)
    with torch.autocast('cpu', torch.bfloat16):
        assert linear(layer, make(3, 24)).dtype == torch.bfloat16
    assert linear(layer.double(), make(3, 24).double()).dtype == torch.float64
