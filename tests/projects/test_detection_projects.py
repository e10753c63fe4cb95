# SPDX-License-Identifier: Apache-2.0
"""The projects of detection: their data sets, and training and testing on them.

On generated data in the official formats, with the settings of the configs and small
models; and on single records of the real data sets.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, EVALUATOR, METRICS, MODELS, DefaultScope

from internimage.data import DataError, check_datasets
from tests.our_configs import read_config
from tests.paths import ROOT
from tests.tools.programs import run_tool
from tests.tools.small_models import (
    BACKBONE,
    CASCADE_MASK_RCNN,
    LARGE_DINO,
    LOADERS,
    Options,
    as_arguments,
)
from tests.tools.small_models import (
    DINO as SMALL_DINO,
)

pytest.importorskip('mmdet')
pytest.importorskip('faster_coco_eval')
from mmdet.datasets import CocoDataset, LVISV1Dataset

HEIGHT, WIDTH = 48, 64
BOX = (10, 8, 40, 30)  # of what is in each image: x, y, width, height
NUM_TRAINED, NUM_TESTED = 3, 2


def write_images(pattern: str, number: int) -> None:
    """Write dark images with something bright; ``pattern`` has ``{}`` for a number."""
    Path(pattern).parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    x, y, w, h = BOX
    for index in range(number):
        image = rng.integers(0, 99, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        image[y : y + h, x : x + w] = 255
        cv2.imwrite(pattern.format(index), image)


def write_crowd_human(data: Path) -> None:
    """Write a person, and a mask, which is to be ignored."""
    root = data / 'CrowdHuman'
    write_images(f'{root}/Images/273271,1a{{}}.jpg', NUM_TRAINED)
    box = {'fbox': BOX, 'hbox': BOX, 'vbox': BOX, 'head_attr': {}}
    boxes = [{**box, 'tag': 'person', 'extra': {'box_id': 0, 'occ': 0}}]
    boxes += [{**box, 'tag': 'mask', 'extra': {'ignore': 1}}]
    for split, number in (('train', NUM_TRAINED), ('val', NUM_TESTED)):
        records = [{'ID': f'273271,1a{i}', 'gtboxes': boxes} for i in range(number)]
        lines = ''.join(f'{json.dumps(record)}\n' for record in records)
        (root / f'annotation_{split}.odgt').write_text(lines)


VOC_RECORD = """<annotation><filename>{name}.jpg</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>
<object><name>{kind}</name><difficult>0</difficult><bndbox>
<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>
</bndbox></object></annotation>"""


def write_voc(data: Path) -> None:
    """Write a TV set in each image of both years."""
    x, y, w, h = BOX
    for year, splits in (
        ('VOC2007', ('trainval', 'test')),
        ('VOC2012', ('trainval',)),
        ('VOC2012test', ('test',)),
    ):
        root = data / 'VOCdevkit' / year
        write_images(f'{root}/JPEGImages/00000{{}}.jpg', NUM_TRAINED)
        for folder in ('Annotations', 'ImageSets/Main'):
            (root / folder).mkdir(parents=True)
        for split in splits:
            number = NUM_TESTED if split == 'test' else NUM_TRAINED
            names = [f'00000{i}' for i in range(number)]
            (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
            for name in names:
                record = VOC_RECORD.format(
                    **dict(name=name, width=WIDTH, height=HEIGHT, kind='tvmonitor'),
                    **dict(xmin=x + 1, ymin=y + 1, xmax=x + w + 1, ymax=y + h + 1),
                )
                (root / f'Annotations/{name}.xml').write_text(record)


def write_openimages(data: Path) -> None:
    """Write 601 classes, of which one is the parent of another, and one box each."""
    root = data / 'OpenImages'
    annotations = root / 'annotations'
    annotations.mkdir(parents=True)
    labels = [f'/m/{number:03}' for number in range(601)]
    descriptions = ''.join(f'{label},Class {label[3:]}\n' for label in labels)
    (annotations / 'class-descriptions-boxable.csv').write_text(descriptions)
    leaves = [{'LabelName': label} for label in labels[2:]]
    parent = {'LabelName': labels[0], 'Subcategory': [{'LabelName': labels[1]}]}
    hierarchy = {'LabelName': '/m/0bl9f', 'Subcategory': [parent, *leaves]}
    path = annotations / 'bbox_labels_600_hierarchy.json'
    path.write_text(json.dumps(hierarchy))
    x, y, w, h = BOX
    place = f'{x / WIDTH},{(x + w) / WIDTH},{y / HEIGHT},{(y + h) / HEIGHT}'
    for split, number in (('train', NUM_TRAINED), ('validation', NUM_TESTED)):
        write_images(f'{root}/OpenImages/{split}/0{{}}.jpg', number)
        rows = ['ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,']
        rows[0] += 'IsTruncated,IsGroupOf,IsDepiction,IsInside'
        rows += [f'0{i},xclick,/m/001,1,{place},0,0,0,0,0' for i in range(number)]
        prefix = 'oidv6-' if split == 'train' else ''
        path = annotations / f'{prefix}{split}-annotations-bbox.csv'
        path.write_text('\n'.join(rows) + '\n')
        metas = [
            {
                'filename': f'OpenImages/{split}/0{i}.jpg',
                'ori_shape': (HEIGHT, WIDTH, 3),
            }
            for i in range(number)
        ]
        (annotations / f'{split}-image-metas.pkl').write_bytes(pickle.dumps(metas))
    rows = ['ImageID,Source,LabelName,Confidence']
    rows += [f'0{i},verification,/m/001,1' for i in range(NUM_TESTED)]
    path = annotations / 'validation-annotations-human-imagelabels-boxable.csv'
    path.write_text('\n'.join(rows) + '\n')


def write_bdd100k(data: Path) -> None:
    """Write two classes, the file's numbers of which are others than their places."""
    root = data / 'bdd100k'
    names = Config.fromfile(ROOT / BDD100K).classes
    categories = [dict(id=10 * i + 5, name=name) for i, name in enumerate(names)]
    box = dict(bbox=list(BOX), area=BOX[2] * BOX[3], iscrowd=0, category_id=25)
    (root / 'labels' / 'det_20').mkdir(parents=True)
    for split, number in (('train', NUM_TRAINED), ('val', NUM_TESTED)):
        write_images(f'{root}/images/100k/{split}/0{{}}.jpg', number)
        images = [
            dict(id=i, file_name=f'0{i}.jpg', height=HEIGHT, width=WIDTH)
            for i in range(number)
        ]
        annotations = [dict(box, id=i + 1, image_id=i) for i in range(number)]
        content = dict(images=images, annotations=annotations, categories=categories)
        path = root / 'labels' / 'det_20' / f'det_{split}_coco.json'
        path.write_text(json.dumps(content))


