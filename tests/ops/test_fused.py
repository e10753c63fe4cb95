# SPDX-License-Identifier: Apache-2.0
"""Where inference is fused, what is said where it is not, and how to turn it off."""

import ast
import contextlib
import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

import internimage
import ops_dcnv3
from internimage import InternImage
from internimage.blocks import Block
from ops_dcnv3 import DCNv3, has_fast_linear_layers, use_fused, why_not_fused
from ops_dcnv3.fused import depthwise_branch
from tests.ops.branch import make_layer
from tests.tolerances import FORWARD, relative_error

X = torch.randn(2, 5, 7, 24, generator=torch.Generator().manual_seed(0))
needs_fast_layers = pytest.mark.skipif(
    not has_fast_linear_layers(), reason='PyTorch has faster linear layers for this CPU'
)


def make_block(**settings) -> Block:
    torch.manual_seed(0)
    arch = dict(channels=24, depths=(1,), groups=(3,))
    block = InternImage(arch, out_indices=(0,), **settings).levels[0].blocks[0].eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    return block


def operators(call, *args) -> set[str]:
    with torch.no_grad(), profile() as run:
        call(*args)
    return {event.name for event in run.function_events}


#: Of all published models, and further ones.
VARIANTS = {
    'plain': {},
    'layer_scale': dict(layer_scale=1.0),
    'post_norm': dict(post_norm=True),
    'layer_scale_and_post_norm': dict(layer_scale=1.0, post_norm=True),
    'huge': dict(res_post_norm=True, center_feature_scale=True, dw_kernel_size=5),
    'remove_center': dict(remove_center=True),
}


