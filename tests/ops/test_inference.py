# SPDX-License-Identifier: Apache-2.0
"""What runs instead of PyTorch's layers on a CPU while no gradient is needed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ops_dcnv3 import DCNv3
from tests.ops.branch import branch, branch_arguments, make_layer
from tests.tolerances import FORWARD, relative_error

branch_forward = torch.ops.ops_dcnv3.branch_forward


@pytest.mark.parametrize('dtype', list(FORWARD), ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    ('size', 'kernel'),
    [
        ((2, 5, 9, 16), (3, 3)),
        ((1, 7, 6, 21), (5, 5)),  # not a whole number of registers
        ((2, 4, 11, 40), (3, 5)),
        ((1, 2, 3, 3), (7, 5)),  # a kernel larger than the image
        ((3, 1, 1, 33), (3, 3)),
        ((1, 3, 4, 5), (1, 1)),
        ((0, 3, 4, 5), (3, 3)),
        # Channels of the published models, on which CUDA's tiles depend.
        *(
            ((2, 9, 10, channels), (3, 3))
            for channels in (64, 80, 112, 160, 192, 512, 1280, 1536)
        ),
        *(((1, 5, 6, channels), (5, 5)) for channels in (320, 512, 2560, 4096)),
    ],
)
def test_branch(size, kernel, dtype, device):
    arguments = branch_arguments(size, kernel, dtype)
    output = branch_forward(*(x.to(device) for x in arguments), 1e-6).cpu()
    assert (output.dtype, output.shape) == (dtype, size)
    expected = branch(*(x.double() for x in arguments), 1e-6)
    assert relative_error(output, expected) < FORWARD[dtype]


def test_branch_of_strided_input(device):
    input, *others = (x.to(device) for x in branch_arguments((2, 5, 9, 16), (3, 3)))
    strided = input.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(
        branch_forward(strided, *others, 1e-6),
        branch_forward(input, *others, 1e-6),
        rtol=0,
        atol=0,
    )


def test_branch_of_input_between_words(device):
    """CUDA's wide loads need a copy of it."""
    input, *others = (x.to(device) for x in branch_arguments((2, 5, 9, 16), (3, 3)))
    buffer = input.new_empty(input.numel() + 1)
    shifted = buffer[1:].view_as(input).copy_(input)
    torch.testing.assert_close(
        branch_forward(shifted, *others, 1e-6),
        branch_forward(input, *others, 1e-6),
        rtol=0,
        atol=0,
    )


@pytest.mark.gpu
def test_branch_in_a_graph_and_on_a_stream():
    arguments = [x.cuda() for x in branch_arguments((2, 9, 10, 64), (3, 3))]
    expected = branch_forward(*arguments, 1e-6)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = branch_forward(*arguments, 1e-6)
    stream.synchronize()
    assert torch.equal(output, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = branch_forward(*arguments, 1e-6)
    output.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output, expected)


def test_gelu_of_large_numbers():
    """Far from zero it is 0 or the number itself."""
    numbers = [-1e30, -1e4, -30.0, -7.0, -1.0, 0.0, 1.0, 7.0, 30.0, 1e30]
    input = torch.tensor(numbers).view(1, 1, 10, 1)
    one, zero = torch.ones(1), torch.zeros(1)
    weight = one.view(1, 1, 1, 1)
    # One channel is its own mean: normalised it is 0, so that only the bias shows.
    for x in input.flatten():
        output = branch_forward(input, weight, zero, one, x.view(1), 1e-6)
        expected = F.gelu(x).expand(1, 1, 10, 1)
        torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda a: a.__setitem__(0, a[0][0]), 'input: expected'),
        (lambda a: a.__setitem__(1, a[1][..., :2]), 'weight: expected'),
        (lambda a: a.__setitem__(2, a[2][1:]), 'bias: expected'),
        (lambda a: a.__setitem__(4, a[4].double()), 'expected the dtype'),
        (lambda a: a.__setitem__(slice(None), [x.int() for x in a]), 'float64'),
    ],
)
def test_branch_errors(change, message):
    arguments = branch_arguments((2, 5, 9, 16), (3, 3))
    change(arguments)
    with pytest.raises(RuntimeError, match=message):
        branch_forward(*arguments, 1e-6)


