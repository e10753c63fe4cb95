# SPDX-License-Identifier: Apache-2.0
"""Settings of the published classification code, in the words of mmpretrain.

The published settings are those of ``classification/config.py`` and ``main.py`` in
OpenGVLab/InternImage@31c962d. An assertion says of a setting that it has one value in
all published recipes, which the translation relies on.
"""

import re

from tests.configs.comparison import with_defaults

IMAGES_PER_LR = 512  # a published learning rate is for so many images


def merge(settings: dict, changes: dict) -> dict:
    """Return the settings with the changes, key by key."""
    merged = dict(settings)
    for key, value in changes.items():
        is_nested = isinstance(value, dict) and key in settings
        merged[key] = merge(settings[key], value) if is_nested else value
    return merged


def digits(value: float) -> float:
    """Drop what a calculation of our own has added to a number of few digits."""
    return float(f'{value:.9g}')


def modern_backbone(model: dict, train: dict) -> dict:
    levels = (2, 3) if model['INTERN_IMAGE']['USE_CLIP_PROJECTOR'] else (3,)
    arch = {
        key.lower(): value
        for key, value in model['INTERN_IMAGE'].items()
        if key not in ('CORE_OP', 'USE_CLIP_PROJECTOR')
    }
    return with_defaults(
        {
            'type': 'InternImage',
            **arch,
            'init_cfg': None,
            'out_indices': levels,
            'drop_path_rate': model['DROP_PATH_RATE'],
            'with_cp': train['USE_CHECKPOINT'],
        }
    )


