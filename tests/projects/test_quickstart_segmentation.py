# SPDX-License-Identifier: Apache-2.0
"""The quickstart's segmentation part: generator, config, own folders, table."""

import importlib
import shutil
import sys

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from tests.paths import QUICKSTART
from tests.tools.programs import run_program

pytest.importorskip('mmseg')
sys.path.insert(0, str(QUICKSTART))  # its files are programs, which Python runs by path
scenes = importlib.import_module('scenes')
shape_masks = importlib.import_module('shape_masks')
segmentation = importlib.import_module('segmentation')
demo = importlib.import_module('demo')
sys.path.remove(str(QUICKSTART))

SETTINGS = {'seed': 3, 'num_train': 4, 'num_val': 3}
TEXTURE = scenes.Texture('gradient', ((200.0, 0.0, 0.0), (90.0, 0.0, 0.0)), 20.0, 0.5)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp('shape_masks')
    assert shape_masks.generate(path, **SETTINGS)
    return path


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / 'copy')


@pytest.fixture
def cracks(copy):
    """Return a folder of two classes: background and any shape."""
    for path in mask_paths(copy):
        mask = read_mask(path)
        write_mask(path, np.where(mask == 255, 255, mask > 0))
    return copy


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob('*.*')}


def mask_paths(root):
    return sorted((root / 'masks').rglob('*.png'))


