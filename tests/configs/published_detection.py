# SPDX-License-Identifier: Apache-2.0
"""Settings of the published detection configs, in the words of mmdet 3.

The published settings are those that mmdet 2.28.1 reads from ``detection/configs`` in
OpenGVLab/InternImage@31c962d. An assertion says of a setting that it has one value in
all published recipes, which the translation relies on.
"""

from typing import Any

from tests.configs.comparison import with_defaults


def renamed(settings: dict, **names: str) -> dict:
    """Return the settings, those in ``names`` under another name."""
    return {names.get(name, name): value for name, value in settings.items()}


def without(settings: dict, *names: str) -> dict:
    """Return the settings less those in ``names``."""
    return {name: value for name, value in settings.items() if name not in names}


def step_of(pipeline: list[dict], type_name: str) -> dict:
    """Return the only step of a type."""
    (step,) = (step for step in pipeline if step['type'] == type_name)
    return step


def modern_resize(step: dict) -> dict:
    """Spell a resize as mmdet 3 does; one size, one of several, one of a range."""
    # What `override` allowed, to resize twice, needs no permission in mmdet 3.
    step = without(step, 'override')
    mode = step.pop('multiscale_mode', None)
    if mode is None:
        return renamed(step, img_scale='scale')
    if mode == 'value':
        return {**renamed(step, img_scale='scales'), 'type': 'RandomChoiceResize'}
    assert mode == 'range'
    return {**renamed(step, img_scale='scale'), 'type': 'RandomResize'}


def modern_train_pipeline(steps: list[dict]) -> list[dict]:
    """Spell a training pipeline as mmdet 3 does, less what its models do themselves."""
    modern = []
    for step in steps:
        if step['type'] == 'AutoAugment':
            choices = [modern_train_pipeline(policy) for policy in step['policies']]
            modern.append({'type': 'RandomChoice', 'transforms': choices})
        elif step['type'] == 'Resize':
            modern.append(modern_resize(step))
        elif step['type'] == 'Collect':
            modern.append({'type': 'PackDetInputs'})
        elif step['type'] not in ('Normalize', 'Pad', 'DefaultFormatBundle'):
            modern.append(without(renamed(step, flip_ratio='prob'), 'denorm_bbox'))
    return modern


def modern_test_pipeline(steps: list[dict], labels: dict) -> list[dict]:
    """Spell a test pipeline as mmdet 3 does.

    Annotations are read for the metric; they change no prediction.
    """
    load, augment = steps
    assert (augment['type'], augment['flip']) == ('MultiScaleFlipAug', False)
    resize = {**augment['transforms'][0], 'scale': augment['img_scale']}
    return [load, resize, labels, {'type': 'PackDetInputs'}]


# Data set -> where mmdet 3 has it, as the published recipes have it.
ROOTS = {
    'CocoDataset': 'data/coco/',
    'CrowdHumanDataset': 'data/CrowdHuman/',
    'LVISV1Dataset': 'data/lvis_v1/',
    'OpenImagesDataset': 'data/OpenImages/',
    'VOCDataset': 'data/VOCdevkit/',
}
FILES = ('ann_file', 'label_file', 'hierarchy_file', 'meta_file')
FILES += ('image_level_ann_file',)


def modern_dataset(dataset: dict, pipeline: list[dict], **more: Any) -> dict:
    """Spell a data set as mmdet 3 does."""
    kind, root = dataset['type'], ROOTS[dataset['type']]

    def below_root(path: str) -> str:
        return path.removeprefix('./').removeprefix(root)

    folder = {'VOCDataset': 'sub_data_root'}.get(kind, 'img')
    files = {name: below_root(dataset[name]) for name in FILES if name in dataset}
    return {
        'type': kind,
        'data_root': root,
        **files,
        'data_prefix': {folder: below_root(dataset['img_prefix'])},
        'pipeline': pipeline,
        **more,
    }