def lvis_content(split: str, number: int) -> dict[str, Any]:
    """Return what an annotation file has: 1203 categories, one box of the second each.

    The first image is known to lack the third category, and the fourth is not labelled
    wholly in it; of all others nobody has looked.
    """
    names = LVISV1Dataset.METAINFO['classes']
    categories = [
        {'id': index + 1, 'name': name, 'frequency': 'rcf'[index % 3]}
        for index, name in enumerate(names)
    ]
    images = [
        {
            **dict(id=i + 1, height=HEIGHT, width=WIDTH),
            'coco_url': f'http://images.cocodataset.org/{split}2017/00{i}.jpg',
            'neg_category_ids': [3] if i == 0 else [],
            'not_exhaustive_category_ids': [4] if i == 0 else [],
        }
        for i in range(number)
    ]
    annotations = [
        {
            **dict(id=i + 1, image_id=i + 1, category_id=2),
            **dict(bbox=list(BOX), area=BOX[2] * BOX[3]),
        }
        for i in range(number)
    ]
    return dict(categories=categories, images=images, annotations=annotations)


def write_lvis(data: Path) -> None:
    root = data / 'lvis_v1'
    (root / 'annotations').mkdir(parents=True)
    for split, number, files in (
        ('train', NUM_TRAINED, ('train',)),
        ('val', NUM_TESTED, ('val', 'minival')),
    ):
        write_images(f'{root}/{split}2017/00{{}}.jpg', number)
        for file in files:
            path = root / 'annotations' / f'lvis_v1_{file}.json'
            path.write_text(json.dumps(lvis_content(split, number)))