def read_mask(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def write_mask(path, mask):
    cv2.imwrite(str(path), np.uint8(mask))


class TestGenerate:
    def test_same_seed_gives_the_same_bytes(self, root, tmp_path):
        shape_masks.generate(tmp_path, **SETTINGS)
        assert contents(tmp_path) == contents(root)
        shape_masks.generate(tmp_path, **{**SETTINGS, 'seed': 4})
        assert contents(tmp_path) != contents(root)

    def test_complete_set_is_kept_and_incomplete_one_is_written_again(self, root, copy):
        assert not shape_masks.generate(copy, **SETTINGS)
        mask_paths(copy)[0].unlink()
        assert shape_masks.generate(copy, **SETTINGS)
        assert contents(copy) == contents(root)

    def test_interrupted_set_is_written_again(self, root, copy, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(scenes, 'write_jpeg', interrupt)
            with pytest.raises(KeyboardInterrupt):
                shape_masks.generate(copy, **{**SETTINGS, 'seed': 4})
        assert shape_masks.generate(copy, **SETTINGS)
        assert contents(copy) == contents(root)

    def test_smaller_set_leaves_no_file_behind(self, copy):
        assert shape_masks.generate(copy, **{**SETTINGS, 'num_train': 2})
        assert len(list(copy.rglob('*.jpg'))) == len(mask_paths(copy)) == 2 + 3

    def test_foreign_data_set_is_not_overwritten(self, tmp_path):
        path = tmp_path / 'masks' / 'train' / 'precious.png'
        path.parent.mkdir(parents=True)
        path.write_text('precious')
        with pytest.raises(ValueError, match='found another data set'):
            shape_masks.generate(tmp_path)
        assert contents(tmp_path) == {path.relative_to(tmp_path): b'precious'}

    def test_command_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            shape_masks.main([str(tmp_path), '--num-val', '0'])
        assert 'expected at least 1 image, got 0' in capsys.readouterr().err


def interrupt(*args):
    raise KeyboardInterrupt


class TestMasks:
    def test_each_image_has_a_mask_of_its_size(self, root):
        images = sorted(root.rglob('*.jpg'))
        assert len(images) == 4 + 3
        for image, mask in zip(images, mask_paths(root), strict=True):
            assert image.stem == mask.stem
            assert image.parent.name == mask.parent.name
            labels = read_mask(mask)
            assert labels.dtype == np.uint8
            assert labels.shape == cv2.imread(str(image)).shape[:2]

    def test_all_classes_are_there(self, root):
        found = set().union(*(np.unique(read_mask(p)) for p in mask_paths(root)))
        assert found == {*range(len(shape_masks.CLASSES)), shape_masks.IGNORED}

    def test_second_image_is_background(self, root):
        assert not read_mask(root / 'masks' / 'train' / '000002.png').any()

    def test_a_pixel_has_the_class_of_what_is_visible(self):
        labels = self.labels(('ring', (30, 40), 25), ('star', (10, 80), 9))
        assert labels.shape == (60, 90)
        assert labels[30, 40] == 0
        assert labels[30, 60] == shape_masks.CLASSES.index('ring')
        assert labels[10, 80] == shape_masks.CLASSES.index('star')

    def test_pixels_of_two_classes_are_ignored_and_others_are_not(self):
        labels = self.labels(('rectangle', (30.5, 40.5), 10))
        assert (labels[20, 30:51] == shape_masks.IGNORED).all()
        assert np.count_nonzero(labels == shape_masks.IGNORED) == 4 * 20
        rectangle = shape_masks.CLASSES.index('rectangle')
        assert (labels[21:40, 31:50] == rectangle).all()
        # Two of one class that touch have no border between them.
        labels = self.labels(('rectangle', (30, 40), 10), ('rectangle', (30, 45), 10))
        assert (labels[25:35, 31:54] == rectangle).all()

    def test_crowds_are_ignored(self):
        labels = self.labels(('ellipse', (30, 40), 12), is_crowd=True)
        assert labels[30, 40] == shape_masks.IGNORED
        assert set(np.unique(labels)) == {0, shape_masks.IGNORED}

    @staticmethod
    def labels(*shapes, is_crowd=False):
        """Return the labels of shapes, each (category, center, radius)."""
        kwargs = dict(aspect=1.0, angle=0.0, texture=TEXTURE, is_crowd=is_crowd)
        drawn = tuple(scenes.Shape(*shape, **kwargs) for shape in shapes)
        scene = scenes.Scene((60, 90), TEXTURE, drawn, noise_seed=0)
        return shape_masks.label_map(scene, scenes.index_map(scene))


def test_config_trains_tests_and_predicts(root, tmp_path):
    config = Config.fromfile(segmentation.CONFIG)
    assert tuple(config.metainfo.classes) == shape_masks.CLASSES
    demo.set_iterations(config, 2)
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.dataset.data_root = str(root)
        loader.num_workers, loader.persistent_workers = 0, False
    config.work_dir = str(tmp_path)
    config.experiment_name = 'quickstart_segmentation_test'
    runner = Runner.from_cfg(config)
    runner.register_hook(segmentation.ClassIoU())
    runner.train()  # validates at the end
    assert runner.message_hub.get_scalar('val/mIoU').current() >= 0
    metrics = runner.test()
    of_classes = [metrics[f'IoU/{name}'] for name in shape_masks.CLASSES]
    assert np.nanmean(of_classes) == pytest.approx(metrics['mIoU'], abs=0.01)

    picture = tmp_path / 'predictions.png'
    checkpoint = str(tmp_path / 'iter_2.pth')
    # The second image has no object.
    assert segmentation.draw_predictions(config, checkpoint, picture) == 2
    assert cv2.imread(str(picture)).std() > 0


def test_table_shows_missing_classes():
    metrics = {'aAcc': 99.0, 'mIoU': 50.04, 'IoU/crack': 50.04, 'IoU/a hole': np.nan}
    rows = [line.rsplit(maxsplit=1) for line in segmentation.table(metrics).split('\n')]
    assert rows == [['mIoU', '50.0'], ['crack', '50.0'], ['a hole', '-']]


def test_folder_config_is_short_and_has_the_classes(cracks, tmp_path):
    path = tmp_path / 'config.py'
    classes = ['background', 'crack']
    assert not segmentation.write_folder_config('upernet', path, cracks, 7, classes)
    assert len(path.read_text().splitlines()) <= 20
    config = Config.fromfile(path)
    assert config.train_cfg.max_iters == config.param_scheduler[1].T_max == 7
    assert config.model.decode_head.num_classes == 2
    assert config.model.auxiliary_head.num_classes == 2
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        assert dataset.data_root == f'{cracks}/'
        assert list(dataset.metainfo.classes) == classes
        assert dataset.pipeline[2 if split == 'train' else 1].scale == (512, 320)


def test_classes_without_names_are_called_after_their_indices(copy, tmp_path):
    path = tmp_path / 'config.py'
    note = segmentation.write_folder_config('upernet', path, copy, 7)
    assert 'indices up to 5: class0 to class5. --classes gives names' in note
    assert Config.fromfile(path).metainfo.classes[-1] == 'class5'


def test_masks_may_have_a_palette_and_images_another_suffix(copy):
    for path in copy.rglob('*.jpg'):
        path.rename(path.with_suffix('.jpeg'))
    for path in mask_paths(copy):
        mask = Image.fromarray(read_mask(path))
        mask.putpalette([7 * value % 256 for value in range(3 * 256)])
        mask.save(path)
    classes, suffix = segmentation.read_classes(copy)
    assert len(classes) == 6
    assert suffix == '.jpeg'


def drop_val_masks(root):
    shutil.rmtree(root / 'masks' / 'val')


def drop_images(root):
    shutil.rmtree(root / 'images')


def drop_train_images(root):
    for path in (root / 'images' / 'train').iterdir():
        path.unlink()


def drop_mask(root):
    (root / 'masks' / 'train' / '000003.png').unlink()


def mix_suffixes(root):
    path = root / 'images' / 'val' / '000001.jpg'
    path.rename(path.with_suffix('.png'))


def shout_suffix(root):
    path = root / 'images' / 'val' / '000001.jpg'
    path.rename(path.with_suffix('.JPG'))


def write_text(root):
    mask_paths(root)[0].write_text('<html>')


def crop_mask(root):
    path = mask_paths(root)[0]
    write_mask(path, read_mask(path)[1:])


def paint_mask(root):
    path = mask_paths(root)[0]
    write_mask(path, np.repeat(read_mask(path)[..., None], 3, axis=2))


def add_class(root):
    path = mask_paths(root)[0]
    mask = read_mask(path)
    mask[0] = 2
    write_mask(path, mask)


def stretch_masks(root):
    for path in mask_paths(root):
        write_mask(path, (read_mask(path) == 1) * 255)


def empty_masks(root):
    for path in mask_paths(root):
        write_mask(path, np.full_like(read_mask(path), 255))


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (shutil.rmtree, 'expected a folder, found none'),
        (drop_images, 'expected images/train/, found in .* masks, shape_masks.json'),
        (drop_val_masks, 'expected masks/val/, found in .*/masks train; rename'),
        (drop_train_images, r'expected images \(.jpg, .jpeg, .png\), found nothing'),
        (drop_mask, '7 images, 1 are missing, such as .*/masks/train/000003.png'),
        (mix_suffixes, 'expected images of one suffix, got .jpg, .png'),
        (shout_suffix, 'expected images of one suffix, got .JPG, .jpg'),
        (write_text, 'expected a mask that can be opened, .* cannot identify'),
        (crop_mask, r'expected \(\d+, \d+\) \(h, w\), the size of .*jpg, got \(\d+,'),
        (paint_mask, 'expected one channel, .* got 3 channels; write the indices'),
        (add_class, '0 to 1, for background crack, and 255 for what is ignored, got 2'),
        (stretch_masks, 'got only 0 and 255, of which 255 is ignored; .*// 255'),
        (empty_masks, 'got only 255, of which 255 is ignored'),
    ],
)
def test_demo_names_what_is_wrong_with_a_folder(
    cracks, tmp_path, damage, message, capsys
):
    damage(cracks)
    classes = ['background', 'crack']
    with pytest.raises(segmentation.DataError, match=message):
        segmentation.read_classes(cracks, classes)
    options = ['--task', 'segmentation', '--work-dir', str(tmp_path / 'out')]
    options += ['--data', str(cracks), '--classes', *classes]
    assert demo.main(options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ')
    assert captured.out == ''


@pytest.mark.parametrize('orientation', [6, 8])
def test_a_mask_is_as_a_viewer_shows_the_image(cracks, orientation):
    """A camera held upright stores the pixels turned, and says so in a tag."""
    classes = ['background', 'crack']
    path, mask = cracks / 'images' / 'train' / '000001.jpg', mask_paths(cracks)[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = 90 if orientation == 6 else -90
    with Image.open(path) as image:
        image.rotate(turns, expand=True).save(path, exif=exif)
    shown = cv2.imread(str(path)).shape[:2]
    assert shown == read_mask(mask).shape
    segmentation.read_classes(cracks, classes)
    write_mask(mask, np.rot90(read_mask(mask), turns // 90))
    with pytest.raises(
        segmentation.DataError,
        match='EXIF tag turns it: the mask has to be as a viewer',
    ):
        segmentation.read_classes(cracks, classes)


def test_one_class_is_too_few(cracks):
    with pytest.raises(
        segmentation.DataError, match=r'2 to 255 classes, .* got 1: crack'
    ):
        segmentation.read_classes(cracks, ['crack'])


@pytest.mark.parametrize('options', [['--data', 'x'], ['--task', 'segmentation']])
def test_classes_are_for_folders_of_segmentation(options, capsys):
    with pytest.raises(SystemExit):
        demo.parse_args([*options, '--classes', 'background', 'crack'])
    expected = '--classes: expected the task segmentation with --data'
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_demo_on_a_folder(cracks, tmp_path):
    options = ['--task', 'segmentation', '--work-dir', str(tmp_path), '--iters', '2']
    options += ['--data', str(cracks), '--classes', 'background', 'crack']
    printed = run_program(QUICKSTART / 'demo.py', *options, cwd=tmp_path)
    assert printed.errors == ''
    for text in ('2 classes', 'mIoU', 'background', 'crack', '2 predictions'):
        assert text in printed.output
    assert cv2.imread(tmp_path / 'predictions.png').std() > 0
    config = Config.fromfile(tmp_path / 'upernet_internimage-nano_folder.py')
    assert config.model.decode_head.num_classes == 2
