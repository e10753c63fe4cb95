# SPDX-License-Identifier: Apache-2.0
"""What is said about folders of images and masks, and which are refused."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from internimage.data import DataError, check_datasets

pytest.importorskip('mmseg')
SIZE = (20, 30)  # (h, w) of all images
ORIENTATION = 0x0112


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of three and two images with masks of 0, 1 and 255."""
    rng = np.random.default_rng(0)
    for split, number in (('train', 3), ('val', 2)):
        for i in range(number):
            pixels = rng.integers(0, 255, (*SIZE, 3), np.uint8)
            mask = np.uint8(pixels[..., 0] > 127)
            mask[0] = 255
            save(tmp_path / 'images' / split / f'{i}.jpg', pixels)
            save(tmp_path / 'masks' / split / f'{i}.png', mask)
    return tmp_path


def save(path: Path, pixels: np.ndarray, orientation: int = 1) -> None:
    """Write an image; with an orientation, so that a viewer shows these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, stored)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, **({} if orientation == 1 else {'exif': exif}))


def make_config(root: Path, **dataset: object) -> Config:
    loaders = {
        f'{split}_dataloader': dict(
            dataset=dict(
                type='BaseSegDataset',
                data_root=str(root),
                metainfo=dict(classes=('background', 'crack')),
                data_prefix=dict(
                    img_path=f'images/{split}', seg_map_path=f'masks/{split}'
                ),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
                **dataset,
            )
        )
        for split in ('train', 'val')
    }
    return Config(
        dict(default_scope='mmseg', val_evaluator=dict(type='IoUMetric'), **loaders)
    )


def image(root: Path, number: int = 1, suffix: str = '.jpg') -> Path:
    return root / 'images' / 'train' / f'{number}{suffix}'


def mask(root: Path, number: int = 1) -> Path:
    return root / 'masks' / 'train' / f'{number}.png'


def test_a_good_folder_is_counted(root: Path):
    (root / 'masks' / 'train' / '9.png').write_bytes(mask(root).read_bytes())
    (root / 'images' / 'train' / '._1.jpg').write_text('of macOS')
    (root / 'images' / 'train' / 'notes.txt').write_text('hello')
    train, val = check_datasets(make_config(root))
    assert str(train).startswith(
        f'train {root}/images/train\n      3 images of 20 x 30 p'
    )
    assert 'pixels: background ' in str(train)
    assert 'ignored 5 %' in str(train)
    assert 'masks without an image: ' in str(train)
    assert list(train.counts) == ['background', 'crack']
    assert sum(train.counts.values()) == 3 * 19 * 30
    assert not val.left_out
    assert not val.warnings


def read_as_mmseg(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its labels, loaded by the pipeline."""
    config = make_config(root)
    results = dict(
        img_path=str(image(root)),
        seg_map_path=str(mask(root)),
        seg_fields=[],
        label_map=None,
        reduce_zero_label=False,
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        for step in config.train_dataloader.dataset.pipeline:
            results = TRANSFORMS.build(step)(results)
    return results['img'], results['gt_seg_map']


@pytest.mark.parametrize('orientation', [6, 8])
def test_a_mask_is_as_the_image_is_displayed(root: Path, orientation: int):
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:8, :8] = 255
    save(image(root), pixels, orientation)
    labels = np.uint8(pixels[..., 0] > 127)
    save(mask(root), labels)
    loaded, loaded_labels = read_as_mmseg(root)
    assert ((loaded[..., 0] > 127) == loaded_labels).mean() > 0.98
    check_datasets(make_config(root))
    save(mask(root), np.rot90(labels))  # as it is stored
    with pytest.raises(
        DataError,
        match=r'as they are displayed, got \(30, 20\) for \(20, 30\) in .*1.png',
    ):
        check_datasets(make_config(root))