def modern_train_set(train: dict) -> dict:
    """Spell the data set of a training as mmdet 3 does.

    mmdet 2 gave what wraps a data set no pipeline: one that is stated there is lost.
    """
    if train['type'] == 'RepeatDataset':
        wrapped = modern_train_set(train['dataset'])
        return {'type': 'RepeatDataset', 'times': train['times'], 'dataset': wrapped}
    if train['type'] == 'ClassBalancedDataset':
        wrapped = modern_train_set(train['dataset'])
        return {**train, 'dataset': wrapped}
    if isinstance(train['ann_file'], list):
        parts = zip(train['ann_file'], train['img_prefix'], strict=True)
        datasets = [
            modern_train_set({**train, 'ann_file': file, 'img_prefix': images})
            for file, images in parts
        ]
        # mmdet 3 has the year in what is to be the same.
        keys = ['dataset_type']
        return {'type': 'ConcatDataset', 'datasets': datasets, 'ignore_keys': keys}
    # mmdet 2 had that for a default, and the size in its code.
    is_filtered = train.get('filter_empty_gt', True)
    filter_cfg = {'filter_empty_gt': is_filtered, 'min_size': 32}
    steps = modern_train_pipeline(train['pipeline'])
    return modern_dataset(train, steps, filter_cfg=filter_cfg)


def innermost(dataset: dict) -> dict:
    """Return the data set that wrappers are around."""
    return innermost(dataset['dataset']) if 'dataset' in dataset else dataset


def modern_data(data: dict, is_by_epoch: bool) -> dict:
    """Spell the data settings as mmdet 3 does."""
    train, test = data['train'], data['test']
    labels = step_of(innermost(train)['pipeline'], 'LoadAnnotations')
    # mmdet 3's data set does what `denorm_bbox` asked for.
    labels = without(labels, 'denorm_bbox')
    test_set = modern_dataset(test, modern_test_pipeline(test['pipeline'], labels))
    sampler = {'type': 'DefaultSampler' if is_by_epoch else 'InfiniteSampler'}
    sampler['shuffle'] = True
    if 'train_dataloader' in data:
        by_class = data['train_dataloader']['class_aware_sampler']
        sampler = {'type': 'ClassAwareSampler', **by_class}
    return {
        'train_dataloader': {
            'batch_size': data['samples_per_gpu'],
            'num_workers': data['workers_per_gpu'],
            'sampler': sampler,
            # mmdet 2 did that by itself: upright and lying images in other batches.
            'batch_sampler': {'type': 'AspectRatioBatchSampler'},
            'dataset': modern_train_set(train),
        },
        'test_dataloader': {'dataset': test_set},
    }


def modern_metric(evaluation: dict, test: dict) -> dict:
    """Spell how a data set is measured as mmdet 3 does."""
    kind = test['type']
    if kind == 'CrowdHumanDataset':
        # The published number is the data set's own AP; the code measured COCO's.
        return {'type': 'CrowdHumanMetric', 'metric': ['AP', 'MR', 'JI']}
    if kind == 'VOCDataset':
        # mmdet 2 took eleven points for 2007, the area for all other years.
        mode = '11points' if 'VOC2007' in test['img_prefix'] else 'area'
        return {'type': 'VOCMetric', 'eval_mode': mode}
    if kind == 'OpenImagesDataset':
        # These were defaults of mmdet 2's data set, and of its evaluation.
        return {
            'type': 'OpenImagesMetric',
            'iou_thrs': 0.5,
            'ioa_thrs': 0.5,
            'use_group_of': True,
            'get_supercategory': True,
        }
    if kind == 'LVISV1Dataset':
        assert evaluation['metric'] == ['bbox']
        return {'type': 'LVISBoxMetric', 'classwise': evaluation['classwise']}
    return {
        'type': 'CocoMetric',
        'metric': evaluation['metric'],
        'classwise': evaluation['classwise'],
    }