SCALES: Options = {
    f'{split}_dataloader.dataset.pipeline.1.scale': (128, 96)
    for split in ('val', 'test')
}
CASCADE: Options = {
    **BACKBONE,
    **LOADERS,
    **SCALES,
    'model.neck.in_channels': [16, 32, 64, 128],
    'model.train_cfg.rpn_proposal.max_per_img': 50,
    'model.test_cfg.rpn.max_per_img': 50,
    'model.test_cfg.rcnn.max_per_img': 5,
    'model.test_cfg.rcnn.score_thr': 0,
    **{
        f'model.{name}': value
        for stage in range(3)
        for name, value in {
            f'roi_head.bbox_head.{stage}.fc_out_channels': 32,
            f'train_cfg.rcnn.{stage}.sampler.num': 16,
        }.items()
    },
    'train_cfg.max_epochs': 1,
    'default_hooks.checkpoint.interval': 1,
    'train_dataloader.dataset.pipeline.3.transforms.0.0.scales': [(96, 128)],
    'train_dataloader.dataset.pipeline.3.transforms.1.0.scales': [(96, 128)],
    'train_dataloader.dataset.pipeline.3.transforms.1.1.crop_size': (48, 64),
    'train_dataloader.dataset.pipeline.3.transforms.1.2.scales': [(96, 128)],
}
ITERATIONS: Options = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
}
DINO: Options = {
    **{name: value for name, value in LARGE_DINO.items() if 'pipeline.3' not in name},
    **ITERATIONS,
}
RESIZED = 'train_dataloader.dataset.dataset.datasets.{}.pipeline.2.scale'


LVIS = 'lvis/configs/dino-4scale_cb-internimage-h_16xb1-80k_o365-to-lvis-'
SMALL_LVIS: Options = {
    **DINO,
    'train_dataloader.dataset.dataset.pipeline.3.scale': [(128, 96), (160, 96)],
}


class Project(NamedTuple):
    """A config of a project, what makes it small, its data, and what it measures."""

    config: str
    options: Options
    write_data: Callable[[Path], None]
    label: str
    metrics: tuple[str, ...]


