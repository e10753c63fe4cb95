# SPDX-License-Identifier: Apache-2.0
"""The projects of segmentation: their data sets, and training and testing on them.

On generated images in the official folders, with the settings of the configs and small
models; and on single records of the real data sets.
"""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from internimage.data import DataError, check_datasets
from tests.our_configs import read_config
from tests.paths import ROOT
from tests.tools.programs import run_tool
from tests.tools.small_models import (
    BACKBONE,
    LOADERS,
    MASK2FORMER_HEAD,
    Options,
    as_arguments,
)

pytest.importorskip('mmseg')

SHAPE = (48, 64)  # of the images
BRIGHT = (slice(10, 38), slice(8, 50))
NUM_TRAINED, NUM_TESTED = 3, 2
SIDE = 64


def write_pairs(
    images: str, labels: str, background: int, bright: int, number: int = NUM_TRAINED
) -> None:
    """Write dark images with something bright, and their labels.

    Args:
        images: Path of an image, with ``{}`` for its number.
        labels: Path of its labels.
        background: Label of what is dark.
        bright: Label of what is bright.
        number: How many.
    """
    rng = np.random.default_rng(0)
    for index in range(number):
        image = rng.integers(0, 99, (*SHAPE, 3), dtype=np.uint8)
        label = np.full(SHAPE, background, np.uint8)
        image[BRIGHT], label[BRIGHT] = 255, bright
        for path, pixels in ((images, image), (labels, label)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(path.format(index), pixels)


def write_cityscapes_val(data: Path) -> None:
    """Write a city with roads (0) and cars (13)."""
    name = 'val/ulm/ulm_00000{}_000019'
    root = data / 'cityscapes'
    write_pairs(
        f'{root}/leftImg8bit/{name}_leftImg8bit.png',
        f'{root}/gtFine/{name}_gtFine_labelTrainIds.png',
        0,
        13,
        NUM_TESTED,
    )


def write_cityscapes(data: Path) -> None:
    """Write fine labels, and refined ones: there a road is 7 and a car 26."""
    write_cityscapes_val(data)
    root, name = data / 'cityscapes', 'train/aachen/aachen_00000{}_000019'
    write_pairs(
        f'{root}/leftImg8bit/{name}_leftImg8bit.png',
        f'{root}/gtFine/{name}_gtFine_labelTrainIds.png',
        0,
        13,
    )
    name = 'train_extra/bayreuth/bayreuth_00000{}_000019_leftImg8bit.png'
    write_pairs(f'{root}/leftImg8bit/{name}', f'{root}/refinement_final/{name}', 7, 26)


def write_mapillary(data: Path) -> None:
    """Write roads (13) and cars (55); the tests are on Cityscapes."""
    write_cityscapes_val(data)
    root = data / 'mapillary'
    for split in ('training', 'validation'):
        write_pairs(
            f'{root}/{split}/images/{{}}.jpg',
            f'{root}/{split}/v1.2/labels/{{}}.png',
            13,
            55,
        )


def write_coco_stuff10k(data: Path) -> None:
    """Write persons (1) and what is the last class (171)."""
    root = data / 'coco_stuff10k'
    for split, number in (('train2014', NUM_TRAINED), ('test2014', NUM_TESTED)):
        name = f'{split}/COCO_train2014_00000000000{{}}'
        write_pairs(
            f'{root}/images/{name}.jpg',
            f'{root}/annotations/{name}_labelTrainIds.png',
            1,
            171,
            number,
        )


def write_lists(root: Path, folder: str, names: dict[str, list[str]]) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for split, listed in names.items():
        (root / folder / f'{split}.txt').write_text(''.join(f'{n}\n' for n in listed))


def write_pascal_context(data: Path) -> None:
    """Write aeroplanes (1) and wood (59)."""
    root = data / 'VOCdevkit' / 'VOC2010'
    write_pairs(
        f'{root}/JPEGImages/2008_00000{{}}.jpg',
        f'{root}/SegmentationClassContext/2008_00000{{}}.png',
        1,
        59,
    )
    names = [f'2008_00000{index}' for index in range(NUM_TRAINED)]
    splits = {'train': names, 'val': names[:NUM_TESTED]}
    write_lists(root, 'ImageSets/SegmentationContext', splits)


def write_nyu_depth_v2(data: Path) -> None:
    """Write walls (1) and other props (40)."""
    root = data / 'nyu_depth_v2'
    write_pairs(f'{root}/image/{{}}.png', f'{root}/label40/{{}}.png', 1, 40)
    write_lists(root, '.', {'train': ['0', '1', '2'], 'test': ['0', '1']})


def sizes(config: str) -> Options:
    """Return options that shrink the images of a config, and the views of tests."""
    settings = read_config(config)
    num_parts = len(settings.train_dataloader.dataset.get('datasets', []))
    parts = [f'datasets.{part}.' for part in range(num_parts)] or ['']
    num_views = len(settings.tta_pipeline[1].transforms[0])
    return {
        'model.data_preprocessor.size': (SIDE, SIDE),
        **{
            f'train_dataloader.dataset.{part}pipeline.{name}': value
            for part in parts
            for name, value in {
                '2.scale': (128, SIDE),
                '3.crop_size': (SIDE, SIDE),
            }.items()
        },
        **{
            f'{split}_dataloader.dataset.pipeline.1.scale': (128, SIDE)
            for split in ('val', 'test')
        },
        **{
            f'tta_pipeline.1.transforms.0.{view}.scale': (
                64 + 32 * view,
                32 + 16 * view,
            )
            for view in range(num_views)
        },
    }


SMALL: Options = {
    **BACKBONE,
    **LOADERS,
    'model.decode_head.in_channels': [16, 32, 64, 128],
}
SEGFORMER: Options = {**SMALL, 'model.decode_head.channels': 16}
MASK2FORMER: Options = {**SMALL, **MASK2FORMER_HEAD}
WINDOWS: Options = {
    'model.test_cfg.crop_size': (64, 64),
    'model.test_cfg.stride': (32, 32),
}


class Project(NamedTuple):
    """A config of a project, what makes it small, its data, and the classes in them."""

    config: str
    options: Options
    write_data: Callable[[Path], None]
    num_classes: int
    found: set[str]


STREETS = (19, {'road', 'car'})
PROJECTS = {
    'cityscapes': Project(
        'cityscapes/configs/segformer_internimage-l_8xb2-160k_mapillary-to-cityscapes-'
        '512x1024',
        SEGFORMER,
        write_cityscapes,
        *STREETS,
    ),
    'cityscapes-windows': Project(
        'cityscapes/configs/mask2former_internimage-h_8xb2-80k_mapillary-to-cityscapes-'
        '1024x1024',
        {**MASK2FORMER, **WINDOWS},
        write_cityscapes,
        *STREETS,
    ),
    'mapillary': Project(
        'mapillary/configs/segformer_internimage-xl_8xb2-80k_mapillary-512x1024',
        SEGFORMER,
        write_mapillary,
        *STREETS,
    ),
    'coco_stuff10k': Project(
        'coco_stuff10k/configs/mask2former_internimage-h_16xb1-40k_coco-stuff10k-'
        '512x512',
        MASK2FORMER,
        write_coco_stuff10k,
        171,
        {'person', 'wood'},
    ),
    'pascal_context': Project(
        'pascal_context/configs/mask2former_internimage-h_16xb1-40k_pascal-context-59-'
        '480x480',
        MASK2FORMER,
        write_pascal_context,
        59,
        {'aeroplane', 'wood'},
    ),
    'nyu_depth_v2': Project(
        'nyu_depth_v2/configs/mask2former_internimage-h_16xb1-40k_nyu-depth-v2-480x480',
        MASK2FORMER,
        write_nyu_depth_v2,
        40,
        {'wall', 'otherprop'},
    ),
}
every_project = pytest.mark.parametrize('name', PROJECTS)


def path_of(project: Project) -> str:
    return f'projects/{project.config}.py'


@pytest.mark.slow
@every_project
def test_train_and_test(name: str, tmp_path: Path):
    project = PROJECTS[name]
    project.write_data(tmp_path / 'data')
    config = str(ROOT / path_of(project))
    options = as_arguments({**project.options, **sizes(path_of(project))})
    length = [
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1',
    ]
    output = run_tool(
        'train',
        config,
        '--work-dir',
        'out',
        '--cfg-options',
        *options,
        *length,
        cwd=tmp_path,
    )
    assert 'Iter(train) [2/2]' in output
    for more in ([], ['--tta']):
        arguments = ['--work-dir', 'tested', *more, '--cfg-options', *options]
        output = run_tool('test', config, 'out/iter_2.pth', *arguments, cwd=tmp_path)
        assert f'Iter(test) [{NUM_TESTED}/{NUM_TESTED}]' in output
        assert found_classes(output) == (project.num_classes, project.found)


def found_classes(output: str) -> tuple[int, set[str]]:
    """Return how many classes mmseg's table has, and those with a label."""
    rows = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in output.splitlines()
        if line.startswith('|')
    ]
    accuracy = {name: value for name, _, value in rows if name != 'Class'}
    return len(accuracy), {name for name, value in accuracy.items() if value != 'nan'}


