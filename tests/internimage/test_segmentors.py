# SPDX-License-Identifier: Apache-2.0
"""Our segmentors compute what the published ones do, from the published weights.

The models are those of the configs, smaller.
"""

import json
import runpy
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import Tensor, nn
from torch.nn import functional as F

from internimage.checkpoint import convert_published
from tests.golden import assert_matches_golden, fill_value, golden_input
from tests.paths import DATA, ROOT

mmseg_apis = pytest.importorskip('mmseg.apis')
pytest.importorskip('mmdet')  # for Mask2Former
from mmseg.structures import SegDataSample  # noqa: E402

GOLDEN = np.load(DATA / 'segmentors.npz')
CASES = {case['task']: case for case in json.loads(str(GOLDEN['cases']))}
OURS = {
    'upernet': 'configs/segmentation/upernet_internimage-t_8xb2-160k_ade20k-512x512',
    'segformer': 'projects/cityscapes/configs/'
    'segformer_internimage-l_8xb2-160k_mapillary-to-cityscapes-512x1024',
    'mask2former': 'configs/segmentation/'
    'mask2former_internimage-h_16xb1-80k_ade20k-896x896',
}
# Others of the same kind, with as many classes and as wide.
ALIKE = {
    'upernet': 'projects/cityscapes/configs/'
    'upernet_internimage-xl_8xb2-160k_cityscapes-512x1024',
    'segformer': 'projects/mapillary/configs/'
    'segformer_internimage-xl_8xb2-80k_mapillary-512x1024',
    'mask2former': 'projects/cityscapes/configs/'
    'mask2former_internimage-h_8xb2-80k_mapillary-to-cityscapes-1024x1024',
}
NUM_CLASSES = 150


def read_config(name: str, path: str = '', **changes) -> Config:
    """Read a config and make its model that of the golden case."""
    config = Config.fromfile(ROOT / f'{path or OURS[name]}.py')
    model = config.model
    arch = CASES[name]['arch']
    channels = [arch['channels'] * 2**level for level in range(4)]
    model.backbone.update(arch=arch, init_cfg=None)
    model.decode_head.in_channels = channels
    if model.auxiliary_head:
        model.auxiliary_head.in_channels = channels[2]
    if name == 'mask2former':
        model.decode_head.num_classes = NUM_CLASSES
        model.decode_head.loss_cls.class_weight = [1.0] * NUM_CLASSES + [0.1]
        shrink(model.decode_head, **CASES[name]['shrink'])
    config.merge_from_dict(changes)
    return config


def shrink(
    head: Config,
    embed_dims: int,
    num_heads: int,
    feedforward_channels: int,
    num_queries: int,
    encoder_layers: int,
    decoder_layers: int,
) -> None:
    head.update(
        feat_channels=embed_dims, out_channels=embed_dims, num_queries=num_queries
    )
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers, decoder.num_layers = encoder_layers, decoder_layers
    for part in (head, head.pixel_decoder):
        part.positional_encoding.num_feats = embed_dims // 2
    for layer in (encoder.layer_cfg, decoder.layer_cfg):
        for attention in layer.keys() & {'self_attn_cfg', 'cross_attn_cfg'}:
            layer[attention].update(embed_dims=embed_dims, num_heads=num_heads)
        layer.ffn_cfg = dict(
            embed_dims=embed_dims, feedforward_channels=feedforward_channels
        )


