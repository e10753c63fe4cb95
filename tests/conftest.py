# SPDX-License-Identifier: Apache-2.0
"""What all tests share: devices and data."""

import gc
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import utils as config_utils

from tests.paths import ROOT

DATA = ROOT.parent / 'shared' / 'data'


def pytest_configure():
    """Compute float32 as float32, and read what does not change once."""
    # cuDNN's default for convolutions is TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # For each base that a config takes from a codebase, mmengine reads all metafiles
    # there: most of the time that a config takes.
    config_utils.load = cache(config_utils.load)


def pytest_collection_finish():
    """Keep what has been imported so far out of every later search for garbage.

    mmengine and the benchmarks search often; it was most of the time of many tests.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    """Skip a test marked ``gpu`` without a GPU; with REQUIRE_CUDA=1, fail it."""
    if item.get_closest_marker('gpu') is None or torch.cuda.is_available():
        return
    if os.environ.get('REQUIRE_CUDA') == '1':
        pytest.fail('REQUIRE_CUDA=1, but there is no CUDA device', pytrace=False)
    pytest.skip('needs a CUDA device')


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope='session')
def shared_data():
    """Small real samples, from INTERNIMAGE_DATA or beside the checkout."""
    path = Path(os.environ.get('INTERNIMAGE_DATA', DATA))
    if not path.is_dir():
        pytest.skip(f'no data at {path}; INTERNIMAGE_DATA names another folder')
    return path
