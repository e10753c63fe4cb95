# SPDX-License-Identifier: Apache-2.0
"""The quickstart: its data generator, its config, its demo and how that fails."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.paths import QUICKSTART, ROOT
from tests.tools.programs import run_program

sys.path.insert(0, str(QUICKSTART))  # its files are programs, which Python runs by path
scenes = importlib.import_module('scenes')
demo = importlib.import_module('demo')
detection = importlib.import_module('detection')
sys.path.remove(str(QUICKSTART))

TEXTURE = scenes.Texture('gradient', ((200.0, 0.0, 0.0), (90.0, 0.0, 0.0)), 20.0, 0.5)
NUM_TRAIN, NUM_VAL = 5, 3


def shape(category, center, radius, **kwargs):
    kwargs = {'aspect': 1.0, 'angle': 0.0, 'texture': TEXTURE, **kwargs}
    return scenes.Shape(category, center, radius, **kwargs)


def scene(*shapes, size=(60, 90)):
    return scenes.Scene(size, TEXTURE, shapes, noise_seed=0)


def decode(annotation, size):
    """Return the ``(h, w)`` bool mask that a reader of the annotation gets."""
    segmentation = annotation['segmentation']
    rle = coco_mask.frPyObjects(segmentation, *size)
    rle = coco_mask.merge(rle) if isinstance(rle, list) else rle
    return coco_mask.decode(rle).astype(bool)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp('shapes')
    assert scenes.generate(path, seed=3, num_train=NUM_TRAIN, num_val=NUM_VAL)
    return path


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob('*.*')}


class TestGenerate:
    def test_same_seed_gives_the_same_bytes(self, root, tmp_path):
        scenes.generate(tmp_path, seed=3, num_train=NUM_TRAIN, num_val=NUM_VAL)
        assert contents(tmp_path) == contents(root)

    def test_other_seed_gives_other_scenes(self):
        first, second = (next(scenes.sample_split('train', 1, s)) for s in (3, 4))
        assert first != second

    def test_splits_share_no_scene(self):
        train, val = (next(scenes.sample_split(s, 1, 3)) for s in scenes.SPLITS)
        assert train != val

    def test_complete_set_is_kept_and_incomplete_one_is_written_again(
        self, root, tmp_path
    ):
        copy = tmp_path / 'copy'
        shutil.copytree(root, copy)
        settings = {'seed': 3, 'num_train': NUM_TRAIN, 'num_val': NUM_VAL}
        assert not scenes.generate(copy, **settings)
        (copy / 'val' / '000002.jpg').unlink()
        assert scenes.generate(copy, **settings)
        assert contents(copy) == contents(root)
        assert scenes.generate(copy, **{**settings, 'seed': 4})
        assert contents(copy) != contents(root)

    def test_foreign_data_set_is_not_overwritten(self, tmp_path):
        path = tmp_path / 'annotations' / 'instances_val.json'
        path.parent.mkdir()
        path.write_text('{"info": {"description": "precious"}}')
        with pytest.raises(ValueError, match='found another data set'):
            scenes.generate(tmp_path)
        assert 'precious' in path.read_text()

    def test_splits_have_room_for_the_special_images(self, tmp_path):
        with pytest.raises(ValueError, match='at least 2 images, got 1'):
            scenes.generate(tmp_path, num_train=2, num_val=1)

    def test_command_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            scenes.main([str(tmp_path), '--num-train', '1'])
        assert 'expected at least 2 images, got 1' in capsys.readouterr().err


@pytest.mark.parametrize('split', scenes.SPLITS)
class TestCocoFiles:
    @pytest.fixture
    def coco(self, root, split):
        return COCO(root / 'annotations' / f'instances_{split}.json')

    def test_images_are_as_described(self, coco, root, split):
        assert len(coco.imgs) == {'train': NUM_TRAIN, 'val': NUM_VAL}[split]
        for image in coco.imgs.values():
            size = (image['height'], image['width'])
            assert size[0] != size[1]
            assert cv2.imread(root / split / image['file_name']).shape == (*size, 3)

    def test_categories(self, coco, split):
        assert {c['name']: c['id'] for c in coco.cats.values()} == scenes.CATEGORY_IDS
        assert {a['category_id'] for a in coco.anns.values()} <= set(coco.cats)

    def test_area_and_box_are_those_of_the_mask(self, coco, split):
        for annotation in coco.anns.values():
            mask = coco.annToMask(annotation)
            y, x = np.nonzero(mask)
            width, height = np.ptp(x) + 1, np.ptp(y) + 1
            assert annotation['area'] == mask.sum() > 0
            assert annotation['bbox'] == [x.min(), y.min(), width, height]

    def test_first_image_has_a_crowd_and_second_is_empty(self, coco, split):
        assert [a['iscrowd'] for a in coco.imgToAnns[1]].count(1) == 1
        assert coco.getAnnIds(imgIds=2) == []
        for annotation in coco.anns.values():
            is_rle = isinstance(annotation['segmentation'], dict)
            assert is_rle == bool(annotation['iscrowd'])


class TestMasks:
    @pytest.mark.parametrize('seed', range(3))
    def test_annotations_are_the_visible_parts(self, seed):
        for sampled in scenes.sample_split('train', 4, seed):
            index = scenes.index_map(sampled)
            center = scenes.OVERSAMPLING // 2
            pixels = index[center :: scenes.OVERSAMPLING, center :: scenes.OVERSAMPLING]
            annotations = scenes.annotate(sampled, index)
            single = [a for a in annotations if not a['iscrowd']]
            for number, annotation in enumerate(single, start=1):
                visible = pixels == number
                mask = decode(annotation, sampled.size)
                # A band half a pixel wide may differ: thin shapes are mostly band.
                assert (mask & visible).sum() > 0.85 * (mask | visible).sum()
            for annotation in annotations[len(single) :]:
                mask = decode(annotation, sampled.size)
                np.testing.assert_array_equal(mask, pixels > len(single))

    @pytest.mark.parametrize('seed', range(3))
    def test_every_shape_shows_enough_of_itself(self, seed):
        for sampled in scenes.sample_split('val', 4, seed):
            counts = np.bincount(scenes.index_map(sampled).ravel())
            for number, item in enumerate(sampled.shapes, start=1):
                visible_area = counts[number] / scenes.OVERSAMPLING**2
                full_area = scenes.full_area(item)
                assert visible_area >= scenes.MIN_VISIBLE_RATE * full_area

    def test_a_hole_is_not_part_of_the_mask(self):
        sample = scene(shape('rectangle', (30, 40), 24), shape('ellipse', (30, 40), 9))
        behind, front = scenes.annotate(sample, scenes.index_map(sample))
        assert len(behind['segmentation']) == 2
        masks = [decode(annotation, sample.size) for annotation in (behind, front)]
        assert not (masks[0] & masks[1]).any()
        assert masks[0].sum() + masks[1].sum() == pytest.approx(48 * 48, rel=0.03)

    def test_a_shape_cut_in_two_has_two_polygons(self):
        sample = scene(
            shape('ellipse', (30, 40), 25), shape('rectangle', (30, 40), 40, aspect=0.2)
        )
        behind, _ = scenes.annotate(sample, scenes.index_map(sample))
        assert len(behind['segmentation']) == 2

    @pytest.mark.parametrize('category', scenes.CATEGORY_IDS)
    def test_full_area_is_what_is_drawn(self, category):
        item = shape(category, (30, 45), 20, aspect=0.7, angle=1.0)
        drawn = np.count_nonzero(scenes.index_map(scene(item))) / scenes.OVERSAMPLING**2
        assert scenes.full_area(item) == pytest.approx(drawn, rel=0.1)

    def test_run_lengths_round_trip(self):
        mask = np.random.default_rng(0).random((5, 7)) > 0.5
        for case in (mask, ~mask, np.zeros_like(mask), np.ones_like(mask)):
            runs = scenes.to_run_lengths(case)
            json.dumps(runs)
            np.testing.assert_array_equal(decode({'segmentation': runs}, (5, 7)), case)


@pytest.fixture
def boxes_only(root, tmp_path):
    """Return a copy of the data set without masks."""
    copy = tmp_path / 'boxes'
    shutil.copytree(root, copy)
    for split in scenes.SPLITS:
        edit(copy, drop_masks, split)
    return copy


@pytest.mark.parametrize('model', detection.CONFIGS)
def test_config_trains_and_tests(root, tmp_path, model):
    config = Config.fromfile(detection.CONFIGS[model])
    demo.set_iterations(config, 2)
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.dataset.data_root = str(root)
        loader.num_workers, loader.persistent_workers = 0, False
    for split in ('val', 'test'):
        path = root / 'annotations' / 'instances_val.json'
        config[f'{split}_evaluator'].ann_file = str(path)
    config.work_dir = str(tmp_path)
    config.experiment_name = f'quickstart_test_{model}'
    runner = Runner.from_cfg(config)
    runner.train()  # validates at the end
    assert (tmp_path / 'iter_2.pth').is_file()
    kind = 'segm' if 'mask' in model else 'bbox'
    assert runner.message_hub.get_scalar(f'val/coco/{kind}_mAP').current() >= 0


@pytest.mark.slow
def test_demo_on_a_folder(root, tmp_path):
    """In a process of its own: what libraries say when they are imported is hidden."""
    options = ['--work-dir', tmp_path, '--data', root, '--iters', '2']
    paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    done = subprocess.run(
        [sys.executable, QUICKSTART / 'demo.py', *options],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert 'AP75' in done.stdout
    assert 'masks' in done.stdout
    assert f'{tmp_path}/predictions.png' in done.stdout
    assert cv2.imread(tmp_path / 'predictions.png').std() > 0


@pytest.mark.slow
def test_demo_on_a_folder_without_masks(boxes_only, tmp_path):
    options = ['--data', str(boxes_only), '--iters', '2', '--model', 'dino']
    options += ['--work-dir', str(tmp_path)]
    printed = run_program(QUICKSTART / 'demo.py', *options, cwd=tmp_path)
    assert printed.errors == ''
    assert 'boxes' in printed.output
    assert 'masks' not in printed.output
    assert cv2.imread(tmp_path / 'predictions.png').std() > 0


@pytest.mark.parametrize('model', detection.CONFIGS)
def test_folder_config_has_the_classes_of_the_folder(root, tmp_path, model):
    copy = tmp_path / 'copy'
    shutil.copytree(root, copy)
    for split in scenes.SPLITS:
        edit(
            copy,
            lambda data: data['categories'].append({'id': 9, 'name': 'egg'}),
            split,
        )
    path = tmp_path / 'config.py'
    detection.write_folder_config(model, path, copy, iters=7)
    config = Config.fromfile(path)
    assert config.metainfo.classes[-1] == 'egg'
    assert config.train_cfg.max_iters == config.param_scheduler[1].T_max == 7
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        assert dataset.data_root == f'{copy}/'
        assert dataset.metainfo.classes == config.metainfo.classes
        assert dataset.pipeline[2 if split == 'train' else 1].scale == (512, 320)
    assert set(find(config.model, 'num_classes')) == {6}
    assert config.test_evaluator.ann_file == f'{copy}/annotations/instances_val.json'


def find(node, key):
    """Return all values of a key in nested dicts and lists."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    found = [value for name, value in items if name == key]
    children = node.values() if isinstance(node, dict) else node
    for child in children:
        if isinstance(child, dict | list):
            found += find(child, key)
    return found