def build(config: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(deepcopy(config.model))  # mmdet's layers change it


def published(name: str) -> dict[str, Tensor]:
    """Return the weights that a golden case was made with."""
    return {
        key: torch.from_numpy(fill_value(key, shape))
        for key, shape in CASES[name]['keys']
    }


def published_model(name: str, path: str = '', **changes) -> nn.Module:
    model = build(read_config(name, path, **changes)).eval()
    model.load_state_dict(convert_published(published(name)))
    return model


@pytest.mark.parametrize('paths', [OURS, ALIKE], ids=['ours', 'alike'])
@pytest.mark.parametrize('name', OURS)
@torch.no_grad()
def test_outputs_are_the_published_ones(name: str, paths: dict[str, str]):
    image = golden_input(CASES[name]['input_tag'], CASES[name]['input_shape'])
    model = published_model(name, paths[name])
    logits = model.encode_decode(image, [metainfo(image)])
    assert_matches_golden(logits, GOLDEN, f'segmentor/{name}/seg_logits')


def metainfo(image: Tensor, **more) -> dict:
    size = tuple(image.shape[2:])
    return {'img_shape': size, 'ori_shape': size, **more}


@pytest.fixture(scope='module')
def mask2former() -> nn.Module:
    return published_model('mask2former')


def ratings(model: nn.Module, image: Tensor) -> Tensor:
    """Compute what the published head does, and resize it as the segmentor does."""
    classes, masks = (
        outputs[-1] for outputs in model.decode_head(model.extract_feat(image))
    )
    product = torch.einsum('nqc,nqhw->nchw', classes.softmax(-1), masks.sigmoid())
    return F.interpolate(product[:, :-1], image.shape[2:], mode='bilinear')


# No multiples of 32, nor of the backbone's first stride, 4.
HEIGHT, WIDTH = 75, 113


@torch.no_grad()
def test_whole_image_of_any_size(mask2former: nn.Module):
    image = torch.randn(1, 3, HEIGHT, WIDTH)
    sample = SegDataSample(metainfo=metainfo(image, ori_shape=(50, 80)))
    (result,) = mask2former.predict(image, [sample])
    expected = F.interpolate(ratings(mask2former, image), (50, 80), mode='bilinear')
    torch.testing.assert_close(result.seg_logits.data, expected[0])
    assert torch.equal(result.pred_sem_seg.data[0], expected[0].argmax(0))


@pytest.mark.parametrize('padding', [(0, 0), (5, 15)], ids=['bare', 'padded'])
@torch.no_grad()
def test_sliding_windows(padding: tuple[int, int], mask2former: nn.Module):
    image = torch.randn(1, 3, HEIGHT + padding[0], WIDTH + padding[1])
    sample = SegDataSample(metainfo=metainfo(torch.empty(1, 3, HEIGHT, WIDTH)))
    if any(padding):  # as the data preprocessor says it
        sample.set_metainfo({'pad_shape': image.shape[2:]})
        sample.set_metainfo({'img_padding_size': (0, padding[1], 0, padding[0])})
    model = mask2former
    model.test_cfg = model.test_cfg.__class__(
        mode='slide', crop_size=(64, 96), stride=(48, 64)
    )
    try:
        (result,) = model.predict(image, [sample])
    finally:
        model.test_cfg = model.test_cfg.__class__(mode='whole')
    total = torch.zeros(150, *image.shape[2:])
    count = torch.zeros(image.shape[2:])
    for top in (0, image.shape[2] - 64):
        for left in (0, image.shape[3] - 96):
            window = (..., slice(top, top + 64), slice(left, left + 96))
            total[window] += ratings(model, image[window])[0]
            count[window] += 1
    expected = (total / count)[:, :HEIGHT, :WIDTH]
    torch.testing.assert_close(result.seg_logits.data, expected)


@torch.no_grad()
def test_augmented_views_are_averaged_as_published(mask2former: nn.Module):
    """After another softmax over the classes, though they are no logits."""
    views = [torch.randn(1, 3, 64, 96), torch.randn(1, 3, 96, 160)]
    results, expected = [], []
    for view, flip in zip(views, (False, True), strict=True):
        more = {'flip': flip, 'flip_direction': 'horizontal', 'img_path': ''}
        sample = SegDataSample(
            metainfo=metainfo(view, ori_shape=(HEIGHT, WIDTH), **more)
        )
        results += mask2former.predict(view, [sample])
        probabilities = F.interpolate(
            ratings(mask2former, view), (HEIGHT, WIDTH), mode='bilinear'
        ).softmax(1)
        expected.append(probabilities.flip(3) if flip else probabilities)
    settings = {'type': 'SegTTAModel', 'module': mask2former}
    with DefaultScope.overwrite_default_scope('mmseg'):
        (merged,) = MODELS.build(settings).merge_preds([results])
    labels = sum(expected)[0].argmax(0)
    # Flipped before it is resized, not after, the last bits of a view differ.
    assert (merged.pred_sem_seg.data == labels).float().mean() > 0.999


def test_tensor_mode_gives_classes_and_masks(mask2former: nn.Module):
    with torch.no_grad():
        classes, masks = mask2former(torch.randn(2, 3, 64, 96), mode='tensor')
    assert [tuple(value.shape) for value in classes] == [(2, 20, 151)] * 4
    assert [tuple(value.shape) for value in masks] == [(2, 20, 16, 24)] * 4


def test_class_weights_have_to_fit_the_classes():
    config = read_config('mask2former', **{'model.decode_head.num_classes': 7})
    with pytest.raises(ValueError, match=r'expected 8 weights, for 7 .*, got 151'):
        build(config)


# Loss


def labelled(labels: Tensor) -> SegDataSample:
    sample = SegDataSample(metainfo={'img_shape': tuple(labels.shape)})
    sample.gt_sem_seg = PixelData(data=labels[None])
    return sample


def golden_outputs() -> tuple[Tensor, Tensor, list[SegDataSample]]:
    """Return logits of two layers for three images, and labels; the last has none."""
    classes = 2 * golden_input('mask2former/classes', (2, 3, 20, 151))
    masks = 4 * golden_input('mask2former/masks', (2, 3, 20, 12, 18))
    labels = torch.arange(3 * 6 * 9).reshape(3, 6, 9) // 7 % 5
    labels[labels == 3] = labels[2] = 255
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return classes, masks, [labelled(image) for image in labels]


def test_losses_are_the_published_ones(mask2former: nn.Module, monkeypatch):
    """The published methods drew the same points, from the same generator."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        torch,
        'rand',
        lambda *size, device: torch.from_numpy(
            rng.random(torch.empty(*size).shape, np.float32)
        ),
    )
    head = mask2former.decode_head
    classes, masks, samples = golden_outputs()
    targets = head._seg_data_to_instance_data(samples)
    losses = head.loss_by_feat(classes, masks, *targets)
    losses = {name: loss.item() for name, loss in losses.items()}
    names = GOLDEN['segmentor/mask2former/loss_names'].tolist()
    values = GOLDEN['segmentor/mask2former/loss_values'].tolist()
    # Both in float32, in the same order.
    assert losses == pytest.approx(dict(zip(names, values, strict=True)), rel=1e-5)


def test_loss_without_any_label_is_that_of_the_classes(mask2former: nn.Module):
    head = mask2former.decode_head
    classes, masks = torch.randn(2, 20, 151), torch.randn(2, 20, 6, 9)
    masks.requires_grad_()
    targets = head._seg_data_to_instance_data([labelled(torch.full((24, 36), 255))] * 2)
    losses = head.loss_by_feat([classes], [masks], *targets)
    assert losses['loss_mask'] == losses['loss_dice'] == 0
    target = torch.full((2 * head.num_queries,), 150)
    expected = 2 * F.cross_entropy(classes.flatten(0, 1), target)
    torch.testing.assert_close(losses['loss_cls'], expected)
    (
        losses['loss_mask'] + losses['loss_dice']
    ).backward()  # as in a batch that has none


def test_pixels_without_label_are_in_no_mask(mask2former: nn.Module):
    labels = torch.tensor([[3, 3, 255], [9, 255, 255]])
    (target,), _ = mask2former.decode_head._seg_data_to_instance_data(
        [labelled(labels)]
    )
    masks = dict(zip(target.labels.tolist(), target.masks.tolist(), strict=True))
    assert masks == {3: [[1, 1, 0], [0, 0, 0]], 9: [[0, 0, 0], [1, 0, 0]]}


def test_loss_has_single_precision_under_autocast(mask2former: nn.Module):
    head = mask2former.decode_head
    classes = torch.randn(2, head.num_queries, 151, dtype=torch.bfloat16)
    masks = torch.randn(2, head.num_queries, 6, 9, dtype=torch.bfloat16)
    labels = torch.randint(0, 5, (2, 24, 36))
    targets = head._seg_data_to_instance_data([labelled(image) for image in labels])
    torch.manual_seed(0)
    expected = head.loss_by_feat([classes.float()], [masks.float()], *targets)
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        actual = head.loss_by_feat([classes], [masks], *targets)
    assert actual == expected


@pytest.mark.parametrize('name', OURS)
def test_training_reaches_all_parameters(name: str):
    changes = {'model.decode_head.train_cfg.num_points': 64}
    config = read_config(name, **(changes if name == 'mask2former' else {}))
    for head in filter(None, (config.model.decode_head, config.model.auxiliary_head)):
        if 'norm_cfg' in head:
            head.norm_cfg = {'type': 'BN'}
    model = build(config)
    model.init_weights()
    model.train()
    labels = torch.randint(0, 150, (2, 4, 6)).repeat_interleave(16, 1)
    labels = labels.repeat_interleave(16, 2)
    labels[0, :20] = 255
    losses = model.loss(torch.randn(2, 3, 64, 96), [labelled(x) for x in labels])
    assert all(loss.isfinite().all() for loss in losses.values())
    total = sum(loss for key, loss in losses.items() if 'loss' in key)
    total.backward()
    for key, param in model.named_parameters():
        assert param.grad is not None, key


# Files


@pytest.mark.parametrize('name', OURS)
def test_no_weight_is_lost(name: str):
    weights = published(name)
    # A head that an older version of the published code made but did not use.
    weights.setdefault('decode_head.conv_seg.weight', torch.ones(150, 64, 1, 1))
    converted = convert_published(weights)
    assert [id(value) for value in converted.values()] == [
        id(value) for value in weights.values()
    ]
    assert convert_published(converted) == converted
    if name != 'mask2former':
        assert list(converted) == list(weights)


@pytest.fixture(params=['upernet', 'mask2former'])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Return the name of a golden case and a file as mmseg 0 wrote it."""
    path = tmp_path / 'published.pth'
    meta = {'iter': 3, 'CLASSES': ['wall'], 'PALETTE': [[120, 120, 120]]}
    torch.save({'meta': meta, 'state_dict': published(request.param)}, path)
    return request.param, path


def assert_loaded(model: nn.Module, name: str) -> None:
    expected = convert_published(published(name))
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)


