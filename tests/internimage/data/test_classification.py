# SPDX-License-Identifier: Apache-2.0
"""What is said about folders of classes, and which are refused."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from internimage.data import DataError, check_datasets

pytest.importorskip('mmpretrain')
CLASSES = ('apple', 'fig', 'pear')


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of 2, 3 and 4 images to learn from, and 1 of each class."""
    for number, name in enumerate(CLASSES, start=2):
        for split, count in (('train', number), ('val', 1)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new('RGB', (30, 20 + number)).save(folder / f'{i}.png')
    return tmp_path


def make_config(root: Path, classes: tuple[str, ...] | None = CLASSES) -> Config:
    loaders = {
        f'{split}_dataloader': dict(
            dataset=dict(
                type='CustomDataset',
                data_root=str(root),
                data_prefix=split,
                pipeline=[dict(type='LoadImageFromFile')],
                **({'metainfo': dict(classes=classes)} if classes else {}),
            )
        )
        for split in ('train', 'val')
    }
    return Config(
        dict(default_scope='mmpretrain', val_evaluator=dict(type='Accuracy'), **loaders)
    )


@pytest.mark.parametrize('classes', [CLASSES, None])
def test_good_folders_are_counted(root: Path, classes):
    (root / 'train' / 'pear' / 'more').mkdir()
    (root / 'train' / 'pear' / '3.png').rename(
        root / 'train' / 'pear' / 'more' / '3.PNG'
    )
    train, _ = check_datasets(make_config(root, classes))
    assert train.counts == {'apple': 2, 'fig': 3, 'pear': 4}
    assert '9 images of 22 x 30 to 24 x 30 pixels (h x w): apple 2, fig 3' in str(train)


def test_names_may_have_nothing_in_common_with_the_folders(root: Path):
    """As those of ImageNet: n01440764 is a tench."""
    train, _ = check_datasets(make_config(root, ('tench', 'goldfish', 'shark')))
    assert train.counts == {'tench': 2, 'goldfish': 3, 'shark': 4}


def test_files_that_are_not_read_are_named(root: Path):
    (root / 'train' / 'fig' / '0.png').rename(root / 'train' / 'fig' / '0.webp')
    (root / 'train' / 'fig' / 'notes.txt').write_text('hello')
    shutil.copy(root / 'train' / 'fig' / '1.png', root / 'train' / '1.png')
    train, _ = check_datasets(make_config(root))
    assert train.counts['fig'] == 2
    assert {reason: tally.count for reason, tally in train.left_out.items()} == {
        'images that are in no folder of a class': 1,
        'images of a suffix that is not read': 1,
        'files that are not images': 1,
    }


def test_a_class_without_an_image_is_named(root: Path):
    shutil.rmtree(root / 'train' / 'fig')
    (root / 'train' / 'fig').mkdir()
    train, _ = check_datasets(make_config(root))
    assert 'warning: classes that nothing is labelled with: fig' in str(train)


def drop_val_class(root: Path) -> None:
    shutil.rmtree(root / 'val' / 'fig')


def rename_val_class(root: Path) -> None:
    (root / 'val' / 'fig').rename(root / 'val' / 'zig')


def add_hidden_folder(root: Path) -> None:
    (root / 'val' / '.cache').mkdir()


def write_text(root: Path) -> None:
    (root / 'val' / 'fig' / '0.png').write_text('<html>')


def drop_folder(root: Path) -> None:
    shutil.rmtree(root / 'val')


def drop_images(root: Path) -> None:
    for path in (root / 'val').rglob('*.png'):
        path.unlink()


@pytest.mark.parametrize(
    ('damage', 'classes', 'message'),
    [
        (drop_val_class, CLASSES, 'got 2 folders for 3 classes, none called fig'),
        (drop_val_class, None, '2 here and 3 in .*/train, not in both: fig'),
        (rename_val_class, CLASSES, 'none called fig, others called zig'),
        (rename_val_class, None, '3 here and 3 in .*/train, not in both: fig, zig'),
        (rename_val_class, ('a', 'b', 'c'), 'not in both: fig, zig'),
        (add_hidden_folder, None, 'folders of classes alone, got .cache'),
        (write_text, None, 'are there, got .*/fig/0.png, which cannot be opened'),
        (drop_folder, None, '/val: No such file or directory'),
        (drop_images, None, 'mmpretrain can read, got .*Found 0 files'),
    ],
)
def test_faulty_folders_are_refused_by_name(root: Path, damage, classes, message: str):
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        check_datasets(make_config(root, classes))
    assert str(caught.value).startswith(str(root / 'val'))


def test_classes_in_another_order_than_the_folders_are_refused(root: Path):
    with pytest.raises(
        DataError, match=r"sorted by name.*classes=\('apple', 'fig', 'pe"
    ):
        check_datasets(make_config(root, ('pear', 'fig', 'apple')))


def write_lists(root: Path, extra: str = '') -> Config:
    config = make_config(root)
    for split in ('train', 'val'):
        lines = [f'{name}/0.png {label}' for label, name in enumerate(CLASSES)]
        (root / f'{split}.txt').write_text('\n'.join([*lines, extra]).strip())
        config[f'{split}_dataloader'].dataset.ann_file = f'{split}.txt'
    return config


def test_a_list_is_counted(root: Path):
    train, _ = check_datasets(write_lists(root))
    assert train.counts == {'apple': 1, 'fig': 1, 'pear': 1}


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('fig/9.png 1', r'images that are there, got no .*/fig/9.png'),
        ('fig/0.png 3', 'labels from 0 .* got 3, and there are 3 classes'),
        ('fig/0.png -1', 'labels from 0 .* got -1'),
        ('fig/0.png', 'that mmpretrain can read, got '),
    ],
)
def test_a_faulty_list_is_refused(root: Path, line: str, message: str):
    with pytest.raises(DataError, match=message):
        check_datasets(write_lists(root, line))


def test_a_batch_that_is_dropped_is_no_training(root: Path):
    config = make_config(root)
    config.train_dataloader.update(batch_size=10, drop_last=True)
    with pytest.raises(DataError, match='at least one batch, got 9 images for ba'):
        check_datasets(config)
    config.train_dataloader.batch_size = 9
    check_datasets(config)
