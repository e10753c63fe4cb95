# SPDX-License-Identifier: Apache-2.0
"""Run the README's Python, as somebody who has installed the wheel would.

``python readme.py README.md``, in an empty folder, which is filled with what the README
takes for granted: the configs, an image, weights (of a model that has learnt nothing).
Standalone, so that the packages are the installed ones and not those of a checkout.
"""

import re
import sys
from pathlib import Path

import cv2
import mmdet.utils
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

import internimage

DETECTOR = 'configs/detection/mask-rcnn_internimage-t_fpn_1x_coco.py'
BASE = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'


def prepare() -> None:
    """Make what the README names."""
    package = Path(internimage.__file__).parent
    installed = package / '.mim' / 'configs'
    configs = installed if installed.is_dir() else package.parent / 'configs'
    Path('configs').symlink_to(configs, target_is_directory=True)
    # Narrow, so that little is left to compute when its long side is 1333.
    cv2.imwrite('street.jpg', np.full((30, 1000, 3), 127, np.uint8))
    config = Config.fromfile(DETECTOR)
    config.model.backbone.init_cfg = None
    detector = build(config)
    torch.save(detector.state_dict(), 'mask_rcnn_internimage_t_fpn_1x_coco.pth')
    torch.save(detector.backbone.state_dict(), 'internimage_t_1k_224.pth')


def build(config: Config) -> torch.nn.Module:
    """Build a config's detector."""
    mmdet.utils.register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config.model)


def run(block: str) -> None:
    """Run a program; of a config, build the model and give it its weights."""
    if 'custom_imports' not in block:
        exec(compile(block, 'README.md', 'exec'), {'__name__': 'readme'})
        return
    Path('own.py').write_text(f'_base_ = {BASE!r}\n{block}')
    config = Config.fromfile('own.py')
    build(config).init_weights()


def main(readme: Path) -> int:
    """Run all blocks in the current folder; return their number."""
    text = readme.read_text()
    blocks = re.findall(r'^```python\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    prepare()
    for block in blocks:
        run(block)
    return len(blocks)


if __name__ == '__main__':
    print(f'{main(Path(sys.argv[1]))} Python blocks of the README ran')
