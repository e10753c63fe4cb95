# SPDX-License-Identifier: Apache-2.0
"""Mapillary Vistas 1.2 in the classes of Cityscapes, all images that have labels."""

mapillary_streets = [
    dict(
        type='MapillaryStreets',
        data_root='data/mapillary/',
        data_prefix=dict(
            img_path=f'{split}/images', seg_map_path=f'{split}/v1.2/labels'
        ),
    )
    for split in ('training', 'validation')
]