def drop_val_folder(root):
    shutil.rmtree(root / 'val')


def drop_annotations(root):
    shutil.rmtree(root / 'annotations')


def drop_image(root):
    (root / 'train' / '000003.jpg').unlink()


def edit(root, change, split='val'):
    path = root / 'annotations' / f'instances_{split}.json'
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def drop_masks(data):
    for annotation in data['annotations']:
        del annotation['segmentation']


def drop_val_masks(root):
    edit(root, drop_masks)


def rename_category(root):
    edit(root, lambda data: data['categories'][0].update(name='egg'))


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (shutil.rmtree, 'expected a folder, found none'),
        (drop_annotations, 'instances_train.json and train/, found train, val; rename'),
        (drop_val_folder, 'instances_val.json and val/, found annotations, train;'),
        (drop_image, '1 are missing, such as 000003.jpg'),
        (drop_val_masks, 'expected objects with a segmentation, found none'),
        (rename_category, "the same categories .* got .*'ellipse'.* and .*'egg'"),
    ],
)
def test_demo_names_what_a_folder_lacks(root, tmp_path, damage, message, capsys):
    copy = tmp_path / 'copy'
    shutil.copytree(root, copy)
    damage(copy)
    with pytest.raises(detection.DataError, match=message):
        detection.read_classes(copy, with_masks=True)
    assert demo.main(['--data', str(copy), '--work-dir', str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ')
    assert captured.out == ''


def test_demo_fails_when_a_step_fails(tmp_path, monkeypatch, capsys):
    def fail(args, say):
        raise RuntimeError('no memory')

    monkeypatch.setattr(demo, 'run', fail)
    assert demo.main(['--work-dir', str(tmp_path)]) == 1
    assert 'error: RuntimeError: no memory' in capsys.readouterr().err
    assert 'Traceback' in (tmp_path / 'demo.log').read_text()


def test_boxes_are_enough_for_some(boxes_only):
    assert len(detection.read_classes(boxes_only, with_masks=False)) == 5


def test_demo_names_the_models_of_a_task(capsys):
    with pytest.raises(SystemExit):
        demo.main(['--task', 'classification', '--model', 'dino'])
    assert 'one of classifier; got dino' in capsys.readouterr().err


def test_each_model_has_a_folder_of_its_own():
    names = [['--model', name] for name in detection.CONFIGS]
    names.append(['--task', 'classification'])
    folders = {demo.parse_args(options).work_dir for options in names}
    assert len(folders) == len(names)
    assert Path('work_dirs/quickstart') in folders


def test_table_shows_missing_sizes_and_leaves_out_masks():
    names = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
    metrics = {f'coco/bbox_{name}': -1.0 for name in names}
    metrics['coco/bbox_mAP'] = 0.4321
    header, boxes = detection.table(metrics).splitlines()
    assert header.split() == ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    assert boxes.split() == ['boxes', '0.432', *'-----']