def modern_schedule(lr_config: dict, max_epochs: int | None) -> list[dict]:
    """Spell a step schedule with linear warm-up as mmengine does."""
    assert (lr_config['policy'], lr_config['warmup']) == ('step', 'linear')
    warm_up = {
        'type': 'LinearLR',
        'start_factor': lr_config['warmup_ratio'],
        'begin': 0,
        'end': lr_config['warmup_iters'],
        'by_epoch': False,
    }
    if not lr_config['step']:
        return [warm_up]
    steps = {
        'type': 'MultiStepLR',
        'milestones': lr_config['step'],
        'gamma': 0.1,
        'begin': 0,
        'end': max_epochs,
        'by_epoch': True,
    }
    return [warm_up, steps]


def modern_ffn(layer: dict) -> dict:
    """Spell the feed-forward network of a transformer layer as mmdet 3 does."""
    short = {
        'embed_dims': 256,
        'feedforward_channels': layer['feedforward_channels'],
        'ffn_drop': layer['ffn_dropout'],
    }
    if 'ffn_cfgs' not in layer:
        return short
    # The long form says the same once more, and asks for less memory in training.
    ffn = without(layer['ffn_cfgs'], 'type', 'num_fcs', 'act_cfg', 'use_checkpoint')
    assert layer['ffn_cfgs']['type'] in ('FFN', 'EfficientFFN')
    assert layer['ffn_cfgs']['act_cfg'] == {'type': 'ReLU', 'inplace': True}
    assert (layer['ffn_cfgs']['num_fcs'], ffn) == (2, short)
    return {**short, 'use_checkpoint': layer['ffn_cfgs']['use_checkpoint']}


def modern_attention(attention: dict) -> dict:
    """Spell an attention as mmdet 3 does, with the levels that are a default."""
    if attention['type'] == 'MultiScaleDeformableAttention':
        attention = {'num_levels': 4, **attention}
    return without(attention, 'type')


def modern_dino(model: dict) -> dict:
    """Spell a DINO as mmdet 3 does: what was the head's is the detector's."""
    head = model['bbox_head']
    transformer = head['transformer']
    encoder, decoder = transformer['encoder'], transformer['decoder']
    self_attention = encoder['transformerlayers']['attn_cfgs']
    attentions = decoder['transformerlayers']['attn_cfgs']
    assert transformer['two_stage_num_proposals'] == head['num_query']
    denoising, costs = head['dn_cfg'], model['train_cfg']['assigner']
    moved = ('dn_cfg', 'transformer', 'positional_encoding')
    moved += ('num_query', 'as_two_stage', 'with_box_refine')
    unused = ('in_channels',)
    return {
        'type': {'DINO': 'InternImageDINO', 'CBDINO': 'CBDINO'}[model['type']],
        'backbone': model['backbone'],
        'neck': model['neck'],
        'num_queries': head['num_query'],
        'as_two_stage': head['as_two_stage'],
        'with_box_refine': head['with_box_refine'],
        'encoder': {
            'num_layers': encoder['num_layers'],
            'layer_cfg': {
                'self_attn_cfg': modern_attention(self_attention),
                'ffn_cfg': modern_ffn(encoder['transformerlayers']),
            },
        },
        'decoder': {
            'num_layers': decoder['num_layers'],
            'return_intermediate': decoder['return_intermediate'],
            'layer_cfg': {
                'self_attn_cfg': modern_attention(attentions[0]),
                'cross_attn_cfg': modern_attention(attentions[1]),
                'ffn_cfg': modern_ffn(decoder['transformerlayers']),
            },
            'post_norm_cfg': None,
        },
        'positional_encoding': {
            **without(head['positional_encoding'], 'type'),
            'offset': 0.0,  # a default in mmdet 2
        },
        'dn_cfg': {
            'label_noise_scale': denoising['noise_scale']['label'],
            'box_noise_scale': denoising['noise_scale']['box'],
            'group_cfg': denoising['group_cfg'],
        },
        'bbox_head': without(head, *moved, *unused),
        'train_cfg': {
            **model['train_cfg'],
            'assigner': {
                'type': costs['type'],
                'match_costs': [
                    costs[name] for name in ('cls_cost', 'reg_cost', 'iou_cost')
                ],
            },
        },
        'test_cfg': model['test_cfg'],
    }


