# SPDX-License-Identifier: Apache-2.0
"""Mapillary Vistas in the classes of Cityscapes.

Configs name this module in ``custom_imports``. Importing it needs mmseg.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from mmseg.datasets import CityscapesDataset, MapillaryDataset_v1
from mmseg.registry import DATASETS

#: Class of Cityscapes -> classes of Mapillary Vistas 1.2 that become it; the 41 others
#: become none. Source: OpenGVLab/InternImage@31c962d,
#: segmentation/mmseg_custom/datasets/pipelines/transform.py, where they are numbers.
STREETS = {
    'road': ('Road', 'Lane Marking - General', 'Manhole'),
    'sidewalk': ('Curb', 'Sidewalk'),
    'building': ('Building',),
    'wall': ('Wall',),
    'fence': ('Fence',),
    'pole': ('Pole', 'Utility Pole'),
    'traffic light': ('Traffic Light',),
    'traffic sign': ('Traffic Sign (Front)',),
    'vegetation': ('Vegetation',),
    'terrain': ('Terrain',),
    'sky': ('Sky',),
    'person': ('Person',),
    'rider': ('Bicyclist', 'Motorcyclist', 'Other Rider'),
    'car': ('Car',),
    'truck': ('Truck',),
    'bus': ('Bus',),
    'train': ('On Rails',),
    'motorcycle': ('Motorcycle',),
    'bicycle': ('Bicycle',),
}
NO_CLASS = 255


@DATASETS.register_module()
class MapillaryStreets(MapillaryDataset_v1):
    """The images of Mapillary Vistas 1.2, with labels of Cityscapes' 19 classes.

    Args:
        **kwargs: Those of mmseg's ``BaseSegDataset``. ``metainfo.classes`` may be some
            of the 19, in any order.

    Raises:
        ValueError: A class in ``metainfo`` is not of Cityscapes.
    """

    METAINFO: ClassVar[dict[str, Any]] = CityscapesDataset.METAINFO

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """Return the new label of each label in the files; 255 for no class."""
        chosen = super().get_label_map(new_classes) or {}
        streets = {
            name: chosen.get(street, street)
            for street, names in enumerate(STREETS.values())
            for name in names
        }
        return {
            label: streets.get(name, NO_CLASS)
            for label, name in enumerate(MapillaryDataset_v1.METAINFO['classes'])
        }
