# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from internimage import InternImage, layers
from internimage.architecture import Architecture
from internimage.layers import DropPath, Mlp
from ops_dcnv3 import DCNv3, use_fused
from tests.golden import DATA, assert_matches_golden, fill, golden_input, read_json
from tests.tolerances import FORWARD, relative_error

ZOO = read_json('zoo_backbones.json.gz')['backbones']
GOLDEN = np.load(DATA / 'backbones.npz')
CASES = json.loads(str(GOLDEN['cases']))

# Lopsided on purpose: no two levels alike, H != W, and sizes that no stride divides.
SMALL = {'channels': 6, 'depths': (1, 2, 4, 1), 'groups': (1, 2, 3, 6)}
IMAGE = torch.randn(2, 3, 70, 45, generator=torch.Generator().manual_seed(0))
TANH = torch.nn.GELU('tanh')
SIZES = [(18, 12), (9, 6), (5, 3), (3, 2)]


def small(**kwargs) -> InternImage:
    torch.manual_seed(0)
    return fill(InternImage(SMALL, **kwargs))


@pytest.mark.parametrize('entry', ZOO, ids=lambda e: e['configs'][0].split('/')[-1])
def test_parameters_are_the_published_ones(entry):
    with torch.device('meta'):
        model = InternImage(entry['arch'])
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == entry['shapes']
    assert sum(param.numel() for param in model.parameters()) == entry['params']


@pytest.mark.parametrize(('short', 'name'), InternImage.arch_aliases.items())
def test_named_architecture_is_published(short, name):
    assert set(InternImage.arch_aliases.values()) == set(InternImage.arch_settings)
    entries = [e for e in ZOO if f'internimage_{short}_' in e['configs'][0]]
    assert any('classification/' in e['configs'][0] for e in entries)
    for entry in entries:
        published = Architecture(**entry['arch'])
        is_dense = 'classification/' not in entry['configs'][0]
        has_scale = is_dense and name not in ('huge', 'giant')
        overrides = {'layer_scale': 1.0} if has_scale else {}
        for spelling in (name, short):
            with torch.device('meta'):
                arch = InternImage(spelling, **overrides).arch
            for key in Architecture.__dataclass_fields__:
                ours, theirs = getattr(arch, key), getattr(published, key)
                assert np.array_equal(ours, theirs), key


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['case'].split('/')[1])
def test_matches_published_outputs(case):
    model = fill(InternImage(case['arch'])).eval()
    with torch.no_grad():
        outputs = model(golden_input(case['input_tag'], case['input_shape']))
    assert len(outputs) == 4
    for index, output in enumerate(outputs):
        assert_matches_golden(output, GOLDEN, f'{case["case"]}/out{index}')


def test_outputs_are_contiguous_maps_of_all_levels():
    outputs = small().eval()(IMAGE)
    for index, (output, size) in enumerate(zip(outputs, SIZES, strict=True)):
        assert output.shape == (2, 6 * 2**index, *size)
        assert output.is_contiguous()


def test_regions_are_pooled_from_where_they_are():
    """RoIAlign of mmcv reads any memory as NCHW; convolutions hand other layouts on."""
    ops = pytest.importorskip('mmcv.ops')
    torchvision_ops = pytest.importorskip('torchvision.ops')
    features = torch.nn.Conv2d(6, 5, 1)(small().eval()(IMAGE)[0])
    boxes = torch.tensor([[0, 4.0, 8.0, 40.0, 30.0], [1, 10.0, 2.0, 50.0, 44.0]])
    pooled = ops.RoIAlign((4, 3), spatial_scale=0.25, sampling_ratio=2)(features, boxes)
    expected = torchvision_ops.roi_align(
        features, boxes, (4, 3), spatial_scale=0.25, sampling_ratio=2, aligned=True
    )
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize('out_indices', [(3,), (1, 2), [0, 3]])
def test_out_indices(out_indices):
    model = small().eval()
    everything = model(IMAGE)
    model.out_indices = out_indices
    expected = [everything[index] for index in out_indices]
    outputs = small(out_indices=out_indices).eval()(IMAGE)
    torch.testing.assert_close(list(outputs), expected)


def test_batch_norm_variant_runs_and_trains():
    model = small(norm_layer='BN', act_layer='SiLU')
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    sum(output.mean() for output in model(IMAGE)).backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize('frozen_stages', [-1, 0])
def test_checkpointing_changes_nothing(frozen_stages):
    # The image never requires a gradient; with a frozen stem no input of a block does.
    results = []
    for with_cp in (False, True):
        model = small(
            with_cp=with_cp, drop_path_rate=0.5, frozen_stages=frozen_stages
        ).train()
        torch.manual_seed(1)
        outputs = model(IMAGE)
        sum(output.square().sum() for output in outputs).backward()
        grads = [param.grad for param in model.parameters() if param.requires_grad]
        assert all(grad is not None for grad in grads)
        results.append([*outputs, *grads])
    torch.testing.assert_close(*results)


