# SPDX-License-Identifier: Apache-2.0
"""The 40 classes of NYU Depth V2.

Configs name this module in ``custom_imports``. Importing it needs mmseg.
"""

from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class NYUDepthV2Dataset(BaseSegDataset):
    """Indoor images and their labels, of 40 classes. In the files, 0 is no class.

    Args:
        ann_file: A text file with a name in each line, without suffix.
        img_suffix: Of the images.
        seg_map_suffix: Of the labels.
        reduce_zero_label: 0 in the files is no class, and 1 is the first one.
        **kwargs: Those of mmseg's ``BaseSegDataset``.

    Source of the classes: Gupta et al., Perceptual Organization and Recognition of
    Indoor Scenes from RGB-D Images (CVPR 2013), spelled as in
    OpenGVLab/InternImage@31c962d, segmentation/mmseg_custom/datasets/nyu_depth_v2.py.
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        'classes': (
            'wall',
            'floor',
            'cabinet',
            'bed',
            'chair',
            'sofa',
            'table',
            'door',
            'window',
            'bookshelf',
            'picture',
            'counter',
            'blinds',
            'desk',
            'shelves',
            'curtain',
            'dresser',
            'pillow',
            'mirror',
            'floor mat',
            'clothes',
            'ceiling',
            'books',
            'refridgerator',
            'television',
            'paper',
            'towel',
            'shower curtain',
            'box',
            'whiteboard',
            'person',
            'night stand',
            'toilet',
            'sink',
            'lamp',
            'bathtub',
            'bag',
            'otherstructure',
            'otherfurniture',
            'otherprop',
        ),
    }

    def __init__(
        self,
        ann_file: str,
        img_suffix: str = '.png',
        seg_map_suffix: str = '.png',
        reduce_zero_label: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            ann_file=ann_file,
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            reduce_zero_label=reduce_zero_label,
            **kwargs,
        )