BDD100K = 'projects/bdd100k/configs/dino-4scale_internimage-h_8xb2-12e_bdd100k.py'
VOC = 'voc/configs/dino-4scale_cb-internimage-h_16xb1-20k_o365-to-voc'
SMALL_VOC: Options = {**DINO, **{RESIZED.format(i): (128, 96) for i in range(2)}}
PROJECTS = {
    'bdd100k': Project(
        BDD100K.removeprefix('projects/').removesuffix('.py'),
        {
            **SMALL_DINO,
            'train_cfg.max_epochs': 1,
            'train_dataloader.dataset.pipeline.3.transforms.0.0.scales': [(96, 128)],
            'train_dataloader.dataset.pipeline.3.transforms.1.0.scales': [(96, 128)],
            'train_dataloader.dataset.pipeline.3.transforms.1.1.crop_size': (48, 64),
            'train_dataloader.dataset.pipeline.3.transforms.1.2.scales': [(96, 128)],
        },
        write_bdd100k,
        'car',
        ('coco/bbox_mAP',),
    ),
    'crowd_human': Project(
        'crowd_human/configs/cascade-rcnn_internimage-xl_fpn_8xb2-ms-crop-3x_crowdhuman',
        CASCADE,
        write_crowd_human,
        'person',
        ('crowd_human/mAP', 'crowd_human/mMR', 'crowd_human/JI'),
    ),
    'voc07': Project(
        f'{VOC}07', SMALL_VOC, write_voc, 'tvmonitor', ('pascal_voc/mAP',)
    ),
    'voc12': Project(
        f'{VOC}12', SMALL_VOC, write_voc, 'tvmonitor', ('pascal_voc/mAP',)
    ),
    'lvis': Project(
        f'{LVIS}val',
        SMALL_LVIS,
        write_lvis,
        LVISV1Dataset.METAINFO['classes'][1],
        ('lvis/bbox_AP', 'lvis/bbox_APr', 'lvis/bbox_APf'),
    ),
    'lvis-minival': Project(
        f'{LVIS}minival', SMALL_LVIS, write_lvis, '', ('lvis/bbox_AP',)
    ),
    'openimages': Project(
        'openimages/configs/dino-4scale_cb-internimage-h_16xb1-100k_o365-to-openimages',
        {
            **DINO,
            'train_dataloader.dataset.pipeline.3.scale': [(128, 96), (160, 96)],
        },
        write_openimages,
        'Class 001',
        ('openimages/mAP',),
    ),
}
every_project = pytest.mark.parametrize('name', PROJECTS)


def path_of(project: Project) -> str:
    return f'projects/{project.config}.py'


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted({*PROJECTS} - {'voc12', 'lvis-minival'}))
def test_train_and_test(name: str, tmp_path: Path):
    project = PROJECTS[name]
    project.write_data(tmp_path / 'data')
    config = str(ROOT / path_of(project))
    options = ['--cfg-options', *as_arguments(project.options)]
    logged = [*options, 'default_hooks.logger.interval=1']
    output = run_tool('train', config, '--work-dir', 'out', *logged, cwd=tmp_path)
    assert '[2/2]' in output
    checkpoint = (tmp_path / 'out' / 'last_checkpoint').read_text()
    arguments = ['--work-dir', 'tested', *options]
    output = run_tool('test', config, checkpoint, *arguments, cwd=tmp_path)
    assert f'(test) [{NUM_TESTED}/{NUM_TESTED}]' in output
    for metric in project.metrics:
        assert f'{metric}: ' in output


def build(config: Any, split: str) -> Any:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(config[f'{split}_dataloader'].dataset)


