# SPDX-License-Identifier: Apache-2.0
"""Run the documents' Python, as somebody who has installed the wheel would.

``python document_code.py README.md docs/*.md``, in an empty folder, which is filled
with what the documents take for granted: the configs, an image, and, where downloads
are kept, the weights that they name (of models that have learnt nothing). Standalone,
so that the packages are the installed ones and not those of a checkout.
"""

import re
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import internimage
from internimage.checkpoint.downloads import cached_path


def find_blocks(path: Path) -> list[str]:
    """Return the Python blocks of a document."""
    return re.findall(
        r'^```python\n(.*?)^```', path.read_text(), re.DOTALL | re.MULTILINE
    )


def prepare(blocks: Iterable[str]) -> None:
    """Make what the blocks name."""
    package = Path(internimage.__file__).parent
    installed = package / '.mim' / 'configs'
    configs = installed if installed.is_dir() else package.parent / 'configs'
    Path('configs').symlink_to(configs, target_is_directory=True)
    # Narrow, so that little is left to compute when its long side is 1333.
    cv2.imwrite('street.jpg', np.full((30, 1000, 3), 127, np.uint8))
    torch.hub.set_dir('hub')
    config_of = {
        model.get('Weights'): model['Config']
        for path in Path('configs').glob('*/metafile.yml')
        for model in yaml.safe_load(path.read_text())['Models']
    }
    for url in set(re.findall(r"'(https://\S+\.pth)'", '\n'.join(blocks))):
        config = Config.fromfile(config_of[url])
        config.model.backbone.init_cfg = None
        path = cached_path(url)
        path.parent.mkdir(parents=True)
        torch.save(build(config).state_dict(), path)


def build(config: Config) -> torch.nn.Module:
    """Build a config's model."""
    scope = config.default_scope
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(config.model)


def run(block: str) -> None:
    """Run a program; of a config, build the model and give it its weights."""
    if '_base_ =' not in block:
        exec(compile(block, 'document', 'exec'), {'__name__': 'document'})
        return
    Path('own.py').write_text(block)
    build(Config.fromfile('own.py')).init_weights()


def main(documents: Iterable[Path]) -> int:
    """Run all blocks in the current folder; return their number."""
    blocks = [block for path in documents for block in find_blocks(path)]
    prepare(blocks)
    for block in blocks:
        run(block)
    return len(blocks)


if __name__ == '__main__':
    print(f'{main(map(Path, sys.argv[1:]))} Python blocks of the documents ran')
