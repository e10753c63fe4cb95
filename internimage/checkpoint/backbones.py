# SPDX-License-Identifier: Apache-2.0
"""Fill a backbone from a published checkpoint of any model that has one."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ops_dcnv3.arguments import flag

from .key_maps import ANCHOR, convert_published, shorten
from .reading import errors_of

_BACKBONE_KEY = re.compile(r'(patch_embed|levels)\.')


def backbone_state_dict(
    state_dict: Mapping[str, Any], prefix: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Take the backbone out of a published checkpoint.

    Args:
        state_dict: As for :func:`convert_published`.
        prefix: What stands before the names of the backbone's weights, once converted;
            None to find out.

    Returns:
        The backbone's weights, by the names that ``InternImage`` has for them; and
        the names of all others.

    Raises:
        ValueError: There is no InternImage backbone, or more than one and no
            ``prefix`` to choose by.
    """
    tensors = convert_published(state_dict)
    prefixes = [key.removesuffix(ANCHOR) for key in tensors if key.endswith(ANCHOR)]
    if prefix is not None:
        wanted = prefix.rstrip('.') + '.' if prefix else ''
        prefixes = [found for found in prefixes if found == wanted]
    if not prefixes:
        place = 'anywhere' if prefix is None else f'at prefix {prefix!r}'
        raise ValueError(
            f'checkpoint: expected an InternImage backbone, got none {place}; it has '
            f'{_group(tensors)}'
        )
    if len(prefixes) > 1:
        raise ValueError(
            f'checkpoint: expected one InternImage backbone, got {len(prefixes)}; '
            f'choose a prefix of {prefixes}'
        )
    backbone, left_out = {}, []
    for key, tensor in tensors.items():
        name = key.removeprefix(prefixes[0])
        if key.startswith(prefixes[0]) and _BACKBONE_KEY.match(name):
            backbone[name] = tensor
        else:
            left_out.append(key)
    return backbone, left_out


def load_pretrained(
    model: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: Any = 'cpu',
    adapt_in_channels: bool = False,
) -> None:
    """Fill an InternImage with the backbone of a published checkpoint.

    The backbone has to fit: a parameter that silently keeps its initial value costs
    accuracy that nobody finds. One absence is harmless, and logged: the ``gamma`` of a
    layer scale that starts at 1 changes nothing (InternImage-T was pre-trained without
    layer scale, its detectors and segmentors have one). Weights of the file that are
    not the backbone's are logged and left out.

    Args:
        model: The ``InternImage``.
        checkpoint: Path or URL, in any layout that :func:`backbone_state_dict` takes.
        prefix: As for :func:`backbone_state_dict`.
        map_location: As for ``torch.load``.
        adapt_in_channels: Where the file is for images of another number of channels,
            make its first convolution fit by :func:`adapt_first_conv`.

    Raises:
        ValueError: The file has no backbone, or one of another architecture; the
            message lists the differences.
        UnpicklingError: The file holds more than tensors and plain data.
    """
    content = CheckpointLoader.load_checkpoint(
        checkpoint, map_location, logger='current'
    )
    with errors_of(checkpoint):
        tensors, left_out = backbone_state_dict(content, prefix)
    expected = model.state_dict()
    weight, in_channels = tensors[ANCHOR], expected[ANCHOR].shape[1]
    adapts = flag('adapt_in_channels', adapt_in_channels)
    change = ''
    if weight.ndim == 4 and weight.shape[1] != in_channels:
        change = f'from {weight.shape[1]} to {in_channels} channels of the image'
        if adapts:
            tensors[ANCHOR] = adapt_first_conv(weight, in_channels)
    absent = [key for key in expected if key not in tensors]
    neutral = [key for key in absent if _is_neutral_scale(key, expected[key])]
    differences = {
        'not in the file': [key for key in absent if key not in neutral],
        'not in the model': [key for key in tensors if key not in expected],
        'of different shape': [
            f'{key}: file {tuple(tensors[key].shape)}, model {tuple(value.shape)}'
            for key, value in expected.items()
            if key in tensors and tensors[key].shape != value.shape
        ],
    }
    if any(differences.values()):
        hint = 'check its arch and layer_scale. '
        if change and not adapts:
            hint = f'adapt_in_channels=True in init_cfg takes it {change}; {hint}'
        raise ValueError(
            f'{checkpoint}: expected the backbone of this model; {hint}'
            + '; '.join(
                f'{len(keys)} {what}: {shorten(keys)}'
                for what, keys in differences.items()
                if keys
            )
        )
    model.load_state_dict(tensors, strict=False)
    message = f'{checkpoint}: loaded the {len(tensors)} tensors of the backbone'
    if change:
        message += f', the first convolution adapted {change}'
    if left_out:
        message += f'; left out {_group(left_out)}'
    if neutral:
        message += f'; not in the file, kept at 1: {len(neutral)} layer scales (gamma)'
    print_log(message, logger='current')


def adapt_first_conv(weight: Tensor, in_channels: int) -> Tensor:
    """Make the weights of a first convolution fit images of other channels.

    One channel gets the sum of the weights: a gray image then gives what it gives with
    its gray in every channel. Otherwise the channels are repeated in turn, scaled so
    that the sum over channels of equal content stays about the same.

    Args:
        weight: ``(out_channels, channels, H, W)``.
        in_channels: Channels of the images to come.

    Returns:
        ``(out_channels, in_channels, H, W)``, dtype and device of ``weight``.

    Source: timm, ``adapt_input_conv``.
    """
    channels = weight.shape[1]
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if in_channels == 1:
        return wide.sum(dim=1, keepdim=True).to(weight.dtype)
    turns = torch.arange(in_channels, device=weight.device) % channels
    return (wide[:, turns] * (channels / in_channels)).to(weight.dtype)


def _is_neutral_scale(key: str, value: Tensor) -> bool:
    return key.endswith(('.gamma1', '.gamma2')) and bool(torch.all(value == 1))


def _group(keys: Iterable[str]) -> str:
    """Summarise names by their first component: ``head.* (2), conv_head.* (6)``."""
    counts = Counter(key.split('.')[0] for key in keys)
    return ', '.join(f'{first}.* ({count})' for first, count in counts.items())
