# SPDX-License-Identifier: Apache-2.0
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from internimage import InternImage
from internimage.checkpoint import convert_published, load_checkpoint_file
from tests.golden import fill

ROOT = Path(__file__).parents[2]
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
    tool['main']([str(source), str(target)])

    is_safe = target.suffix == '.safetensors'
    result = load_file(target) if is_safe else load_checkpoint_file(target)
    weights = result if is_safe else result['state_dict']
    if not is_safe:  # mmseg's `init_model` wants it
        assert result['meta'] == ({} if 'safe' in source.suffix else {'epoch': 12})
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
    tool['main']([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])
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
    tool['main']([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])
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
        (save_list, 'expected named tensors'),
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


def test_help():
    done = subprocess.run(
        [sys.executable, TOOL, '--help'], capture_output=True, text=True, check=True
    )
    assert 'IN OUT' in done.stdout
