# SPDX-License-Identifier: Apache-2.0
"""The tests of Cascade Mask R-CNN with InternImage-L, on boxes of COCO-O's domains."""

_base_ = (
    '../../../../configs/detection/'
    'cascade-mask-rcnn_internimage-l_fpn_ms-crop-3x_coco.py'
)

load, resize, _, pack = _base_.test_pipeline
# There are no masks.
boxes = dict(type='LoadAnnotations', with_bbox=True)
boxes_pipeline = [load, resize, boxes, pack]

domains = ['cartoon', 'handmake', 'painting', 'sketch', 'tattoo', 'weather']
roots = [f'data/ood_coco/{domain}/' for domain in domains]
annotations = 'annotations/instances_val2017.json'
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type='CocoDataset',
                data_root=root,
                ann_file=annotations,
                data_prefix=dict(img='val2017/'),
                test_mode=True,
                pipeline=boxes_pipeline,
            )
            for root in roots
        ],
    )
)
test_evaluator = dict(
    _delete_=True,
    type='COCOOEvaluator',
    coco_map=0.561,  # of the published weights, on COCO val2017
    dataset_prefixes=domains,
    metrics=[
        dict(type='CocoMetric', ann_file=root + annotations, metric='bbox')
        for root in roots
    ],
)
