# SPDX-License-Identifier: Apache-2.0
"""Look at the data sets of a config, all of them, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from . import classification, detection, segmentation
from .pictures import is_remote
from .report import DataError, Report, Rule, Tally, raise_faults
from .settings import Settings, Use

# What looks at the data sets of a library, by the library's name.
_LOOKERS = {
    'mmdet': detection,
    'mmpretrain': classification,
    'mmseg': segmentation,
}
# Values of LoadImageFromFile: others leave images as they are stored.
_TURNING_BACKENDS = ('cv2', 'pillow')
_TURNING_COLOR_TYPES = ('color', 'grayscale')

BUILDABLE = Rule('a data set that can be built')
THERE = Rule('the files and folders of the data set')
MEASURED_FILE = Rule(
    'an evaluator that measures with the annotation file of its data set',
    'set ann_file of the evaluator too',
)
WHOLE_BATCH = Rule(
    'at least one batch', 'take a smaller batch_size, or drop_last=False'
)
SAME_LABELS = Rule(
    'the same classes, in the same order, in training and validation',
    'a label is the place of a class',
)


def check_datasets(
    config: Config, splits: Sequence[str] = ('train', 'val')
) -> list[Report]:
    """Look at all annotations that a config trains or tests with.

    The data set classes of mmdet, mmseg and mmpretrain read them, as they will in the
    training, and beside that the files are searched for what these classes drop or
    mistake without a word. Annotations are looked at wholly; image files are opened if
    there are not too many. Nothing is changed.

    ``data_check`` of the config may be a dict of :class:`Settings`, or False.

    Args:
        config: The config. Its ``custom_imports`` have been imported.
        splits: Which of ``train``, ``val``, ``test`` to look at, where it has them.

    Returns:
        What was found, for each data set; ``str`` gives lines to show.

    Raises:
        DataError: Data that would stop the training or that it would learn nothing or
            something wrong from; one line for each kind, with file and names.
        ValueError: An unknown setting in ``data_check``.
    """
    data_check = config.get('data_check', {})
    if data_check is False:
        return []
    settings = Settings.from_config(data_check or {})
    reports: list[Report] = []
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        for split in splits:
            loader = config.get(f'{split}_dataloader')
            evaluators = _as_list(config.get(f'{split}_evaluator'))
            if loader:
                for dataset in _unwrap(loader['dataset']):
                    report = _look(dataset, split, evaluators, settings)
                    if dataset is loader['dataset']:
                        _count_batches(loader, report)
                    reports.append(report)
    _compare(reports)
    raise_faults(reports)
    return reports


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _unwrap(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Find the data sets in wrappers, such as ``RepeatDataset``."""
    inner = _as_list(dataset.get('dataset')) + _as_list(dataset.get('datasets'))
    if not inner:
        yield dataset
    for item in inner:
        yield from _unwrap(item)


def _look(
    config: Mapping[str, Any],
    split: str,
    evaluators: Sequence[Mapping[str, Any]],
    settings: Settings,
) -> Report:
    folder, file = config.get('data_root') or '', config.get('ann_file') or ''
    report = Report(split, f'{folder}{file}' or str(config['type']))
    try:
        dataset = DATASETS.build({**config, 'pipeline': [], 'lazy_init': True})
    except Exception as error:
        report.fault(BUILDABLE, _why_not_built(config, error))
        return report
    looker = _find_looker(dataset)
    if looker is None:
        for path in _absent(config):
            report.fault(THERE, f'no {path}')
        report.summary.append(
            f'not looked at: nothing here knows how {type(dataset).__name__} reads'
        )
        return report
    report.source = _source(dataset) or report.source
    try:
        looker.look(dataset, _find_use(config, split, evaluators), settings, report)
    except DataError as error:
        # Of a file that cannot be read at all; it is named.
        raise DataError(str(error)) from None
    if split != 'train':
        _check_evaluators(evaluators, dataset, report)
    if not report.faults:
        absent = [name for name, count in report.counts.items() if not count]
        if absent and split == 'train':
            report.warnings['classes that nothing is labelled with'] = Tally(
                len(absent), absent[:3]
            )
    return report