@every_project
def test_labels_of_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the files hold, the bright thing has the label of its class."""
    project = PROJECTS[name]
    project.write_data(tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    settings = read_config(path_of(project)).train_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(settings)
    num_parts = len(settings.get('datasets', [None]))
    assert len(dataset) == num_parts * NUM_TRAINED
    classes = dataset.metainfo['classes']
    assert len(classes) == project.num_classes
    load = (
        [part.pipeline.transforms[:2] for part in dataset.datasets]
        if num_parts > 1
        else [dataset.pipeline.transforms[:2]]
    )
    for index in range(len(dataset)):
        sample = dataset.get_data_info(index)
        for step in load[index // NUM_TRAINED]:
            sample = step(sample)
        labels = sample['gt_seg_map']
        (bright,) = np.unique(labels[BRIGHT])
        assert {classes[label] for label in np.unique(labels)} == project.found
        assert classes[bright] == list(classes)[max(np.unique(labels))]


@every_project
def test_data_that_are_not_there_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = read_config(path_of(PROJECTS[name]))
    datasets = config.train_dataloader.dataset
    for dataset in datasets.get('datasets', [datasets]):
        folder = Path(dataset.data_root, dataset.data_prefix.img_path)
        with pytest.raises(DataError, match=f'expected .*, got .* {folder}'):
            check_datasets(config)


def test_list_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_nyu_depth_v2(tmp_path / 'data')
    (tmp_path / 'data' / 'nyu_depth_v2' / 'test.txt').unlink()
    with pytest.raises(DataError, match=r'got .* data/nyu_depth_v2/test.txt'):
        check_datasets(read_config(path_of(PROJECTS['nyu_depth_v2'])))


def test_labels_of_another_kind_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As of who forgets to convert the fine labels of Cityscapes."""
    monkeypatch.chdir(tmp_path)
    write_cityscapes(tmp_path / 'data')
    files = list((tmp_path / 'data' / 'cityscapes' / 'gtFine').rglob('*.png'))
    for file in files:
        label_ids = cv2.imread(str(file), cv2.IMREAD_UNCHANGED) * 2 + 7
        cv2.imwrite(str(file), label_ids)
    with pytest.raises(DataError, match=r'expected indices from 0 to 18.*got 33 in'):
        check_datasets(read_config(path_of(PROJECTS['cityscapes'])))