def test_checkpointing_recomputes():
    calls = []
    model = small(with_cp=True)
    model.levels[2].blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    sum(output.sum() for output in model(IMAGE)).backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(IMAGE)
    assert len(calls) == 3


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    model = small(frozen_stages=frozen_stages)
    assert model.train() is model
    parts = [model.patch_embed, *model.levels]
    for index, part in enumerate(parts):
        frozen = index <= frozen_stages
        assert all(module.training != frozen for module in part.modules())
        assert all(param.requires_grad != frozen for param in part.parameters())
    assert model.eval() is model
    assert not any(module.training for module in model.modules())


def run_backward(model, image):
    """Return the outputs, and the gradients of the image and of all parameters."""
    image = image.clone().requires_grad_()
    outputs = model(image)
    sum((x * x).sum() for x in outputs).backward()
    grads = {name: param.grad for name, param in model.named_parameters()}
    return outputs, {'image': image.grad, **grads}


@pytest.mark.parametrize(
    'other', [{}, {'center_feature_scale': True}, {'norm_layer': 'BN'}]
)
def test_recomputing_changes_nothing(other):
    """Not even running statistics, which a second pass through a BN would move."""
    results = []
    for recompute in (False, True):
        model = small(recompute=recompute, drop_path_rate=0.4, **other).train()
        torch.manual_seed(1)
        outputs, grads = run_backward(model, IMAGE)
        results.append((outputs, grads, dict(model.named_buffers())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_recomputing_mlp_has_the_same_gradients(dtype):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        mlp = Mlp(24, 40, 'GELU', recompute)
        x = torch.randn(2, 3, 5, 24, requires_grad=True)
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            output = mlp(x)
        assert output.dtype == dtype
        output.float().square().sum().backward()
        grads = [param.grad for param in mlp.parameters()]
        results.append([output, x.grad, *grads])
    # Autograd also rounds to bfloat16 between the layers, in another order.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_another_gelu_is_computed_as_it_is():
    """The shorter ways are for the exact one."""
    torch.manual_seed(0)
    block = InternImage(dict(SMALL, depths=(1, 1, 1, 1))).levels[0].blocks[0].eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 9, 14, 6)
    with torch.no_grad():
        exact = block(x)
        block.mlp.register_module('act', TANH)
        block.dcn.dw_conv.register_module('2', TANH)
        output = block(x)
        with use_fused(False):
            expected = block(x)
    assert relative_error(output, exact) > 1e-5
    assert relative_error(output, expected) < 1e-7
    assert relative_error(block(x), expected) < FORWARD[torch.float32]


@pytest.mark.parametrize('with_gradients', [False, True])
def test_traced_and_saved(with_gradients, tmp_path):
    """A trace holds operators that a file can hold, and no function of Python."""
    model = small(layer_scale=0.5).eval()
    with torch.set_grad_enabled(with_gradients):
        torch.jit.trace(model, IMAGE, check_trace=False).save(tmp_path / 'model.pt')
    outputs = torch.jit.load(tmp_path / 'model.pt')(IMAGE)
    torch.testing.assert_close(outputs, model(IMAGE), rtol=1e-4, atol=1e-5)


def test_gradient_of_the_gradient_of_an_mlp():
    mlp = Mlp(3, 4, 'GELU').double()
    x = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, x)
    assert torch.autograd.gradgradcheck(mlp, x)
    for param in (mlp.fc2.weight, mlp.fc2.bias):
        assert torch.autograd.gradcheck(lambda _: mlp(x), param)


def kept_bytes(model, image):
    """Return how much a forward pass keeps for the backward pass, parameters aside."""
    own = {param.untyped_storage()._cdata for param in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(image)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    'settings',
    [
        {'arch': 'tiny'},
        {'arch': 'tiny', 'layer_scale': 1.0},
        {'arch': 'base', 'layer_scale': 1.0},
    ],
    ids=str,
)
def test_recomputing_saves_a_third_of_the_memory(settings):
    """Of what the published blocks keep, which is what ours do without it."""
    kept = {}
    with torch.device('meta'):
        image = torch.empty(1, 3, 800, 1333)
        for recompute in (False, True):
            model = InternImage(recompute=recompute, **settings).train()
            kept[recompute] = kept_bytes(model, image)
    assert kept[True] < 0.7 * kept[False]


def test_what_is_watched_is_not_recomputed():
    """A hook would be called again in the backward pass."""
    model = small().train()
    calls = []
    for name, module in model.named_modules():
        if name.endswith(('mlp.act', 'dcn.offset')):
            module.register_forward_hook(lambda *_: calls.append(1))
    run_backward(model, IMAGE)
    assert len(calls) == 2 * sum(SMALL['depths'])