def modern_model(settings: dict) -> dict:
    """Spell a published model as mmpretrain does."""
    model, aug = settings['MODEL'], settings['AUG']
    last = 8 * model['INTERN_IMAGE']['CHANNELS']
    neck = {'type': 'ConvPoolNeck', 'in_channels': last, 'out_channels': 3 * last // 2}
    if model['INTERN_IMAGE']['USE_CLIP_PROJECTOR']:
        neck = {'type': 'AttentionPoolNeck', 'in_channels': [last // 2, last]}
    # One of the two for each batch, with equal chances.
    assert (aug['MIXUP_MODE'], aug['MIXUP_PROB']) == ('batch', 1.0)
    assert (aug['MIXUP_SWITCH_PROB'], aug['CUTMIX_MINMAX']) == (0.5, None)
    assert bool(aug['MIXUP']) == bool(aug['CUTMIX'])
    mixes = [
        {'type': 'Mixup', 'alpha': aug['MIXUP']},
        {'type': 'CutMix', 'alpha': aug['CUTMIX']},
    ]
    modern = {
        'type': 'ImageClassifier',
        'backbone': modern_backbone(model, settings['TRAIN']),
        'neck': neck,
        'head': {
            'type': 'ImageNet1kHead' if model['PRETRAINED'] else 'LinearClsHead',
            'num_classes': model['NUM_CLASSES'],
            'in_channels': neck.get('out_channels', 768),
            'loss': {
                'type': 'LabelSmoothLoss',
                'label_smooth_val': model['LABEL_SMOOTHING'],
                'mode': 'original',
            },
            'init_cfg': {'type': 'TruncNormal', 'layer': 'Linear', 'std': 0.02},
        },
        'train_cfg': {'augments': mixes} if aug['MIXUP'] else None,
    }
    if model['PRETRAINED']:
        host = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/'
        checkpoint = host + model['PRETRAINED'].removeprefix('pretrained/')
        modern['init_cfg'] = {'type': 'Pretrained', 'checkpoint': checkpoint}
    return modern


def modern_train_pipeline(size: int, aug: dict) -> list[dict]:
    """Spell timm's training pipeline as mmpretrain does.

    timm jitters colours only without a policy: COLOR_JITTER has no effect.
    """
    policy = re.fullmatch(r'rand-m(\d+)-mstd([\d.]+)-inc1', aug['AUTO_AUGMENT'])
    mean, std = ([round(255 * v, 3) for v in aug[key][::-1]] for key in ('MEAN', 'STD'))
    steps = [
        {'type': 'LoadImageFromFile'},
        {
            'type': 'RandomResizedCrop',
            'scale': size,
            'backend': 'pillow',
            'interpolation': 'bicubic',
        },
        {'type': 'RandomFlip', 'prob': 0.5, 'direction': 'horizontal'},
        {
            'type': 'RandAugment',
            'policies': 'timm_increasing',
            'num_policies': 2,
            'total_level': 10,
            'magnitude_level': int(policy[1]),
            'magnitude_std': float(policy[2]),
            'hparams': {
                'pad_val': [round(value) for value in mean],
                'interpolation': 'bicubic',
            },
        },
    ]
    if aug['REPROB']:
        assert (aug['REMODE'], aug['RECOUNT']) == ('pixel', 1)
        erasing = {
            'type': 'RandomErasing',
            'erase_prob': aug['REPROB'],
            'mode': 'rand',
            'min_area_ratio': 0.02,
            'max_area_ratio': 1 / 3,
            'fill_color': mean,
            'fill_std': std,
        }
        steps.append(erasing)
    return [*steps, {'type': 'PackInputs'}]


def modern_test_pipeline(size: int) -> list[dict]:
    return [
        {'type': 'LoadImageFromFile'},
        {
            'type': 'ResizeEdge',
            'scale': size,
            'edge': 'short',
            'backend': 'pillow',
            'interpolation': 'bicubic',
        },
        {'type': 'CenterCrop', 'crop_size': size},
        {'type': 'PackInputs'},
    ]


def modern_data(settings: dict) -> dict:
    """Spell published data settings as mmpretrain does."""
    data, aug = settings['DATA'], settings['AUG']
    assert (data['INTERPOLATION'], settings['TEST']['CROP']) == ('bicubic', True)
    loader = {'batch_size': data['BATCH_SIZE'], 'num_workers': data['NUM_WORKERS']}
    dataset = {
        'imagenet': {'type': 'ImageNet', 'data_root': 'data/imagenet'},
        'imagenet22K': {'type': 'ImageNet21k', 'data_root': 'data/imagenet21k'},
    }[data['DATASET']]
    shuffle = {'type': 'DefaultSampler', 'shuffle': True}
    if data['IMG_ON_MEMORY']:
        shuffle['type'] = 'NodeDistributedSampler'
    train_pipeline = modern_train_pipeline(data['IMG_SIZE'], aug)
    val_loader = metric = None
    if data['DATASET'] == 'imagenet':
        test_pipeline = modern_test_pipeline(data['IMG_SIZE'])
        val_dataset = {**dataset, 'split': 'val', 'pipeline': test_pipeline}
        sampler = {'type': 'DefaultSampler'}
        val_loader = {**loader, 'sampler': sampler, 'dataset': val_dataset}
        metric = {'type': 'Accuracy', 'topk': [1, 5]}
    return {
        'data_preprocessor': {
            'num_classes': settings['MODEL']['NUM_CLASSES'],
            'mean': [round(255 * value, 3) for value in aug['MEAN']],
            'std': [round(255 * value, 3) for value in aug['STD']],
            'to_rgb': True,
        },
        'train_dataloader': {
            **loader,
            'drop_last': True,
            'sampler': shuffle,
            'dataset': {**dataset, 'split': 'train', 'pipeline': train_pipeline},
        },
        'val_dataloader': val_loader,
        'test_dataloader': val_loader,
        'val_evaluator': metric,
        'test_evaluator': metric,
    }


def modern_optimizer(settings: dict, train: dict) -> dict:
    """Spell a published optimizer as mmengine does."""
    optimizer, layer_decay = train['OPTIMIZER'], train['LR_LAYER_DECAY']
    num_images = settings['NUM_GPUS'] * settings['DATA']['BATCH_SIZE']
    types = {'adamw': 'AdamW'}
    paramwise = {
        'layer_decay_rate': train['LR_LAYER_DECAY_RATIO'] if layer_decay else 1
    }
    if layer_decay:  # without it, DCN_LR_MUL is not looked at
        paramwise['dcn_lr_mult'] = optimizer['DCN_LR_MUL']
    modern = {
        'optimizer': {
            'type': types[optimizer['NAME']],
            'lr': digits(train['BASE_LR'] * num_images / IMAGES_PER_LR),
            'weight_decay': train['WEIGHT_DECAY'],
            'eps': optimizer['EPS'],
            'betas': optimizer['BETAS'],
        },
        'clip_grad': {'max_norm': train['CLIP_GRAD']},
        'constructor': 'LayerDecayOptimWrapperConstructor',
        'paramwise_cfg': paramwise,
    }
    if optimizer['USE_ZERO']:
        modern['optimizer']['type'] = 'ZeroRedundancyOptimizer'
    if settings['AMP_OPT_LEVEL'] != 'O0':
        modern['type'] = 'AmpOptimWrapper'
    return modern


def modern_schedule(train: dict) -> list[dict]:
    """Spell a published schedule as mmengine does."""
    assert train['LR_SCHEDULER']['NAME'] == 'cosine'
    by_iteration = {'by_epoch': True, 'convert_to_iter_based': True}
    return [
        {
            'type': 'LinearLR',
            'start_factor': digits(train['WARMUP_LR'] / train['BASE_LR']),
            'end': train['WARMUP_EPOCHS'],
            **by_iteration,
        },
        {
            'type': 'CosineAnnealingLR',
            'eta_min_ratio': digits(train['MIN_LR'] / train['BASE_LR']),
            **by_iteration,
        },
    ]


def modern_recipe(settings: dict) -> dict:
    """Spell a published classification recipe as mmpretrain does."""
    train = settings['TRAIN']
    has_val = settings['DATA']['DATASET'] == 'imagenet'
    average = {
        'type': 'EMAHook',
        'momentum': digits(1 - train['EMA']['DECAY']),
        'update_buffers': True,
        'priority': 'ABOVE_NORMAL',
    }
    return {
        'model': modern_model(settings),
        **modern_data(settings),
        'optim_wrapper': modern_optimizer(settings, train),
        'param_scheduler': modern_schedule(train),
        'train_cfg': {
            'by_epoch': True,
            'max_epochs': train['EPOCHS'],
            'val_interval': settings['EVAL_FREQ'],
        },
        'custom_hooks': [average] if train['EMA']['ENABLE'] else [],
        'default_hooks': {
            'checkpoint': {
                'type': 'WholeCheckpointHook',
                'interval': settings['SAVE_FREQ'],
                'max_keep_ckpts': 1,
                'save_best': 'accuracy/top1' if has_val else None,
            }
        },
        'env_cfg': {'cudnn_benchmark': True},
        'randomness': {'seed': settings['SEED'], 'diff_rank_seed': True},
        'auto_scale_lr': {
            'base_batch_size': settings['NUM_GPUS'] * settings['DATA']['BATCH_SIZE']
        },
    }