def modern_model(model: dict, train_pipeline: list[dict]) -> dict:
    """Spell a model as mmdet 3 does: it normalises and pads its images itself."""
    norm = step_of(train_pipeline, 'Normalize')
    preprocessor = {
        'type': 'DetDataPreprocessor',
        'mean': norm['mean'],
        'std': norm['std'],
        'bgr_to_rgb': norm['to_rgb'],
        'pad_size_divisor': step_of(train_pipeline, 'Pad')['size_divisor'],
    }
    if step_of(train_pipeline, 'LoadAnnotations').get('with_mask'):
        preprocessor['pad_mask'] = True
    if isinstance(model['neck'], list):
        (neck,) = model['neck']
        model = {**model, 'neck': neck}
    if 'DINO' in model['type']:
        model = modern_dino(model)
    backbone = with_defaults(without(model['backbone'], 'core_op'))
    return {**model, 'backbone': backbone, 'data_preprocessor': preprocessor}


def modern_optim_wrapper(recipe: dict) -> dict:
    """Spell an optimizer as mmengine does."""
    optimizer = without(recipe['optimizer'], 'constructor', 'paramwise_cfg')
    modern = {
        'type': 'OptimWrapper',
        'optimizer': optimizer,
        'constructor': {
            'CustomLayerDecayOptimizerConstructor': 'LayerDecayOptimWrapperConstructor',
            None: 'DefaultOptimWrapperConstructor',
        }[recipe['optimizer'].get('constructor')],
        # Ours asks the model for the depths.
        'paramwise_cfg': without(
            recipe['optimizer']['paramwise_cfg'], 'num_layers', 'depths'
        ),
    }
    if clip := recipe['optimizer_config']['grad_clip']:
        modern['clip_grad'] = clip
    return modern


def modern_hook(hook: dict) -> dict:
    """Spell a hook as mmengine does."""
    if hook['type'] != 'ExpMomentumEMAHook':
        return hook
    assert hook['resume_from'] is None
    return {
        'type': 'EMAHook',
        'ema_type': 'ExpMomentumEMA',
        'momentum': hook['momentum'],
        'update_buffers': True,  # what `skip_buffers`, not set, left to do
        'priority': hook['priority'],
    }


def modern_recipe(recipe: dict) -> dict:
    """Spell a published detection recipe as mmdet 3 does."""
    runner, data, evaluation = (recipe[key] for key in ('runner', 'data', 'evaluation'))
    is_by_epoch = runner['type'] == 'EpochBasedRunner'
    loop = {'val_interval': evaluation.get('interval', 1)}
    checkpoint = {'save_last': True, **recipe['checkpoint_config']}
    if is_by_epoch:
        loop |= {'type': 'EpochBasedTrainLoop', 'max_epochs': runner['max_epochs']}
    else:
        loop |= {'type': 'IterBasedTrainLoop', 'max_iters': runner['max_iters']}
        checkpoint['by_epoch'] = False
    metrics = modern_metric(evaluation, data['test'])
    return {
        'model': modern_model(recipe['model'], innermost(data['train'])['pipeline']),
        'optim_wrapper': modern_optim_wrapper(recipe),
        'param_scheduler': modern_schedule(
            recipe['lr_config'], runner.get('max_epochs')
        ),
        'train_cfg': loop,
        **modern_data(data, is_by_epoch),
        'val_evaluator': metrics,
        'test_evaluator': metrics,
        'default_hooks': {
            'checkpoint': {
                'type': 'WholeCheckpointHook',
                'save_best': evaluation.get('save_best'),
                **checkpoint,
            }
        },
        'custom_hooks': [modern_hook(hook) for hook in recipe['custom_hooks']],
        'load_from': recipe['load_from'],
    }
