# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of the published code, and the parameters they were made with.

Made with OpenGVLab/InternImage at commit 31c962d (MIT licence) on CPU, in float64 and
evaluation mode. The parameters are not stored: each is drawn from a generator that its
published name seeds (:func:`fill_value`). The same holds for input images.

``data/backbones.npz`` holds outputs of four backbones, thinned out.
``data/zoo_backbones.json.gz`` holds the settings, parameter names and shapes of every
backbone in the published configs, and the names of what surrounds it in four of them.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.paths import DATA


def read_json(name: str) -> Any:
    """Read ``tests/data/<name>``, compressed with gzip."""
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


def fill_value(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return the value of the parameter or buffer with a published name."""
    shape = tuple(shape)
    if name.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    rng = _generator(name, seed)
    z = rng.standard_normal(shape)
    if name.endswith('running_var'):
        value = 0.5 + rng.random(shape)
    elif name.endswith('running_mean'):
        value = 0.1 * z
    elif len(shape) >= 2:
        value = z / np.sqrt(np.prod(shape[1:]))
    elif name.endswith('weight') or 'gamma' in name:
        value = 1 + 0.1 * z
    else:
        value = 0.1 * z
    return value.astype(np.float32)


def fill(model: nn.Module) -> nn.Module:
    """Set every parameter and buffer of a model with published names; return it."""
    values = {
        name: torch.from_numpy(fill_value(name, value.shape))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(values)
    return model


def golden_input(tag: str, shape: Sequence[int]) -> Tensor:
    """Return the input image of a case."""
    return torch.from_numpy(
        _generator(tag, 0).standard_normal(tuple(shape)).astype(np.float32)
    )


def assert_matches_golden(
    actual: Tensor, archive: Any, name: str, tolerance: float = 1e-4
) -> None:
    """Compare with every ``step``-th element of a stored array.

    ``tolerance`` is relative to the array's mean magnitude. The default is ten times
    what float32 runs of the published code differ by from the stored float64 ones.
    """
    expected = torch.from_numpy(archive[name])
    assert list(actual.shape) == archive[f'{name}/shape'].tolist()
    sampled = actual.flatten()[:: int(archive[f'{name}/step'])]
    error = (sampled - expected).abs().max() / expected.abs().mean()
    assert error < tolerance, f'{name}: {error:.2e}'


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