def _absent(config: Mapping[str, Any]) -> list[str]:
    """Return the files and folders that a data set names and that are not there."""
    named = list((config.get('data_prefix') or {}).values())
    named += [value for name, value in config.items() if name.endswith('_file')]
    root = config.get('data_root') or ''
    paths = [os.path.join(root, name) for name in named if name and isinstance(name, str)]
    return [path for path in paths if not is_remote(path) and not os.path.exists(path)]


def _why_not_built(config: Mapping[str, Any], error: Exception) -> str:
    """Return what a data set says, and which of its files is not there.

    Some assert that theirs is, in no words.
    """
    told = [str(error), *(f'no {path}' for path in _absent(config))]
    return f'{type(error).__name__}: {"; ".join(filter(None, told))}'


def _find_looker(dataset: Any) -> Any:
    """Return the module that can look at a data set, or one derived from it."""
    roots = [base.__module__.partition('.')[0] for base in type(dataset).__mro__]
    found = (_LOOKERS[root] for root in roots if root in _LOOKERS)
    looker: Any = next(found, None)
    return looker if looker and looker.can_look(dataset) else None


def _source(dataset: Any) -> str:
    """Return the annotation file of a data set or, without one, its folder."""
    prefix = dataset.data_prefix
    folder = prefix.get('img_path') or prefix.get('img') or dataset.data_root
    file = dataset.ann_file
    return str(file if file and file != dataset.data_root else folder or '')


def _find_use(
    config: Mapping[str, Any], split: str, evaluators: Sequence[Mapping[str, Any]]
) -> Use:
    steps = {
        str(step['type']).rpartition('.')[2]: step
        for step in config.get('pipeline') or ()
        if isinstance(step, Mapping)
    }
    image = steps.get('LoadImageFromFile', {})
    labels = steps.get('LoadAnnotations')
    measured = [e for e in evaluators if not e.get('format_only')]
    coco = [e for e in measured if str(e['type']).endswith('CocoMetric')]
    metrics = [metric for e in coco for metric in _as_list(e.get('metric', 'bbox'))]
    trains = split == 'train'
    with_mask = bool(labels and labels.get('with_mask'))
    return Use(
        objects=labels is not None if trains else bool(measured),
        masks=with_mask if trains else 'segm' in metrics,
        pycocotools=bool(coco) and not trains,
        heeds_orientation=image.get('imdecode_backend', 'cv2') in _TURNING_BACKENDS
        and image.get('color_type', 'color') in _TURNING_COLOR_TYPES,
        load_annotations=TRANSFORMS.build(labels) if labels else None,
    )


def _check_evaluators(
    evaluators: Sequence[Mapping[str, Any]], dataset: Any, report: Report
) -> None:
    """See that an evaluator has the file; another one fails after the training."""
    for evaluator in evaluators:
        file, own = evaluator.get('ann_file'), dataset.ann_file
        if not file or not own or is_remote(file) or is_remote(own):
            continue
        if not os.path.exists(file):
            report.fault(MEASURED_FILE, f'{file}, which does not exist')
        elif os.path.exists(own) and not os.path.samefile(file, own):
            report.warn('the evaluator measures with another file', file)


def _count_batches(loader: Mapping[str, Any], report: Report) -> None:
    """See that there is a whole batch where the loader drops the last, smaller one."""
    size, number = loader.get('batch_size', 1), report.num_images
    endless = 'Infinite' in str(loader.get('sampler', {}).get('type'))
    if loader.get('drop_last') and not endless and 0 < number < size:
        report.fault(
            WHOLE_BATCH, f'{number} images for batches of {size}, and drop_last=True'
        )


def _compare(reports: Sequence[Report]) -> None:
    """See that a label means the same in all splits."""
    labelled = [report for report in reports if report.labels]
    for report in labelled[1:]:
        first = labelled[0]
        if report.labels == first.labels:
            continue
        odd = sorted(set(report.labels) ^ set(first.labels))
        difference = f'not in both: {", ".join(odd[:5])}' if odd else 'in another order'
        report.fault(
            SAME_LABELS,
            f'{len(report.labels)} here and {len(first.labels)} in {first.source}, '
            f'{difference}',
        )