@pytest.mark.parametrize('names', ['mask', 'offset', ''])
def test_borrowed_parameters_are_not_recomputed(names):
    """What ``functional_call`` sets is gone in the backward pass."""
    torch.manual_seed(0)
    gradients = []
    for recompute in (False, True):
        layer = DCNv3(24, groups=3, recompute=recompute).train()
        torch.manual_seed(1)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        others = {
            name: torch.randn(parameter.shape, requires_grad=True)
            for name, parameter in layer.named_parameters()
            if name.startswith(names)
        }
        x = torch.randn(2, 5, 7, 24, requires_grad=True)
        output = torch.func.functional_call(layer, others, x)
        gradients.append(torch.autograd.grad(output.sum(), [x, *others.values()]))
    for kept, recomputed in zip(*gradients, strict=True):
        assert relative_error(recomputed, kept) < FORWARD[torch.float32]


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = DropPath(0.3)
    x = torch.full((10_000, 2, 1, 3), 7.0)
    y = drop_path(x)
    # Samples are dropped whole.
    assert torch.equal(y, y[:, :1, :1, :1].expand_as(y))
    assert y.unique().tolist() == pytest.approx([0, 10])
    # Standard deviation of the mean: 10 * sqrt(.3 * .7 / 10000) = .046.
    assert y.mean().item() == pytest.approx(7, abs=0.15)
    torch.manual_seed(0)
    assert torch.equal(drop_path(x), y)
    assert drop_path.eval()(x) is x


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [('linear', [i / 7 * 0.7 for i in range(8)]), ('uniform', [0.7] * 8)],
)
def test_drop_path_rates(kind, expected):
    model = small(drop_path_rate=0.7, drop_path_type=kind)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    'other',
    [
        {},
        {'layer_scale': 0.3},
        {'layer_scale': 0.3, 'post_norm': True},
        {'res_post_norm': True},
    ],
)
def test_a_block_computes_the_same_however_it_runs(other):
    """In training, in evaluation, without gradients, and with its layers watched."""
    arch = dict(channels=32, depths=(2, 1, 1, 1), groups=(2, 4, 8, 16))
    block = InternImage(arch, **other).levels[0].blocks[1]
    torch.nn.init.normal_(block.dcn.offset.weight, std=0.1)
    x = torch.randn(2, 9, 14, 32)
    expected = block.train()(x)
    block.eval()
    assert relative_error(block(x), expected) < FORWARD[torch.float32]
    with torch.no_grad():
        assert relative_error(block(x), expected) < FORWARD[torch.float32]
        branches = []
        for layer in (block.dcn, block.mlp):
            layer.register_forward_hook(lambda _, args, out: branches.append(out))
        assert relative_error(block(x), expected) < FORWARD[torch.float32]
    if not other:  # a layer shows what it computes, not what it is added to
        torch.testing.assert_close(x + branches[0] + branches[1], expected)


@pytest.mark.parametrize('other', [{'layer_scale': 1.0}, {'post_norm': True}])
def test_res_post_norm_has_no_effect_beside_others(other):
    model = small(res_post_norm=True, **other).eval()
    names = [n for n, _ in model.named_parameters() if '.res_post_norm' in n]
    assert len(names) == 8 * 2 * 2
    expected = model(IMAGE)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).fill_(5)
    torch.testing.assert_close(model(IMAGE), expected)


@pytest.mark.parametrize('post_norm', [False, True])
@pytest.mark.parametrize('center_feature_scale', [False, True])
def test_level_norms(post_norm, center_feature_scale):
    model = small(post_norm=post_norm, center_feature_scale=center_feature_scale)
    has_norm = 'levels.3.norm.0.weight' in model.state_dict()
    assert has_norm == (not post_norm or center_feature_scale)


def test_initial_values():
    model = InternImage({**SMALL, 'channels': 60}, layer_scale=1e-5)
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(float('nan'))
    model.init_weights()
    for name, param in model.named_parameters():
        assert param.isfinite().all(), name
        if '.dcn.offset.' in name or '.dcn.mask.' in name:
            assert not param.any(), name
        elif name.endswith('_proj.weight'):
            limit = (6 / sum(param.shape)) ** 0.5
            assert limit * 0.9 < param.abs().max() <= limit, name
        elif '.mlp.' in name and param.ndim == 2:
            assert param.std().item() == pytest.approx(0.02, rel=0.1), name
        elif 'gamma' in name:
            assert torch.equal(param, torch.full_like(param, 1e-5)), name
        elif '.norm' in name:
            assert torch.equal(param, torch.full_like(param, name.endswith('weight')))