@needs_fast_layers
@pytest.mark.parametrize('settings', VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_fused(settings):
    block = make_block(**settings)
    names = operators(block, X)
    assert {'ops_dcnv3::layer_forward', 'ops_dcnv3::mlp_forward'} <= names
    assert not names & {'aten::linear', 'aten::gelu', 'aten::native_layer_norm'}
    with torch.no_grad():
        output = block(X)
        assert why_not_fused(block, X) == {}
        with use_fused(False):
            expected = block.double()(X.double())
    assert relative_error(output, expected) < 4 * FORWARD[torch.float32]


@needs_fast_layers
def test_layer_alone_is_fused():
    layer = make_layer()
    assert 'ops_dcnv3::layer_forward' in operators(layer, X)


@pytest.mark.skipif(has_fast_linear_layers(), reason='they are')
def test_block_of_slow_linear_layers():
    with torch.no_grad():
        assert 'PyTorch has faster' in why_not_fused(make_block(), X)['']


def test_switch():
    layer = make_layer()
    with torch.no_grad():
        assert layer.runs_fused(X)
        with use_fused(False):
            assert 'use_fused(False)' in layer.why_not_fused(X)
            with use_fused(True):
                assert layer.runs_fused(X)
            assert not layer.runs_fused(X)
            assert 'ops_dcnv3::branch_forward' not in operators(layer, X)
        assert layer.runs_fused(X)
        with contextlib.suppress(KeyError), use_fused(False):
            raise KeyError
        assert layer.runs_fused(X)


@pytest.mark.parametrize('value', ['0', '1'])
def test_environment(value):
    code = (
        'import torch; from ops_dcnv3 import DCNv3, why_not_fused\n'
        'with torch.no_grad():\n'
        '    print(why_not_fused(DCNv3(8, groups=2), torch.empty(1)))'
    )
    run = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | {'OPS_DCNV3_FUSED': value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ('OPS_DCNV3_FUSED=0' in run.stdout) == (value == '0')
    assert (run.stdout == '{}\n') == (value == '1')


class Double(Tensor):
    pass


class Sub(DCNv3):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


#: What somebody does around a call, and a part of what is said then.
OBSERVERS = {
    'gradients': (torch.enable_grad, 'gradients are enabled'),
    'autocast': (lambda: torch.autocast('cpu', torch.bfloat16), 'torch.bfloat16'),
    'counter': (lambda: FlopCounterMode(display=False), 'TorchDispatchMode'),
    'forward mode': (forward_ad.dual_level, 'forward-mode gradient'),
    'off': (lambda: use_fused(False), 'turned off'),
}


@pytest.mark.parametrize('name', OBSERVERS)
def test_reasons_around_a_call(name):
    context, words = OBSERVERS[name]
    layer, block = make_layer(), make_block()
    with torch.no_grad():
        assert why_not_fused(layer, X) == {}
        with context():
            assert words in why_not_fused(layer, X)['']
            if has_fast_linear_layers():
                assert words in why_not_fused(block, X)['']
        assert why_not_fused(layer, X) == {}


def test_reasons_inside_of_a_call():
    layer, seen = make_layer(), []

    def tell(x):
        seen.append(layer.why_not_fused(x))
        return x

    with torch.no_grad():
        torch.vmap(tell)(X)
        torch.jit.trace(tell, X)
        torch.compile(tell, backend='eager', fullgraph=True)(X)
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        tell(X)
        handle.remove()
    words = ('transform of torch.func', 'torch.jit.trace', 'compiler', 'hooks on all')
    for text, expected in zip(
        [seen[0], seen[1], seen[-2], seen[-1]], words, strict=True
    ):
        assert expected in text


def replace_forward(layer):
    forward = layer.mask.forward
    layer.mask.forward = lambda x: forward(x) / 2


def quantise(layer):
    weight = layer.output_proj.weight.detach().as_subclass(Double)
    layer.output_proj.weight = nn.Parameter(weight, requires_grad=False)


#: What somebody does to a layer, and what is said then.
CHANGES = {
    'hook': (
        lambda layer: layer.offset.register_forward_hook(lambda *_: None),
        'offset has hooks',
    ),
    'pre-hook': (
        lambda layer: layer.dw_conv[1].register_forward_pre_hook(lambda *_: None),
        'dw_conv.1 has hooks',
    ),
    'backward hook': (
        lambda layer: layer.mask.register_full_backward_hook(lambda *_: None),
        'mask has hooks',
    ),
    'own hook': (lambda layer: layer.register_forward_hook(print), 'DCNv3 has hooks'),
    'forward': (replace_forward, 'mask has other attributes'),
    'setting': (
        lambda layer: setattr(layer.dw_conv[0], 'padding_mode', 'circular'),
        'dw_conv.0 has other attributes',
    ),
    'type': (
        lambda layer: setattr(layer, 'mask', nn.Bilinear(24, 24, 27)),
        'mask is a Bilinear, not a Linear',
    ),
    'child': (
        lambda layer: layer.dw_conv.append(nn.Tanh()),
        'dw_conv has other children',
    ),
    'no bias': (
        lambda layer: setattr(layer.input_proj, 'bias', None),
        'input_proj.bias is a NoneType',
    ),
    'new parameter': (
        lambda layer: layer.mask.register_parameter('scale', nn.Parameter(X)),
        'mask has other parameters',
    ),
    'weight of a subclass': (quantise, 'output_proj.weight is a Double'),
}


@pytest.mark.parametrize('name', CHANGES)
def test_reasons_of_a_changed_layer(name):
    change, words = CHANGES[name]
    layer = make_layer()
    change(layer)
    with torch.no_grad():
        assert words in layer.why_not_fused(X)


@pytest.mark.parametrize(
    ('layer', 'x', 'words'),
    [
        (make_layer(norm_layer='BN'), X, "not of norm_layer 'LN'"),
        (make_layer(act_layer='SiLU'), X, "act_layer 'GELU'"),
        (make_layer(stride=(1, 2)), X, 'another size'),
        (make_layer(padding=0, dw_kernel_size=3), X, 'another size'),
        (make_layer().double(), X.double(), 'and the layer is in torch.float64'),
        (make_layer().double(), X, 'the weights are torch.float64, and the layer runs'),
        (make_layer(), X.as_subclass(Double), 'a Double, not a plain Tensor'),
        (make_layer(), X.to('meta'), 'there are no operators for meta'),
        (make_layer(), X[0], 'the input is (5, 7, 24), not (N, H, W, 24)'),
        (Sub(24, groups=3), X, 'Sub is a subclass'),
    ],
)
def test_reasons_of_settings_and_inputs(layer, x, words):
    with torch.no_grad():
        assert words in layer.why_not_fused(x)


def test_a_subclass_can_ask_for_it():
    class Ours(DCNv3):
        fused_devices = ('cpu',)

    with torch.no_grad():
        assert Ours(24, groups=3).runs_fused(X)


def test_values_and_modes_are_no_change():
    layer = make_layer().train()
    layer.load_state_dict(DCNv3(24, groups=3).state_dict(), assign=True)
    layer.requires_grad_(False)
    with torch.no_grad():
        assert layer.runs_fused(X)
        assert copy.deepcopy(layer).runs_fused(X)


@needs_fast_layers
def test_reasons_of_a_model():
    """The outermost module tells; one of the reasons is of the block alone."""
    model = InternImage(dict(channels=24, depths=(2, 1), groups=(3, 6)), (0, 1)).eval()
    first, second = model.levels[0].blocks
    with torch.no_grad():
        assert why_not_fused(model, X) == {}
        first.norm2[0].register_forward_hook(lambda *_: None)
        second.drop_path.rate = 0.5
        assert why_not_fused(model, X) == {
            'levels.0.blocks.0': 'norm2.0 has hooks',
            'levels.0.blocks.1': 'drop_path has other attributes than when it was '
            'built',
        }


@needs_fast_layers
def test_reasons_of_a_block():
    with torch.no_grad():
        block = make_block(drop_path_rate=0.5, drop_path_type='uniform').train()
        assert 'drop_path drops branches' in why_not_fused(block, X)['']
        assert why_not_fused(block.eval(), X) == {}
        assert 'the weights are torch.float64' in why_not_fused(block.double(), X)['']
        block = make_block(act_layer='SiLU')
        assert "act_layer 'GELU'" in why_not_fused(block, X)['']


def test_branch_of_a_layer_infers_its_shape():
    layer = make_layer().to('meta')
    with torch.no_grad():
        branch = depthwise_branch(
            torch.empty(2, 5, 7, 24, device='meta'), layer.dw_conv
        )
    assert branch.shape == (2, 5, 7, 24)


#: Of ``torch_internals``: where a name of PyTorch is, and its last part.
NAMES = [
    ('torch._C', '_are_functorch_transforms_active'),
    ('torch._C', '_len_torch_dispatch_stack'),
    ('torch._C', '_AutoDispatchBelowAutograd'),
    ('torch._C', '_after_autograd_keyset'),
    ('torch.autograd.forward_ad', '_current_level'),
    ('torch.nn.modules.module', '_global_forward_hooks'),
    ('torch.nn.modules.module', '_global_forward_pre_hooks'),
    ('torch.nn.modules.module', '_global_backward_hooks'),
    ('torch.nn.modules.module', '_global_backward_pre_hooks'),
]


#: Takes names away only while the package looks for them: PyTorch itself needs them.
HIDE = """
import builtins
import torch, torch.autograd.forward_ad, torch.nn.modules.module
owners = (torch._C, torch.autograd.forward_ad, torch.nn.modules.module)
real = builtins.hasattr
builtins.hasattr = lambda o, n: real(o, n) and not (o in owners and {condition})
import ops_dcnv3.torch_internals
builtins.hasattr = real
from ops_dcnv3.torch_internals import MISSING
"""
LAYER = """
from ops_dcnv3 import DCNv3, dcnv3, dcnv3_reference, why_not_fused
from tests.ops.cases import Case
from tests.tolerances import BACKWARD, relative_error
case = Case('names')
actual = [x.requires_grad_() for x in case.tensors()]
exact = [x.detach().requires_grad_() for x in actual]
for function, tensors in ((dcnv3, actual), (dcnv3_reference, exact)):
    function(*tensors, **case.kwargs).square().sum().backward()
for one, other in zip(actual, exact):
    assert relative_error(one.grad, other.grad) < BACKWARD[torch.float64]
called = [x.detach().requires_grad_() for x in actual]
settings = ((3, 3), (1, 1), (1, 1), (1, 1), case.groups, 1.0, False)
torch.ops.ops_dcnv3.dcnv3_forward(*called, *settings).square().sum().backward()
for one, other in zip(called, exact):
    assert relative_error(one.grad, other.grad) < BACKWARD[torch.float64]
layer, x = DCNv3(8, groups=2), torch.randn(2, 5, 7, 8)
output = layer(x)
output.square().sum().backward()
assert all(p.grad is not None for p in layer.parameters())
with torch.no_grad():
    assert MISSING[0] in why_not_fused(layer, x)['']
    assert relative_error(layer(x), output) < BACKWARD[torch.float32]
"""
BACKBONE = """
from internimage import InternImage
model = InternImage(dict(channels=8, depths=(1, 1), groups=(2, 4)), (0, 1))
image = torch.randn(1, 3, 21, 37)
outputs = model(image)
sum(x.square().sum() for x in outputs).backward()
assert all(p.grad is not None for p in model.parameters())
with torch.no_grad():
    assert MISSING[0] in why_not_fused(model, image)['levels.0.blocks.0']
    for one, other in zip(model(image), outputs):
        assert relative_error(one, other) < BACKWARD[torch.float32]
"""


def run_python(code: str) -> None:
    run = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(('owner', 'name'), NAMES, ids=[name for _, name in NAMES])
def test_a_pytorch_without_a_private_name(owner, name):
    """Nothing is fused, and everything computes the same."""
    hide = HIDE.format(condition=f'n == {name!r}')
    run_python(hide + f'assert MISSING == ["{owner}.{name}"], MISSING\n' + LAYER)


def test_a_pytorch_without_any_private_name():
    """And the list above is complete."""
    hide = HIDE.format(condition='n[0] == "_"')
    names = {f'{owner}.{name}' for owner, name in NAMES}
    run_python(hide + f'assert set(MISSING) == {names}, MISSING\n' + LAYER + BACKBONE)


def test_private_names_are_in_one_module():
    for package in (ops_dcnv3, internimage):
        for path in Path(package.__file__).parent.rglob('*.py'):
            owners = re.findall(
                r'(?:torch\._C|forward_ad|modules\.module)\._\w+', path.read_text()
            )
            assert not owners, path


def test_internimage_uses_public_names():
    """Of ops_dcnv3: what it exports, and the checks of arguments."""
    for path in Path(internimage.__file__).parent.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == 'ops_dcnv3':
                assert {x.name for x in node.names} <= set(ops_dcnv3.__all__), path
            elif isinstance(node, ast.ImportFrom) and node.module:
                is_ours = node.module.split('.')[0] == 'ops_dcnv3'
                assert not is_ours or node.module == 'ops_dcnv3.arguments', path
        if path.name != 'complexity.py':  # which counts what operators cost
            assert 'torch.ops' not in path.read_text(), path
