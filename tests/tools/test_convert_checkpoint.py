# SPDX-License-Identifier: Apache-2.0
import gzip
import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from internimage import InternImage
from internimage.checkpoint import convert_published, load_checkpoint_file
from tests.golden import fill
from tests.paths import ROOT

TOOL = ROOT / 'tools' / 'convert_checkpoint.py'
SMALL = {'channels': 6, 'depths': (1, 1, 1, 1), 'groups': (1, 2, 3, 6)}


@pytest.fixture
def tool() -> dict[str, Any]:
    """Return the names in the tool."""
    return runpy.run_path(str(TOOL))


def detector() -> dict[str, Tensor]:
    """Return weights as a published DINO has them, few of each kind."""
    backbone = fill(InternImage(SMALL)).state_dict()
    return {
        **{f'backbone.{name}': tensor for name, tensor in backbone.items()},
        'neck.0.convs.0.conv.weight': torch.ones(4, 12, 1, 1),
        'bbox_head.transformer.level_embeds': torch.ones(4, 4),
        'bbox_head.transformer.encoder.layers.5.ffns.0.layers.0.0.bias': torch.ones(3),
        'bbox_head.label_embedding.weight': torch.ones(80, 4),
    }


@pytest.mark.parametrize('source', ['in.pth', 'in.bin', 'in.safetensors'])
@pytest.mark.parametrize('target', ['out.pth', 'out.safetensors'])
def test_formats(source: str, target: str, tool, tmp_path: Path, capsys):
    source, target = tmp_path / source, tmp_path / target
    if source.suffix == '.safetensors':
        save_file(detector(), source)
    else:
        torch.save({'state_dict': detector(), 'meta': {'epoch': 12}}, source)
    tool['main']([str(source), str(target), '--allow-missing'])

    result = load_checkpoint_file(target)
    weights = result['state_dict']
    # mmseg's `init_model` wants it.
    assert result['meta'] == ({} if 'safe' in source.suffix else {'epoch': 12})
    if target.suffix == '.safetensors':  # others read it as they read any
        assert load_file(target).keys() == weights.keys()
    expected = convert_published(detector())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['neck', 'neck.convs', '1', '48'] in lines
    assert ['bbox_head.transformer.level_embeds', 'level_embed', '1', '16'] in lines
    assert [
        'bbox_head.transformer.encoder.layers',
        'encoder.layers',
        '1',
        '3',
    ] in lines
    values = sum(tensor.numel() for tensor in expected.values())
    assert ['total', str(len(expected)), f'{values:,}'] in lines