def small_test_config(name: str) -> Config:
    config = read_config(name)
    # Of the two, `inference_model` reads one and the inferencer the other.
    for pipeline in (config.test_pipeline, config.test_dataloader.dataset.pipeline):
        (resize,) = (step for step in pipeline if step.type == 'Resize')
        resize.scale = (96, 64)
    return config


def test_published_file_is_trained_from_as_it_is(file, tmp_path: Path):
    name, path = file
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner = Runner(
            deepcopy(read_config(name).model),
            str(tmp_path),
            load_from=str(path),
            default_scope='mmseg',
        )
        runner.load_or_resume()
    assert_loaded(runner.model, name)


def test_published_file_is_tested_as_it_is(file):
    name, path = file
    image = np.random.default_rng(0).integers(0, 256, (50, 79, 3), np.uint8)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = mmseg_apis.init_model(small_test_config(name), str(path), 'cpu')
        result = mmseg_apis.inference_model(model, image)
        inferencer = mmseg_apis.MMSegInferencer(
            small_test_config(name), str(path), device='cpu', show_progress=False
        )
        prediction = inferencer(image)['predictions']
    assert_loaded(model, name)
    assert_loaded(inferencer.model, name)
    assert model.dataset_meta == {'classes': ['wall'], 'palette': [[120, 120, 120]]}
    assert prediction.shape == image.shape[:2]
    assert (result.pred_sem_seg.data[0].numpy() == prediction).all()


def test_converted_file_is_loaded(file, tmp_path: Path, capsys):
    name, path = file
    tool = runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'))
    converted = tmp_path / 'converted.pth'
    tool['main']([str(path), str(converted)])
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = mmseg_apis.init_model(read_config(name), str(converted), 'cpu')
    assert_loaded(model, name)
    assert model.dataset_meta['classes'] == ['wall']
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    numel = sum(value.numel() for value in published(name).values())
    assert ['total', str(len(published(name))), f'{numel:,}'] in table


def test_unknown_part_of_a_layer_is_refused(tmp_path: Path, capsys):
    weights = published('mask2former')
    unknown = 'decode_head.transformer_decoder.layers.0.attentions.2.attn.in_proj_bias'
    weights[unknown] = torch.ones(3)
    torch.save({'state_dict': weights}, tmp_path / 'in.pth')
    tool = runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'))
    with pytest.raises(SystemExit):
        tool['main']([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])
    assert f'in none of our models: {unknown}' in capsys.readouterr().err