def load(dataset: Any) -> dict[str, Any]:
    """Return the only sample of a data set, with its image and labels."""
    (sample,) = (dataset.get_data_info(index) for index in range(len(dataset)))
    for step in ('LoadImageFromFile', 'LoadAnnotations'):
        sample = TRANSFORMS.build({'type': f'mmseg.{step}'})(sample)
    assert sample['img'].shape[:2] == sample['gt_seg_map'].shape
    return sample


def test_refined_labels_are_read_as_fine_ones(shared_data: Path, tmp_path: Path):
    """A real image of Cityscapes, whose labels are there in both spellings."""
    source = shared_data / 'optional' / 'mmseg_fixtures' / 'pseudo_cityscapes_dataset'
    if not source.is_dir():
        pytest.skip(f'no data at {source}')
    (image,) = source.rglob('*_leftImg8bit.png')
    (label_ids,) = source.rglob('*_labelIds.png')
    for path, folder in ((image, 'images'), (label_ids, 'labels')):
        (tmp_path / folder / 'frankfurt').mkdir(parents=True)
        shutil.copy(path, tmp_path / folder / 'frankfurt' / image.name)
    read_config(path_of(PROJECTS['cityscapes']))  # finds the class
    fine = DATASETS.build(
        {
            'type': 'mmseg.CityscapesDataset',
            'data_prefix': {
                'img_path': f'{source}/leftImg8bit',
                'seg_map_path': f'{source}/gtFine',
            },
        }
    )
    refined = DATASETS.build(
        {
            'type': 'mmseg.CityscapesRefinedLabels',
            'data_root': str(tmp_path),
            'data_prefix': {'img_path': 'images', 'seg_map_path': 'labels'},
        }
    )
    expected, labels = (load(dataset)['gt_seg_map'] for dataset in (fine, refined))
    assert len(np.unique(labels)) > 10
    # Whoever made the image smaller chose other neighbours at the borders.
    assert (labels != expected).mean() < 0.003
    for label in np.unique(labels):
        counts = np.bincount(expected[labels == label])
        assert counts.argmax() == label


