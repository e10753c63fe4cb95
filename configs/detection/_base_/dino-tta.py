# SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation for DINO: three sizes, mirrored and not, joined by soft-NMS.

Which sizes gave the published results with test-time augmentation, and how their boxes
were joined, is not published: this is our choice.
"""

tta_model = dict(
    type='DetTTAModel',
    tta_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.6), max_per_img=300),
)
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=scale, keep_ratio=True)
                for scale in [(1333, 640), (1333, 800), (1600, 960)]
            ],
            # The result keeps the annotations of the first view: not mirrored.
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