def test_hooks_and_other_layers_see_their_calls():
    """Counters of FLOPs, adapters and the like stand on them."""
    layer = DCNv3(24, groups=3).eval()
    x = torch.randn(2, 11, 14, 24)
    seen = []
    for name, module in layer.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    with torch.no_grad():
        expected = layer(x)
    names = ['0', '1.0', '1.1', '2']
    assert {name for name in seen if name.startswith('dw_conv')} == {
        f'dw_conv.{name}' for name in names
    }
    assert {'input_proj', 'offset', 'mask', 'output_proj'} <= set(seen)

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    plain = DCNv3(24, groups=3).eval()
    plain.load_state_dict(layer.state_dict())
    other = DCNv3(24, groups=3).eval()
    other.output_proj = Doubled(24, 24)
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other(x), 2 * expected, rtol=1e-4, atol=1e-5)


def make_circular(layer):
    """What users do for seamless tiles."""
    layer.dw_conv[0].padding_mode = 'circular'


def replace_forward(layer):
    """What offloading does."""
    forward = layer.dw_conv[0].forward
    layer.dw_conv[0].forward = lambda x: forward(x).abs()


def hook_norm(layer):
    layer.dw_conv[1].register_forward_hook(lambda module, args, output: 2 * output)


def drop_bias(layer):
    layer.dw_conv[0].bias = None


def dilate(layer):
    layer.dw_conv[0].dilation = layer.dw_conv[0].padding = (2, 2)


def wrap_conv(layer):
    """What adapters do."""
    layer.dw_conv[0] = nn.Sequential(layer.dw_conv[0], nn.Tanh())


def mix_channels(layer):
    layer.dw_conv[0] = nn.Conv2d(24, 24, 3, padding=1)


def drop_norm(layer):
    layer.dw_conv[1] = layer.dw_conv[1][0]


def insert(layer):
    layer.dw_conv[1].insert(1, nn.Tanh())


def append(layer):
    layer.dw_conv.append(nn.Tanh())


def hook_change_of_layout(layer):
    layer.dw_conv[1][0].register_forward_hook(lambda module, args, output: output**3)


@pytest.mark.parametrize(
    'change',
    [
        make_circular,
        replace_forward,
        hook_norm,
        drop_bias,
        dilate,
        wrap_conv,
        mix_channels,
        drop_norm,
        insert,
        append,
        hook_change_of_layout,
    ],
)
def test_changes_of_the_branch_are_seen(change, device):
    torch.manual_seed(0)
    layer = make_layer().to(device)
    x = torch.randn(2, 11, 14, 24, device=device)
    with torch.no_grad():
        before = layer(x)
    change(layer)
    expected = layer(x)
    assert relative_error(before, expected) > 1e-2
    with torch.no_grad():
        output = layer(x)
    assert relative_error(output, expected) < FORWARD[torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_layer_in_half_precision(dtype, autocast):
    torch.manual_seed(0)
    layer = make_layer(center_feature_scale=True).cuda()
    x = torch.randn(2, 11, 14, 24, device='cuda')
    with torch.no_grad():
        expected = layer.double()(x.double())
        layer.to(torch.float32 if autocast else dtype)
        with torch.autocast('cuda', dtype, enabled=autocast):
            output = layer(x if autocast else x.to(dtype))
    assert output.dtype == dtype
    # Branch, projections and samples are rounded one after the other.
    assert relative_error(output, expected) < 3 * FORWARD[dtype]


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'dw_kernel_size': 5, 'center_feature_scale': True},
        {'kernel_size': (3, 5), 'padding': (1, 2), 'dw_kernel_size': (5, 3)},
        {'act_layer': 'SiLU'},
        {'norm_layer': 'BN'},
        {'stride': 2},
    ],
)
def test_layer_computes_the_same_with_and_without_gradients(settings, device):
    torch.manual_seed(0)
    layer = make_layer(**settings).to(device)
    x = torch.randn(2, 11, 14, 24, device=device)
    expected = layer(x)
    with torch.no_grad():
        output = layer(x)
    assert not output.requires_grad
    assert relative_error(output, expected) < FORWARD[torch.float32]