def test_mapillary_is_read_in_the_classes_of_cityscapes(shared_data: Path):
    """A real image of Mapillary Vistas 1.2."""
    source = shared_data / 'optional' / 'mmseg_fixtures' / 'pseudo_mapillary_dataset'
    if not source.is_dir():
        pytest.skip(f'no data at {source}')
    read_config(path_of(PROJECTS['mapillary']))  # finds the class
    folders = {'img_path': f'{source}/images', 'seg_map_path': f'{source}/v1.2'}
    original, streets = (
        DATASETS.build({'type': f'mmseg.{name}', 'data_prefix': folders})
        for name in ('MapillaryDataset_v1', 'MapillaryStreets')
    )
    before, after = (load(dataset)['gt_seg_map'] for dataset in (original, streets))
    for label in np.unique(before):
        expected = [i for i, group in enumerate(PUBLISHED_STREETS) if label in group]
        assert np.unique(after[before == label]).tolist() == (expected or [255])


# Labels of Mapillary Vistas 1.2 that are the classes of Cityscapes, in their order.
# Source: OpenGVLab/InternImage@31c962d,
# segmentation/mmseg_custom/datasets/pipelines/transform.py.
PUBLISHED_STREETS = (
    *((13, 24, 41), (2, 15), (17,), (6,), (3,), (45, 47), (48,), (50,), (30,), (29,)),
    *((27,), (19,), (20, 21, 22), (55,), (61,), (54,), (58,), (57,), (52,)),
)


def test_map_to_streets_is_the_published_one():
    read_config(path_of(PROJECTS['mapillary']))  # finds the class
    streets = DATASETS.get('mmseg.MapillaryStreets')
    label_map = streets.get_label_map()
    assert len(label_map) == 66
    for label, street in label_map.items():
        expected = [i for i, group in enumerate(PUBLISHED_STREETS) if label in group]
        assert [street] == (expected or [255])
    some = streets.get_label_map(['car', 'road'])
    assert {label: new for label, new in some.items() if new != 255} == {
        **dict.fromkeys((13, 24, 41), 1),
        55: 0,
    }
    with pytest.raises(ValueError, match='not a subset of classes'):
        streets.get_label_map(['boat'])


# Project -> size of an image, and what of it a model gets: rounded up to a multiple of
# 32 but for Cityscapes' own size. All as (height, width).
TESTED_SIZES = {
    'cityscapes': ((1024, 2048), (1024, 2048)),
    'cityscapes-windows': ((1024, 2048), (1024, 2048)),
    'mapillary': ((1024, 2048), (1024, 2048)),
    'coco_stuff10k': ((427, 640), (512, 768)),  # 512 x 767 before
    'pascal_context': ((375, 500), (544, 704)),  # 520 x 693 before
    'nyu_depth_v2': ((480, 640), (480, 640)),
}
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@every_project
def test_images_of_tests_have_the_published_sizes(name: str, tmp_path: Path):
    size, expected = TESTED_SIZES[name]
    for file in ('image.png', 'labels.png'):
        cv2.imwrite(str(tmp_path / file), np.zeros(size, np.uint8))
    sample = {
        'img_path': str(tmp_path / 'image.png'),
        'seg_map_path': str(tmp_path / 'labels.png'),
        'reduce_zero_label': False,
        'seg_fields': [],
    }
    config = read_config(path_of(PROJECTS[name]))
    with DefaultScope.overwrite_default_scope('mmseg'):
        result = Compose(config.test_pipeline)(deepcopy(sample))
        views = Compose(config.tta_pipeline)(deepcopy(sample))
    assert result['inputs'].shape[1:] == expected
    shapes = [tuple(view.shape[1:]) for view in views['inputs']]
    assert shapes[::2] == shapes[1::2]  # mirrored and not
    assert [view.flip for view in views['data_samples']] == [False, True] * 6
    # Of the view at one scale, the published ratios; less than a step of 32 off.
    for shape, ratio in zip(shapes[::2], RATIOS, strict=True):
        for side, whole in zip(shape, expected, strict=True):
            assert abs(side - whole * ratio) < 32
            assert side % 32 == 0 or expected == size
