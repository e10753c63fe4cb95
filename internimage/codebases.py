# SPDX-License-Identifier: Apache-2.0
"""The packages that parts of this one need, and that not everybody has."""

from importlib.util import find_spec

#: Import name -> what to install. What is called mmcv, mmdet and so on on the index is
#: another line: it ends at PyTorch 2.4 and fills the same folders.
DISTRIBUTIONS = {
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmpretrain': 'onedl-mmpretrain',
    'mmseg': 'onedl-mmsegmentation',
    'torchvision': 'torchvision',
}


def require(part: str, *packages: str) -> None:
    """Check that packages are installed.

    Args:
        part: What needs them, as the message names it.
        packages: Their import names.

    Raises:
        ModuleNotFoundError: Some are not; the message says what to install.
    """
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        names = ' '.join(DISTRIBUTIONS[package] for package in absent)
        raise ModuleNotFoundError(
            f'{part} needs {" and ".join(absent)}: install with '
            f'`pip install --no-build-isolation {names}`',
            name=absent[0],
        ) from None
