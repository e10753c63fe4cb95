# SPDX-License-Identifier: Apache-2.0
"""Settings of the published segmentation configs, in the words of mmseg 1.

The published settings are those that mmseg 0.30.0 reads from ``segmentation/configs``
in OpenGVLab/InternImage@31c962d. An assertion says of a setting that it has one value
in all published recipes, which the translation relies on.
"""

import inspect
from typing import Any

from tests.configs.comparison import with_defaults
from tests.configs.published_detection import (
    modern_optim_wrapper,
    renamed,
    step_of,
    without,
)

# What an image goes through after its augmentation. mmseg 1 leaves it to the model,
# and Mask2Former's masks of single classes (ToMask) to its head.
DONE_BY_THE_MODEL = ('Normalize', 'Pad', 'ToMask', 'DefaultFormatBundle')


def defaults_of(name: str) -> dict[str, Any]:
    """Return what a class leaves to its users to change, and its values."""
    import mmcv.cnn.bricks.transformer
    import mmcv.ops
    from mmdet.models import dense_heads, layers, losses

    homes = (mmcv.cnn.bricks.transformer, mmcv.ops, dense_heads, layers, losses)
    (owner,) = {getattr(home, name) for home in homes if hasattr(home, name)}
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(owner).parameters.values()
    }


def without_defaults(settings: dict) -> dict:
    """Return the settings less those that today's class of that name has anyway."""
    defaults = defaults_of(settings['type'])
    return {
        name: value
        for name, value in settings.items()
        if name not in defaults or defaults[name] != value
    }


def modern_resize(step: dict, scale: list[int]) -> dict:
    """Spell a resize of a test pipeline as mmseg 1 does."""
    assert step == {'type': 'Resize', 'keep_ratio': True}
    return {**step, 'scale': scale}


def modern_train_pipeline(steps: list[dict]) -> list[dict]:
    """Spell a training pipeline as mmseg 1 does."""
    modern = []
    for step in steps:
        if step['type'] == 'Resize':
            # One size, times one of a range of ratios. To keep the shape was a default.
            random = {**renamed(step, img_scale='scale'), 'type': 'RandomResize'}
            modern.append({'keep_ratio': True, **random})
        elif step['type'] == 'LoadAnnotations':
            modern.append(without(step, 'reduce_zero_label'))
        elif step['type'] == 'Collect':
            modern.append({'type': 'PackSegInputs'})
        elif step['type'] not in DONE_BY_THE_MODEL:
            modern.append(step)
    return modern