@every_project
def test_records_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = PROJECTS[name]
    project.write_data(tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    config = read_config(path_of(project))
    repeats = 6 if 'voc' in name else 1  # three times two years
    label = project.label or PROJECTS['lvis'].label
    for split, number in (('train', NUM_TRAINED * repeats), ('val', NUM_TESTED)):
        dataset = build(config, split)
        assert len(dataset) == number
        classes = dataset.metainfo['classes']
        head = config.model.get('bbox_head') or config.model.roi_head.bbox_head[0]
        assert len(classes) == head.num_classes
        for index in range(number):
            record = dataset.get_data_info(index)
            assert Path(record['img_path']).is_file()
            instance, *ignored = record['instances']
            assert classes[instance['bbox_label']] == label
            x, y, w, h = BOX
            assert instance['bbox'] == pytest.approx([x, y, x + w, y + h])
            assert all(other['ignore_flag'] for other in ignored)


@every_project
def test_data_that_are_not_there_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = read_config(path_of(PROJECTS[name]))
    with pytest.raises(DataError, match=r'data/\w.*: expected .*, got [Nn]o '):
        check_datasets(config)


def measure(content: dict[str, Any], folder: Path, found: list[dict]) -> dict:
    """Return the figures of LVIS's metric, for what is found in each image."""
    read_config(path_of(PROJECTS['lvis']))  # finds the class
    (folder / 'lvis.json').write_text(json.dumps(content))
    metric = METRICS.build(
        dict(type='mmdet.LVISBoxMetric', ann_file=f'{folder}/lvis.json', classwise=True)
    )
    classes = tuple(category['name'] for category in content['categories'])
    metric.dataset_meta = {'classes': classes}
    results = [
        ({}, {'img_id': image['id'], **prediction})
        for image, prediction in zip(content['images'], found, strict=True)
    ]
    return metric.compute_metrics(results)


def detections(*labels: int) -> dict[str, np.ndarray]:
    """Return a box at the right place for each label, each surer than the next."""
    x, y, w, h = BOX
    return {
        'bboxes': np.array([[x, y, x + w, y + h]] * len(labels), float),
        'scores': np.linspace(0.9, 0.5, len(labels)),
        'labels': np.array(labels),
    }


def test_lvis_counts_what_was_looked_for(tmp_path: Path):
    content = lvis_content('val', 2)
    second, third, fourth, fifth = (
        content['categories'][i]['name'] for i in range(1, 5)
    )
    # Category 2 is found in both; of 3 it is known that it is not there.
    content['annotations'].append(
        {**content['annotations'][1], 'id': 9, 'category_id': 3}
    )
    figures = measure(content, tmp_path, [detections(2, 1, 4), detections(1, 2)])
    assert figures[f'{second}_precision'] == pytest.approx(1)
    # Surest is the one in the image that lacks it.
    assert figures[f'{third}_precision'] == pytest.approx(0.5)
    assert np.isnan(figures[f'{fourth}_precision'])
    assert np.isnan(figures[f'{fifth}_precision'])
    assert figures['bbox_AP'] == pytest.approx(0.75)
    assert (figures['bbox_APc'], figures['bbox_APf']) == pytest.approx((1, 0.5))
    assert figures['bbox_APr'] == -1  # none of these is rare


def test_lvis_is_measured_as_by_its_official_evaluator(
    shared_data: Path, tmp_path: Path
):
    """Figures of ``lvis`` 0.5.3 for the same simulated detections."""
    path = shared_data / 'optional' / 'lvis_v0.5' / 'annotations' / 'lvis_val_100.json'
    if not path.is_file():
        pytest.skip(f'no data at {path}')
    content = json.loads(path.read_text())
    figures = measure(content, tmp_path, simulate(content))
    for name, value in OFFICIAL.items():
        assert figures[f'bbox_{name}'] == pytest.approx(value, abs=1e-12)


OFFICIAL = {
    'AP': 0.23478758328942023,
    'AP50': 0.39769316918138353,
    'AP75': 0.24267294478342133,
    'APs': 0.3480680846402474,
    'APm': 0.2646084615710463,
    'APl': 0.2881183335724876,
    'APr': 0.0,
    'APc': 0.2511033838032926,
    'APf': 0.2331857818295035,
}


def simulate(content: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """Move most of the boxes, mistake some, and add others where nothing is."""
    rng = np.random.default_rng(0)
    ids = [category['id'] for category in content['categories']]
    found = []
    for image in content['images']:
        boxes, labels = [], []
        own = [a for a in content['annotations'] if a['image_id'] == image['id']]
        for annotation in own:
            x, y, w, h = annotation['bbox']
            left, top, right, bottom = rng.normal(0, 0.08, 4) * (w, h, w, h)
            label = annotation['category_id'] if rng.random() < 0.9 else rng.choice(ids)
            if rng.random() < 0.75:
                boxes.append([x + left, y + top, x + w + right, y + h + bottom])
                labels.append(ids.index(label))
        known = [a['category_id'] for a in own] + image['neg_category_ids']
        known += image['not_exhaustive_category_ids']
        for label in rng.choice(known, 20) if known else []:
            x, y, w, h = rng.random(4) * np.tile((image['width'], image['height']), 2)
            boxes.append([0.7 * x, 0.7 * y, 0.7 * x + 0.3 * w, 0.7 * y + 0.3 * h])
            labels.append(ids.index(label))
        found.append(
            {
                'bboxes': np.array(boxes).reshape(-1, 4),
                'scores': rng.random(len(boxes)),
                'labels': np.array(labels, int),
            }
        )
    return found


DOMAINS = ('cartoon', 'handmake', 'painting', 'sketch', 'tattoo', 'weather')
COCO_O = 'projects/coco_o/configs/cascade-mask-rcnn_internimage-l_fpn_coco-o.py'


def write_coco_o(data: Path) -> None:
    """Write a person per image, and in each domain more images than in the last."""
    for number, domain in enumerate(DOMAINS, start=1):
        root = data / 'ood_coco' / domain
        write_images(f'{root}/val2017/0{{}}.jpg', number)
        images = [
            dict(id=i, file_name=f'0{i}.jpg', height=HEIGHT, width=WIDTH)
            for i in range(number)
        ]
        box = dict(bbox=list(BOX), area=BOX[2] * BOX[3], iscrowd=0, category_id=1)
        annotations = [dict(box, id=i + 1, image_id=i) for i in range(number)]
        names = CocoDataset.METAINFO['classes']
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / 'annotations').mkdir()
        path = root / 'annotations' / 'instances_val2017.json'
        path.write_text(json.dumps(content))


@pytest.mark.slow
def test_coco_o_is_tested_in_each_domain(tmp_path: Path):
    write_coco_o(tmp_path / 'data')
    small = {k: v for k, v in CASCADE_MASK_RCNN.items() if k.startswith('model.')}
    config = Config.fromfile(ROOT / COCO_O)
    config.merge_from_dict(small)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    workers = {'num_workers': 0, 'persistent_workers': False}
    small |= {f'test_dataloader.{name}': value for name, value in workers.items()}
    options = ['--cfg-options', *as_arguments(small)]
    output = run_tool('test', str(ROOT / COCO_O), 'model.pth', *options, cwd=tmp_path)
    assert '(test) [21/21]' in output
    for name in (*(f'{domain}/coco' for domain in DOMAINS), 'coco_o'):
        assert f'{name}/bbox_mAP: ' in output
    assert 'coco_o/effective_robustness: -0.25' in output  # 0.45 times 0.561


def test_effective_robustness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Boxes as they should be in two domains, and beside the object in the others."""
    write_coco_o(tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    config = read_config(COCO_O)
    evaluator = EVALUATOR.build(dict(config.test_evaluator, _scope_='mmdet'))
    dataset = build(config, 'test')
    sizes = list(np.cumsum(range(1, 7)))
    evaluator.dataset_meta = {**dataset.metainfo, 'cumulative_sizes': sizes}
    x, y, w, h = BOX
    for number, domain in enumerate(DOMAINS, start=1):
        shift = 0 if domain in ('cartoon', 'handmake') else w
        found = dict(
            bboxes=torch.tensor([[x + shift, y, x + w + shift, y + h]]).float(),
            scores=torch.ones(1),
            labels=torch.zeros(1, dtype=torch.long),
        )
        for image in range(number):
            sample = dict(img_id=image, ori_shape=(HEIGHT, WIDTH), pred_instances=found)
            evaluator.process([sample])
    figures = evaluator.evaluate(len(dataset))
    found = [figures[f'{domain}/coco/bbox_mAP'] for domain in DOMAINS]
    assert found == pytest.approx([1, 1, 0, 0, 0, 0])
    assert figures['coco_o/bbox_mAP'] == pytest.approx(2 / 6)
    robustness = figures['coco_o/effective_robustness']
    assert robustness == pytest.approx(2 / 6 - 0.45 * 0.561)
    with pytest.raises(ValueError, match=r'coco_map: .* \(0, 1\), got 56.1'):
        EVALUATOR.build(dict(config.test_evaluator, coco_map=56.1, _scope_='mmdet'))