def test_a_turn_that_the_size_does_not_tell_is_said(root: Path):
    save(image(root), np.zeros((*SIZE, 3), np.uint8), orientation=3)
    square = np.zeros((24, 24, 3), np.uint8)
    save(image(root, 2), square, orientation=6)
    save(mask(root, 2), square[..., 0])
    train, _ = check_datasets(make_config(root))
    (warning,) = train.warnings.items()
    assert 'cannot be told' in warning[0]
    assert warning[1].count == 2
    # Where the pipeline leaves images as they are stored, nothing is turned.
    config = make_config(root)
    loading = config.train_dataloader.dataset.pipeline[0]
    loading.color_type = 'color_ignore_orientation'
    assert not check_datasets(config)[0].warnings


@pytest.mark.parametrize('suffix', ['.JPG', '.jpeg', '.png'])
def test_images_of_another_suffix_are_not_dropped(root: Path, suffix: str):
    image(root).rename(image(root, suffix=suffix))
    with pytest.raises(
        DataError, match=rf'one suffix, got .*/1{suffix} beside 2 of .jpg'
    ):
        check_datasets(make_config(root))


def test_images_that_have_no_part_in_it_are_left_out(root: Path):
    save(image(root, 7, '.png'), np.zeros((*SIZE, 3), np.uint8))
    train, _ = check_datasets(make_config(root))
    assert 'left out: images of another suffix than `img_suffix`: ' in str(train)


def drop_mask(root: Path) -> None:
    mask(root).rename(mask(root).with_name('1.PNG'))


def write_high_index(root: Path) -> None:
    save(mask(root), np.full(SIZE, 2, np.uint8))


def write_16_bits(root: Path) -> None:
    Image.fromarray(np.full(SIZE, 256, np.uint16)).save(mask(root))


def write_colours(root: Path) -> None:
    save(mask(root), np.zeros((*SIZE, 3), np.uint8))


def write_ignored(root: Path) -> None:
    for path in (root / 'masks').rglob('*.png'):
        save(path, np.full(SIZE, 255, np.uint8))


def write_text(root: Path) -> None:
    image(root).write_text('<html>')


def write_text_mask(root: Path) -> None:
    mask(root).write_text('<html>')


def drop_folder(root: Path) -> None:
    (root / 'masks').rename(root / 'labels')


def drop_images(root: Path) -> None:
    for path in (root / 'images' / 'train').iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (drop_mask, r'mask of the same name .* no .*/1.png, but 1.PNG'),
        (write_high_index, r'indices from 0 to 1, for background crack.* 2 in .*1.png'),
        (write_16_bits, r'values up to 255, got .*/train/1.png'),
        (write_colours, r'one channel.* got 3 channels in .*1.png'),
        (write_ignored, r'something is labelled, got only 255, which is ignored'),
        (write_text, r'images, got .*/1.jpg, which cannot be opened'),
        (write_text_mask, r'mmseg can read, got .*/1.png: Unidentified'),
        (drop_folder, r'a folder of images and one of masks, got none called .*/masks'),
        (drop_images, r'expected images, got none that ends with .jpg'),
    ],
)
def test_a_faulty_folder_is_refused_by_name(root: Path, damage, message: str):
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        check_datasets(make_config(root))
    assert str(caught.value).startswith(str(root / 'images' / 'train'))


def test_labels_are_those_that_the_model_gets(root: Path):
    """As ADE20K has them: 0 is ignored, and the others become one less."""
    save(mask(root), np.full(SIZE, 2, np.uint8))
    train, _ = check_datasets(make_config(root, reduce_zero_label=True))
    assert train.counts['crack'] == SIZE[0] * SIZE[1]


def test_a_list_chooses(root: Path):
    (root / 'list.txt').write_text('0\n2\n')
    image(root).rename(image(root, suffix='.JPG'))
    config = make_config(root)
    config.train_dataloader.dataset.ann_file = 'list.txt'
    train, _ = check_datasets(config)
    assert '2 images' in str(train)
    assert not train.left_out


def test_a_set_of_another_machine_is_not_looked_at(root: Path):
    config = make_config(root)
    for split in ('train', 'val'):
        dataset = config[f'{split}_dataloader'].dataset
        dataset.data_root = None
        dataset.data_prefix = dict(img_path='s3://images', seg_map_path='s3://masks')
    train, val = check_datasets(config)
    for report in (train, val):
        assert 'not looked at, as it is not on this machine' in str(report)
        assert 's3://images' in str(report)
