# SPDX-License-Identifier: Apache-2.0
"""The data set of the iNaturalist 2018 competition, from its official files."""

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.fileio import exists, join_path, load
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS


@DATASETS.register_module()
class INaturalist2018(BaseDataset):
    """Images of 8142 species, with date and place.

    Each sample has ``img_path``, ``gt_label``, ``date``, ``latitude`` and
    ``longitude``; of the last three those that are unknown are None. A label is the
    place of the category in the list of ``<split>2018.json``. The names of the classes
    come from ``categories.json``, as those in the other files are hidden.

    Args:
        data_root: Folder with ``categories.json``, ``<split>2018.json`` and
            ``<split>2018_locations.json``, all as published by the competition, and
            the images, by the paths that the second file has for them
            (``train_val2018/<super category>/<category>/<image>.jpg``).
        split: 'train' or 'val'. The test images have no public labels.
        **kwargs: Of mmpretrain's ``BaseDataset``: ``pipeline``, ``indices`` and so on.

    Raises:
        ValueError: The split is another one, or the files do not fit together; the
            latter, like the next, when the data set is first used.
        FileNotFoundError: A file is missing.
    """

    def __init__(self, data_root: str, split: str = 'train', **kwargs: Any) -> None:
        if split not in ('train', 'val'):
            raise ValueError(f"split: expected 'train' or 'val', got {split!r}")
        super().__init__(f'{split}2018.json', data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read the three files and join them.

        Returns:
            The samples, in the order of the annotations.
        """
        locations_file = self.ann_file.removesuffix('.json') + '_locations.json'
        categories_file = join_path(self.data_root, 'categories.json')
        files = (self.ann_file, locations_file, categories_file)
        missing = [file for file in files if not exists(file)]
        if missing:
            raise FileNotFoundError(
                f'data_root: expected the files of iNaturalist 2018, got none at '
                f'{", ".join(missing)}; projects/inaturalist2018/README.md says where '
                'they come from'
            )
        content, locations, categories = map(load, files)

        labels = {
            entry['id']: label for label, entry in enumerate(content['categories'])
        }
        names = {entry['id']: entry['name'] for entry in categories}
        _require('category', labels, names, categories_file)
        self._metainfo.setdefault('classes', tuple(names[key] for key in labels))

        # By id, where the published code trusts the three lists to have one order.
        images = {entry['id']: entry['file_name'] for entry in content['images']}
        places = {entry['id']: entry for entry in locations}
        annotations = content['annotations']
        image_ids = [entry['image_id'] for entry in annotations]
        category_ids = [entry['category_id'] for entry in annotations]
        _require('image', image_ids, images, self.ann_file)
        _require('image', image_ids, places, locations_file)
        _require('category', category_ids, labels, self.ann_file)
        return [
            {
                'img_path': join_path(self.img_prefix, images[image_id]),
                'gt_label': labels[category_id],
                'date': places[image_id]['date'],
                'latitude': places[image_id]['lat'],
                'longitude': places[image_id]['lon'],
            }
            for image_id, category_id in zip(image_ids, category_ids, strict=True)
        ]


def _require(kind: str, ids: Iterable[int], known: Mapping, file: str) -> None:
    missing = [key for key in ids if key not in known]
    if missing:
        raise ValueError(
            f'{file}: expected an entry for every {kind}, got none for '
            f'{len(missing)}, such as id {missing[0]}'
        )