def test_weights_before_averaging_are_left_out_and_said(tool, tmp_path: Path, capsys):
    weights = detector()
    weights['ema_backbone_patch_embed_conv1_bias'] = torch.ones(3)
    torch.save(weights, tmp_path / 'in.pth')
    tool['main'](
        [str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth'), '--allow-missing']
    )
    result = load_checkpoint_file(tmp_path / 'out.pth')['state_dict']
    assert result.keys() == convert_published(detector()).keys()
    (line,) = (x for x in capsys.readouterr().out.splitlines() if 'ema_' in x)
    assert '(left out: before averaging)' in line


def test_pieces_of_a_layer_are_joined_and_said(tool, tmp_path: Path, capsys):
    ffn = 'bbox_head.transformer.decoder.layers.1.ffns.0.'
    weights = detector()
    for piece in range(4):
        weights[f'{ffn}fc1_{piece}.weight'] = torch.randn(3, 5)
    torch.save(weights, tmp_path / 'in.pth')
    tool['main'](
        [str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth'), '--allow-missing']
    )
    result = load_checkpoint_file(tmp_path / 'out.pth')['state_dict']
    assert result['decoder.layers.1.ffn.layers.0.0.weight'].shape == (12, 5)
    (line,) = (x for x in capsys.readouterr().out.splitlines() if '.decoder.' in x)
    assert '(joined with its other pieces)' in line


def save_hostile(path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return Path.touch, (path.with_suffix('.ran'),)

    path.write_bytes(pickle.dumps(Payload()))


def save_unknown(path: Path) -> None:
    torch.save({**detector(), 'bbox_head.transformer.novelty': torch.ones(1)}, path)


def save_list(path: Path) -> None:
    torch.save([torch.ones(1)], path)


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (save_hostile, 'expected a PyTorch checkpoint'),
        (save_unknown, 'in none of our models: bbox_head.transformer.novelty'),
        (save_list, 'expected a dict of named tensors'),
        (lambda path: None, 'no such file'),
        (lambda path: path.write_bytes(b'PK\x03\x04nonsense'), 'could not be read'),
    ],
    ids=['hostile', 'unknown', 'list', 'missing', 'damaged'],
)
def test_bad_file_is_refused(write, message: str, tool, tmp_path: Path, capsys):
    source, target = tmp_path / 'in.pth', tmp_path / 'out.pth'
    write(source)
    with pytest.raises(SystemExit):
        tool['main']([str(source), str(target)])
    assert message in capsys.readouterr().err
    assert not target.exists()
    assert not source.with_suffix('.ran').exists()


def test_result_is_not_overwritten(tool, tmp_path: Path, capsys):
    torch.save(detector(), tmp_path / 'in.pth')
    (tmp_path / 'out.pth').touch()
    for target, message in (('out.pth', 'exists'), ('out.onnx', 'expected .pth or')):
        with pytest.raises(SystemExit):
            tool['main']([str(tmp_path / 'in.pth'), str(tmp_path / target)])
        assert message in capsys.readouterr().err
    assert (tmp_path / 'out.pth').read_bytes() == b''


def classifier(depths: tuple[int, ...] = (4, 4, 18, 4)) -> dict[str, Tensor]:
    """Return weights by the names of the published InternImage-T, in few numbers."""
    with torch.device('meta'):
        names = list(InternImage('tiny', depths=depths).state_dict())
    names += [f'conv_head.{n}' for n in ('0.weight', '1.0.weight', '1.0.bias')]
    weights = {n: torch.ones(1) for n in (*names, 'head.weight', 'head.bias')}
    return {**weights, 'patch_embed.conv2.weight': torch.ones(64, 1)}


def convert(tool, tmp_path: Path, weights: dict[str, Tensor], *options: str) -> Path:
    torch.save({'model': weights}, tmp_path / 'in.pth')
    tool['main']([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth'), *options])
    return tmp_path / 'out.pth'


PARTS = {
    'levels.': 'backbone.levels.',
    'levels.1.': 'backbone.levels.1',
    'levels.3.': 'backbone.levels.3',
    'levels.2.blocks.7.': 'backbone.levels.2.blocks.7',
    'levels.2.blocks.17.': 'backbone.levels.2.blocks.17.',
    'levels.2.blocks.3.dcn.mask.': 'backbone.levels.2.blocks.3.dcn.mask.',
    'levels.0.downsample.': 'backbone.levels.0.downsample.',
    'patch_embed.conv1.bias': 'backbone.patch_embed.conv1.bias',
    'patch_embed.norm2.': 'backbone.patch_embed.norm2.',
    'conv_head.': 'neck',
    'conv_head.0.': 'neck.conv_head.0',
    'head.': 'head.fc',
    'head.bias': 'head.fc.bias',
    'head.weight': 'head.fc.weight',
}


def test_missing_part_is_named(tool):
    for part, said in PARTS.items():
        kept = {n: t for n, t in classifier().items() if not n.startswith(part)}
        missing = tool['find_missing'](convert_published(kept), None)
        assert missing, part
        assert all(name.startswith(said) for name in missing), (part, missing)


def test_missing_part_is_an_error_unless_allowed(tool, tmp_path: Path, capsys):
    kept = {n: t for n, t in classifier().items() if not n.startswith('levels.1.')}
    with pytest.raises(SystemExit):
        convert(tool, tmp_path, kept)
    message = capsys.readouterr().err.splitlines()[-1]
    assert f'{tmp_path}/in.pth: 1 parts or weights are missing: backb' in message
    assert not (tmp_path / 'out.pth').exists()
    target = convert(tool, tmp_path, kept, '--allow-missing')
    assert 'missing: backbone.levels.1\n' in capsys.readouterr().out
    assert len(load_checkpoint_file(target)['state_dict']) == len(kept)


def test_whole_files_miss_nothing(tool, tmp_path: Path, capsys):
    convert(tool, tmp_path, classifier())
    (tmp_path / 'out.pth').unlink()
    convert(tool, tmp_path, classifier((4, 4, 19, 4)))  # somebody's own


def test_published_models_miss_nothing(tool):
    zoo = json.loads(gzip.decompress((ROOT / 'tests/data/zoo.json.gz').read_bytes()))
    for config, entry in zoo.items():
        if entry['params'] > 3e8:
            continue
        published = {k: torch.empty(v, device='meta') for k, v in entry['keys']}
        assert not tool['find_missing'](convert_published(published), None), config


def test_config_knows_all_names(tool, tmp_path: Path, capsys):
    pytest.importorskip('mmpretrain')
    config = tmp_path / 'config.py'
    config.write_text(
        "custom_imports = dict(imports=['internimage.classification'])\n"
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='InternImage', "
        'arch=dict(channels=6, depths=(1, 1), groups=(1, 2)), out_indices=(1,)), '
        "neck=dict(type='GlobalAveragePooling'), "
        "head=dict(type='LinearClsHead', num_classes=3, in_channels=12))\n"
    )
    names = tool['_names_of_model'](config)
    weights = {name: torch.ones(1) for name in names if name != 'head.fc.bias'}
    with pytest.raises(SystemExit):
        convert(tool, tmp_path, weights, '--config', str(config))
    assert ' 1 parts or weights are missing: head.fc.bias' in capsys.readouterr().err


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_result_is_whole_or_not_there(suffix, tool, tmp_path: Path, monkeypatch):
    def stop(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', stop)
    with pytest.raises(OSError, match='the disk is full'):
        tool['save']({'x': torch.ones(3)}, {}, tmp_path / f'out{suffix}')
    assert not list(tmp_path.iterdir())


def test_classes_are_in_both_formats(tool, tmp_path: Path):
    meta = {'dataset_meta': {'classes': ('a', 'b'), 'palette': np.eye(2)}, 'cfg': 'x'}
    tool['save']({'x': torch.ones(3)}, meta, tmp_path / 'x.safetensors')
    read = load_checkpoint_file(tmp_path / 'x.safetensors')['meta']
    assert read == {
        'dataset_meta': {'classes': ['a', 'b'], 'palette': [[1, 0], [0, 1]]}
    }


def test_help():
    done = subprocess.run(
        [sys.executable, TOOL, '--help'], capture_output=True, text=True, check=True
    )
    assert 'IN OUT' in done.stdout
