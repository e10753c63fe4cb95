# SPDX-License-Identifier: Apache-2.0
"""Options that make the published models small enough to train in seconds.

The settings of the configs stay, the sizes shrink. Lists are not replaced but reached
into, as the command line does.
"""

from typing import Any

Options = dict[str, Any]

BACKBONE: Options = {
    'load_from': None,
    'model.backbone.init_cfg': None,
    'model.backbone.arch': {
        '_delete_': True,
        'channels': 16,
        'depths': [1, 1, 1, 1],
        'groups': [1, 2, 4, 8],
    },
}
LOADERS: Options = {
    'train_dataloader.batch_size': 2,
    **{
        f'{split}_dataloader.{name}': value
        for split in ('train', 'val', 'test')
        for name, value in {'num_workers': 0, 'persistent_workers': False}.items()
    },
}
DATA: Options = {
    **LOADERS,
    'val_dataloader.dataset.pipeline.1.scale': (128, 96),
    'test_dataloader.dataset.pipeline.1.scale': (128, 96),
}
RCNN: Options = {
    **BACKBONE,
    **DATA,
    'train_dataloader.dataset.pipeline.2.scale': (128, 96),
    'model.neck.in_channels': [16, 32, 64, 128],
    'model.train_cfg.rpn_proposal.max_per_img': 50,
    'model.test_cfg.rpn.max_per_img': 50,
    'model.test_cfg.rcnn.max_per_img': 5,
    'model.test_cfg.rcnn.score_thr': 0,  # an untrained model is sure of nothing
}
FASTER_RCNN: Options = {
    **RCNN,
    'model.roi_head.bbox_head.fc_out_channels': 32,
    'model.train_cfg.rcnn.sampler.num': 16,
}
MASK_RCNN: Options = {**FASTER_RCNN, 'model.roi_head.mask_head.num_convs': 1}
CASCADE_MASK_RCNN: Options = {
    **RCNN,
    **{
        f'model.roi_head.bbox_head.{stage}.{name}': value
        for stage in range(3)
        for name, value in {'fc_out_channels': 32, 'num_shared_convs': 1}.items()
    },
    'model.roi_head.mask_head.num_convs': 1,
    **{f'model.train_cfg.rcnn.{stage}.sampler.num': 16 for stage in range(3)},
}
DINO: Options = {
    **BACKBONE,
    **DATA,
    'model.neck.in_channels': [32, 64, 128],
    'model.num_queries': 20,
    'model.encoder.num_layers': 1,
    'model.decoder.num_layers': 2,
    'model.dn_cfg.group_cfg.num_dn_queries': 10,
    'model.test_cfg.max_per_img': 5,
}
# Where DINO trains at random sizes: after Objects365.
LARGE_DINO: Options = {
    **DINO,
    'train_dataloader.dataset.pipeline.3.scale': [(128, 96), (160, 96)],
    'tta_pipeline.1.transforms.0.0.scale': (128, 96),
    'tta_pipeline.1.transforms.0.1.scale': (128, 64),
    'tta_pipeline.1.transforms.0.2.scale': (160, 120),
}

SEGMENTOR: Options = {
    **BACKBONE,
    **LOADERS,
    'model.decode_head.in_channels': [16, 32, 64, 128],
    'model.data_preprocessor.size': (64, 64),
    'train_dataloader.dataset.pipeline.2.scale': (256, 64),
    'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
    'val_dataloader.dataset.pipeline.1.scale': (256, 64),
    'test_dataloader.dataset.pipeline.1.scale': (256, 64),
    'tta_pipeline.1.transforms.0.0.scale': (128, 32),
    'tta_pipeline.1.transforms.0.1.scale': (192, 48),
    'tta_pipeline.1.transforms.0.2.scale': (256, 64),
}
UPERNET: Options = {
    **SEGMENTOR,
    'model.decode_head.channels': 16,
    'model.auxiliary_head.in_channels': 64,
    'model.auxiliary_head.channels': 16,
}


def views(number: int, smallest: int = 32) -> Options:
    """Give so many augmented views small sizes, from ``smallest`` in steps of 16."""
    return {
        f'tta_pipeline.1.transforms.0.{view}.scale': (4 * short, short)
        for view, short in enumerate(range(smallest, smallest + 16 * number, 16))
    }


# Where there are more sizes of augmented views than the three of L.
SIX_VIEWS = views(6)
_WIDTH = 32
_ATTENTION = {'embed_dims': _WIDTH, 'num_heads': 2}
_FFN = {'embed_dims': _WIDTH, 'feedforward_channels': 2 * _WIDTH}
MASK2FORMER_HEAD: Options = {
    f'model.decode_head.{name}': value
    for name, value in {
        'feat_channels': _WIDTH,
        'out_channels': _WIDTH,
        'num_queries': 10,
        'positional_encoding.num_feats': _WIDTH // 2,
        'pixel_decoder.positional_encoding.num_feats': _WIDTH // 2,
        'pixel_decoder.encoder.num_layers': 1,
        'pixel_decoder.encoder.layer_cfg.self_attn_cfg': _ATTENTION,
        'pixel_decoder.encoder.layer_cfg.ffn_cfg': _FFN,
        'transformer_decoder.num_layers': 2,
        'transformer_decoder.layer_cfg.self_attn_cfg': _ATTENTION,
        'transformer_decoder.layer_cfg.cross_attn_cfg': _ATTENTION,
        'transformer_decoder.layer_cfg.ffn_cfg': _FFN,
        'train_cfg.num_points': 256,
    }.items()
}
MASK2FORMER: Options = {**SEGMENTOR, **views(5), **MASK2FORMER_HEAD}


def as_arguments(options: Options) -> list[str]:
    """Return options as ``--cfg-options`` takes them."""
    arguments = []
    for name, value in options.items():
        if isinstance(value, dict):
            inner = {f'{name}.{key}': item for key, item in value.items()}
            arguments += as_arguments(inner)
        else:
            arguments.append(f'{name}={value}'.replace(' ', ''))
    return arguments