def test_init_weights_as_part_of_a_model():
    detector = BaseModule()
    detector.backbone = MODELS.build(
        ConfigDict(type='InternImage', arch=SMALL, layer_scale=1.0)
    )
    detector.init_weights()
    assert detector.backbone.is_init
    before = detector.backbone.levels[0].blocks[0].mlp.fc1.weight.clone()
    assert before.std().item() == pytest.approx(0.02, rel=0.3)
    detector.backbone.init_weights()
    assert torch.equal(detector.backbone.levels[0].blocks[0].mlp.fc1.weight, before)


def test_init_cfg_of_mmengine_comes_on_top():
    init_cfg = [dict(type='Constant', layer='Conv2d', val=3.0)]
    model = InternImage(SMALL, init_cfg=init_cfg)
    model.init_weights()
    assert model.patch_embed.conv1.weight.unique().tolist() == [3.0]
    assert not model.levels[0].blocks[0].dcn.offset.weight.any()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'arch': 'medium'}, "arch: expected .*'tiny'.*got 'medium'"),
        ({'chanels': 6}, r"unknown arguments \['chanels'\].*'channels', 'depths'"),
        ({'arch': {**SMALL, 'mlp': 4}}, r"unknown arguments \['mlp'\]"),
        ({'channels': 1}, 'channels: expected 2 or more and even, got 1'),
        ({'depths': (1, 0, 2, 1)}, r'depths: .*got \(1, 0, 2, 1\)'),
        ({'groups': (1, 2, 3)}, r'groups: .*\(6, 12, 24, 48\), got \(1, 2, 3\)'),
        ({'groups': (1, 5, 3, 6)}, r'groups: .*\(6, 12, 24, 48\), got \(1, 5, 3, 6\)'),
        ({'mlp_ratio': 0}, 'mlp_ratio: expected a number above 0, got 0'),
        ({'norm_layer': 'GN'}, "norm_layer: expected .* got 'GN'"),
        ({'act_layer': 'Tanh'}, "act_layer: expected .* got 'Tanh'"),
        ({'level2_post_norm': True}, 'level2_post_norm_block_ids: .*got None'),
        (
            {'level2_post_norm': True, 'level2_post_norm_block_ids': [1, 4]},
            r'indices of the 4 blocks of the third level, got \(1, 4\)',
        ),
        (
            {'level2_post_norm': True, 'level2_post_norm_block_ids': [1, 1]},
            'distinct',
        ),
        ({'out_indices': (3, 4)}, r'out_indices: .*4 levels, .*got \(3, 4\)'),
        ({'out_indices': ()}, r'out_indices: .*got \(\)'),
        ({'frozen_stages': 5}, 'frozen_stages: .*got 5'),
        ({'drop_path_rate': 1.0}, 'drop_path_rate: expected 0 <= rate < 1, got 1.0'),
        ({'drop_path_type': 'cosine'}, "drop_path_type: .*got 'cosine'"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        InternImage(**{'arch': SMALL, **kwargs})


def test_pretrained_stands_alone():
    pretrained = dict(type='Pretrained', checkpoint='x.pth')
    model = InternImage(
        SMALL, init_cfg=[dict(type='Xavier', layer='Conv2d'), pretrained]
    )
    with pytest.raises(ValueError, match='init_cfg: expected Pretrained alone'):
        model.init_weights()


def test_dcnv3_gets_the_settings():
    model = small(dw_kernel_size=5, offset_scale=2.0, remove_center=True)
    layers = [module for module in model.modules() if isinstance(module, DCNv3)]
    assert [layer.geometry.groups for layer in layers] == [1, 2, 2, 3, 3, 3, 3, 6]
    for layer in layers:
        assert layer.dw_conv[0].kernel_size == (5, 5)
        assert layer.geometry.offset_scale == 2.0
        assert layer.geometry.num_points == 8


def test_import_needs_mmengine_only():
    code = (
        'import sys, internimage; '
        'assert not sys.modules.keys() & {"mmcv", "mmdet", "mmseg", "mmpretrain"}'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('norm_layer', ['LN', 'BN'])
def test_downsampling_in_either_layout(monkeypatch, norm_layer):
    """A CPU convolves few pixels channels first; what comes out is channels last."""
    torch.manual_seed(0)
    layer = layers.Downsample(12, norm_layer).eval()
    layouts = []
    layer.conv.register_forward_pre_hook(
        lambda module, args: layouts.append(args[0].is_contiguous())
    )
    x = torch.randn(2, 9, 14, 12)
    outputs = []
    for few in (2 * 9 * 14, 2 * 9 * 14 - 1):
        monkeypatch.setattr(layers, '_FEW_PIXELS', few)
        outputs.append(layer(x))
    assert layouts == [True, False]
    expected = layer.double()(x.double())
    for output in outputs:
        assert output.shape == (2, 5, 7, 24)
        assert output.is_contiguous()
        assert relative_error(output, expected) < FORWARD[torch.float32]