def modern_test_pipelines(steps: list[dict]) -> tuple[list[dict], list[dict] | None]:
    """Spell a test pipeline as mmseg 1 does, and that of its views, if it has any.

    Annotations are read for the metric, after the image is resized: they are not.
    """
    load, augment = steps
    assert augment['type'] == 'MultiScaleFlipAug'
    names = [step['type'] for step in augment['transforms']]
    resize, *to_multiple = augment['transforms'][: names.index('RandomFlip')]
    assert [step['type'] for step in to_multiple] in ([], ['ResizeToMultiple'])
    last = [{'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}]
    width, height = augment['img_scale']
    plain = [load, modern_resize(resize, [width, height]), *to_multiple, *last]
    if not augment['flip']:
        assert 'img_ratios' not in augment
        return plain, None
    sizes = [
        modern_resize(resize, [int(width * ratio), int(height * ratio)])
        for ratio in augment['img_ratios']
    ]
    flips = [
        {'type': 'RandomFlip', 'prob': prob, 'direction': 'horizontal'}
        for prob in (0.0, 1.0)
    ]
    views = [sizes, *([step] for step in to_multiple), flips]
    views += [[step] for step in last]
    return plain, [load, {'type': 'TestTimeAug', 'transforms': views}]


def modern_dataset(dataset: dict, is_reduced: bool, pipeline: list[dict]) -> dict:
    """Spell a data set as mmseg 1 does."""
    folders = dataset['img_dir'], dataset['ann_dir']
    if isinstance(folders[0], list):
        parts = [
            {**dataset, 'img_dir': images, 'ann_dir': labels}
            for images, labels in zip(*folders, strict=True)
        ]
        datasets = [modern_dataset(part, is_reduced, pipeline) for part in parts]
        return {'type': 'ConcatDataset', 'datasets': datasets}
    modern = {
        'type': dataset['type'],
        'data_root': dataset['data_root'],
        'data_prefix': dict(zip(('img_path', 'seg_map_path'), folders, strict=True)),
        # Said of the loading of labels in mmseg 0.
        'reduce_zero_label': is_reduced,
        'pipeline': pipeline,
    }
    if 'split' in dataset:
        modern['ann_file'] = dataset['split']
    # A step on the labels there, a data set here.
    to_streets = {'type': 'MapillaryHack'}
    if dataset['type'] == 'MapillaryDataset':
        assert pipeline[2] == to_streets
        modern['type'] = 'MapillaryStreets'
        modern['pipeline'] = [step for step in pipeline if step != to_streets]
    return modern


def modern_data(data: dict) -> dict:
    """Spell the data settings as mmseg 1 does."""
    train, test = data['train'], data['test']
    labels = step_of(train['pipeline'], 'LoadAnnotations')
    is_reduced = labels.get('reduce_zero_label', False)
    train_pipeline = modern_train_pipeline(train['pipeline'])
    test_pipeline, views = modern_test_pipelines(test['pipeline'])
    modern = {
        'train_dataloader': {
            'batch_size': data['samples_per_gpu'],
            'num_workers': data['workers_per_gpu'],
            'sampler': {'type': 'InfiniteSampler', 'shuffle': True},
            'dataset': modern_dataset(train, is_reduced, train_pipeline),
        },
        'test_dataloader': {'dataset': modern_dataset(test, is_reduced, test_pipeline)},
    }
    if views:
        modern |= {'tta_pipeline': views, 'tta_model': {'type': 'SegTTAModel'}}
    return modern


def modern_ffn(layer: dict) -> dict:
    """Spell the feed-forward network of a transformer layer as mmdet 3 does."""
    ffn = {'type': 'FFN', **layer['ffn_cfgs']}
    assert not ffn['with_cp']  # less memory in training, the same result
    sizes = {ffn['feedforward_channels'], layer.get('feedforward_channels')}
    assert sizes <= {ffn['feedforward_channels'], None}
    return without(without_defaults(ffn), 'type', 'with_cp')


def modern_attention(attention: dict) -> dict:
    """Spell an attention as mmdet 3 does, whose layers all have the batch first."""
    assert not attention['batch_first']
    return without(without_defaults(attention), 'type', 'batch_first')


def modern_encoder(encoder: dict) -> dict:
    """Spell the encoder of the pixel decoder as mmdet 3 does."""
    layer = encoder['transformerlayers']
    assert layer['operation_order'] == ['self_attn', 'norm', 'ffn', 'norm']
    return {
        'num_layers': encoder['num_layers'],
        'layer_cfg': {
            'self_attn_cfg': modern_attention(layer['attn_cfgs']),
            'ffn_cfg': modern_ffn(layer),
        },
    }


def modern_decoder(decoder: dict) -> dict:
    """Spell the transformer decoder as mmdet 3 does."""
    layer = decoder['transformerlayers']
    order = ['cross_attn', 'norm', 'self_attn', 'norm', 'ffn', 'norm']
    assert layer['operation_order'] == order
    attention = modern_attention(layer['attn_cfgs'])
    return {
        'num_layers': decoder['num_layers'],
        'return_intermediate': decoder['return_intermediate'],
        'layer_cfg': {
            'self_attn_cfg': attention,
            'cross_attn_cfg': attention,
            'ffn_cfg': modern_ffn(layer),
        },
    }


def of_mmdet(settings: dict) -> dict:
    """Name the package of a type that mmseg 1 takes from mmdet."""
    return {**settings, 'type': f'mmdet.{settings["type"]}'}


def modern_matching(train_cfg: dict) -> dict:
    """Spell what a Mask2Former learns from as mmdet 3 does."""
    assigner = train_cfg['assigner']
    assert assigner['type'] == 'MaskHungarianAssigner'
    costs = [
        of_mmdet(assigner[name]) for name in ('cls_cost', 'mask_cost', 'dice_cost')
    ]
    return {
        **train_cfg,
        'assigner': {'type': 'mmdet.HungarianAssigner', 'match_costs': costs},
        'sampler': of_mmdet(train_cfg['sampler']),
    }


def modern_mask2former(model: dict) -> dict:
    """Spell a Mask2Former as mmseg 1 does: what was the segmentor's is the head's."""
    head = model['decode_head']
    pixel_decoder = head['pixel_decoder']
    assert head['in_index'] == [0, 1, 2, 3]  # all there are
    losses = {
        name: of_mmdet(without_defaults(head[name]))
        for name in ('loss_cls', 'loss_mask', 'loss_dice')
    }
    modern_head = {
        **without_defaults(without(head, 'in_index')),
        **losses,
        'type': 'InternImageMask2FormerHead',
        'positional_encoding': without(head['positional_encoding'], 'type'),
        'pixel_decoder': {
            **of_mmdet(without_defaults(pixel_decoder)),
            'encoder': modern_encoder(pixel_decoder['encoder']),
            'positional_encoding': without(
                pixel_decoder['positional_encoding'], 'type'
            ),
        },
        'transformer_decoder': modern_decoder(head['transformer_decoder']),
        'train_cfg': modern_matching(model['train_cfg']),
    }
    settings = without(model, 'train_cfg')
    return {**settings, 'type': 'EncoderDecoder', 'decode_head': modern_head}


def modern_model(model: dict, train_pipeline: list[dict]) -> dict:
    """Spell a model as mmseg 1 does: it normalises and pads its images itself."""
    norm, pad = (step_of(train_pipeline, name) for name in ('Normalize', 'Pad'))
    if 'Mask2Former' in model['type']:
        model = modern_mask2former(model)
    return {
        **model,
        'backbone': with_defaults(without(model['backbone'], 'core_op')),
        'data_preprocessor': {
            'type': 'SegDataPreProcessor',
            'mean': norm['mean'],
            'std': norm['std'],
            'bgr_to_rgb': norm['to_rgb'],
            'size': pad['size'],
            'pad_val': pad['pad_val'],
            'seg_pad_val': pad['seg_pad_val'],
        },
    }


def modern_schedule(lr_config: dict, max_iters: int) -> list[dict]:
    """Spell a polynomial schedule with linear warm-up as mmengine does."""
    assert (lr_config['policy'], lr_config['warmup']) == ('poly', 'linear')
    assert not lr_config['by_epoch']
    warm_up = {
        'type': 'LinearLR',
        'start_factor': lr_config['warmup_ratio'],
        'begin': 0,
        'end': lr_config['warmup_iters'],
        'by_epoch': False,
    }
    falling = {
        'type': 'PolyLR',
        'eta_min': lr_config['min_lr'],
        'power': lr_config['power'],
        'begin': 0,
        'end': max_iters,
        'by_epoch': False,
    }
    return [warm_up, falling]


def modern_optimizer(recipe: dict) -> dict:
    """Spell an optimizer as mmengine does; all have AdamW with torch's `betas`."""
    optimizer = recipe['optimizer']
    assert optimizer['betas'] == [0.9, 0.999]
    paramwise = {'offset_lr_scale': 1.0, **optimizer['paramwise_cfg']}
    clipping = {'grad_clip': None, **recipe['optimizer_config']}
    return modern_optim_wrapper(
        {
            'optimizer': {**without(optimizer, 'betas'), 'paramwise_cfg': paramwise},
            'optimizer_config': clipping,
        }
    )


def modern_recipe(recipe: dict) -> dict:
    """Spell a published segmentation recipe as mmseg 1 does."""
    runner, data, evaluation = (recipe[key] for key in ('runner', 'data', 'evaluation'))
    metrics = {'type': 'IoUMetric', 'iou_metrics': [evaluation['metric']]}
    max_iters = runner['max_iters']
    assert 'custom_hooks' not in recipe
    return {
        'model': modern_model(recipe['model'], data['train']['pipeline']),
        'optim_wrapper': modern_optimizer(recipe),
        'param_scheduler': modern_schedule(recipe['lr_config'], max_iters),
        'train_cfg': {
            'type': runner['type'].replace('Runner', 'TrainLoop'),
            'max_iters': max_iters,
            'val_interval': evaluation['interval'],
        },
        **modern_data(data),
        'val_evaluator': metrics,
        'test_evaluator': metrics,
        'default_hooks': {
            'checkpoint': {
                'type': 'WholeCheckpointHook',
                'save_best': evaluation['save_best'],
                **recipe['checkpoint_config'],
            }
        },
        'custom_hooks': {},  # none, so no averaged weights
        'load_from': recipe['load_from'],
    }
