# SPDX-License-Identifier: Apache-2.0
"""What is said about COCO files, and which are refused."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from internimage.data import DataError, check_datasets
from internimage.data.coco import read_checked

Change = Callable[[Any], Any]


def change_first(kind: str, **values: Any) -> Change:
    """Return a change of the first image, annotation or category."""
    return lambda content: content[kind][0].update(values)


def change_all(kind: str, **values: Any) -> Change:
    return lambda content: [item.update(values) for item in content[kind]]


def drop(kind: str, key: str) -> Change:
    return lambda content: content[kind][-1].pop(key)


def repeat(kind: str) -> Change:
    return lambda content: content[kind].append(dict(content[kind][0]))


def as_text(content: Any) -> None:
    for annotation in content['annotations']:
        annotation['category_id'] = str(annotation['category_id'])


box = partial(change_first, 'annotations')
FIRST = r'annotation 2 \(1\.png\)'
# A change of the training file, what is said of it.
FAULTS = {
    'a box of NaN': (box(bbox=[float('nan'), 1, 5, 5]), f'{FIRST} with .nan, 1, 5, 5'),
    'an infinite box': (box(bbox=[1, 1, float('inf'), 5]), f'4 finite .*{FIRST}'),
    'a negative width': (box(bbox=[9, 9, -5, 5]), 'positive width .* not two corners'),
    'a box of text': (box(bbox=['1', '2', '3', '4']), f'4 finite numbers.*{FIRST}'),
    'a box of 3': (box(bbox=[1, 2, 3]), f'bbox of 4 finite .*{FIRST}'),
    'a box of 0': (
        box(bbox=[9, 9, 0, 5]),
        'narrower or lower than 1 .* 1 of 8.*9, 9, 0',
    ),
    'a box outside': (box(bbox=[70, 5, 9, 9]), f'outside of the image.*{FIRST}'),
    'a place below 0': (box(bbox=[-20, 5, 9, 9]), f'outside of the image.*{FIRST}'),
    'left of the image': (box(bbox=[-9, 5, 9, 9]), f'outside of the image.*{FIRST}'),
    'right of it': (box(bbox=[60, 5, 9, 9]), f'outside of the image.*{FIRST}'),
    'above it': (box(bbox=[5, -9, 9, 9]), f'outside of the image.*{FIRST}'),
    'below it': (box(bbox=[5, 40, 9, 9]), f'outside of the image.*{FIRST}'),
    'area 0': (change_all('annotations', area=0), 'area 0 or less .* 8 of 8'),
    'one area 0': (box(area=0), f'area 0 or less .* 1 of 8.*{FIRST}.* width times'),
    **{
        f'area 0 at the border, {x} {y}': (
            box(bbox=[x, y, 9, 9], area=0),
            f'area 0 or less .* 1 of 8.*{FIRST}',
        )
        for x, y in ((-8, 5), (59, 5), (5, -8), (5, 39))
    },
    'area NaN': (box(area=float('nan')), f'a finite number of pixels.*{FIRST}'),
    'no area': (drop('annotations', 'area'), r'annotation 9 \(4.png\) with None; with'),
    'no box': (drop('annotations', 'bbox'), 'bbox of 4 .* annotation 9'),
    'no id': (drop('annotations', 'id'), 'annotations, that are integers, got'),
    'no image id': (drop('images', 'id'), r'id of each image, got image None \(4.png'),
    'no height': (drop('images', 'height'), r'image 4 \(4.png\) with \[None, 60\]'),
    'no file name': (drop('images', 'file_name'), 'a file_name for each image'),
    'no category name': (drop('categories', 'name'), 'a name for each category'),
    'no category id': (
        drop('annotations', 'category_id'),
        '9 .* with category_id None',
    ),
    'no image of it': (drop('annotations', 'image_id'), 'annotation 9 with None'),
    'its image as text': (box(image_id='1'), "an image_id .* annotation 2 with '1'"),
    'ids as text': (
        as_text,
        "integers, got .* category_id '1', .* and 5 more; write 1",
    ),
    'a crowd of text': (box(iscrowd='0'), f"iscrowd .* {FIRST} with '0'"),
    'an unknown category': (box(category_id=2), f'{FIRST} of category 2; .* start at'),
    'an image twice': (repeat('images'), r'each id once, got image 1 \(1.png\) again'),
    'an annotation twice': (repeat('annotations'), 'once, got annotation 2 .*again'),
    'a category twice': (repeat('categories'), 'once, got category 1 again'),
    'a missing image': (
        change_first('images', file_name='9.png'),
        r'no .*/train/9.png',
    ),
    'another case': (change_first('images', file_name='1.PNG'), r'1.PNG, but 1.png'),
    'another size': (
        change_all('images', width=50),
        r'\(40, 60\), in the file \(40, 50',
    ),
    'no list': (lambda content: content.pop('images'), 'no list of images in'),
    'no objects': (lambda content: content['annotations'].clear(), 'none in 0 images'),
    'a name twice': (
        change_all('categories', name='person'),
        "each category name once, got 'person' again, with id 4",
    ),
    'a misspelt class': (
        change_first('categories', name='persn'),
        "no 'person' among its 2 categories .*; did you mean 'persn'",
    ),
    'another order': (
        lambda content: content['categories'].reverse(),
        r"in the order of .*; write classes=\('chair', 'person'\)",
    ),
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_faulty_file_is_refused_by_name(coco_folder, name):
    change, message = FAULTS[name]
    coco_folder.edit(change)
    with pytest.raises(DataError, match=message) as caught:
        check_datasets(coco_folder.config())
    assert str(caught.value).startswith(str(coco_folder.root / 'train'))
    assert '\n' not in str(caught.value)


# A change of both files, what is said of the first and of the second.
MASK_FAULTS = {
    'none': (drop('annotations', 'segmentation'), 'segmentation .*learns from masks'),
    'two points': (box(segmentation=[[1, 2, 30, 31]]), 'no polygon of 3 points'),
    'nothing': (box(segmentation=[[]]), 'no polygon of 3 points'),
    'an odd number': (box(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), 'no polygon of 3'),
    'NaN': (box(segmentation=[[1, 2, 3, 4, 5, float('nan')]]), 'of finite numbers'),
    'another size': (
        box(segmentation={'size': [60, 40], 'counts': [2400]}),
        r'\[60, 40\], its image is \[40, 60\]',
    ),
    'too few runs': (
        box(segmentation={'size': [40, 60], 'counts': [9, 9]}),
        'cover the image exactly',
    ),
    'damaged runs': (
        box(segmentation={'size': [40, 60], 'counts': 'é'}),
        'cover the image exactly',
    ),
}


@pytest.mark.parametrize('name', MASK_FAULTS)
def test_a_faulty_mask_is_refused_where_masks_are_read(coco_folder, name):
    change, message = MASK_FAULTS[name]
    for split in ('train', 'val'):
        coco_folder.edit(change, split)
    check_datasets(coco_folder.config())
    with pytest.raises(DataError) as caught:
        check_datasets(coco_folder.config(with_mask=True))
    lines = str(caught.value).splitlines()
    assert [line.split(':')[0] for line in lines] == [
        str(coco_folder.path(split)) for split in ('train', 'val')
    ]
    for line in lines:
        assert re.search(message, line), line


def test_iscrowd_is_needed_where_pycocotools_evaluates(coco_folder):
    coco_folder.edit(drop('annotations', 'iscrowd'), 'train')
    check_datasets(coco_folder.config())
    coco_folder.edit(drop('annotations', 'iscrowd'), 'val')
    with pytest.raises(DataError, match=r'val.json.* 0 or 1, got annotation 5 .* None'):
        check_datasets(coco_folder.config())


def test_a_validation_set_without_objects_is_refused(coco_folder):
    coco_folder.edit(lambda content: content['annotations'].clear(), 'val')
    with pytest.raises(DataError, match=r'val.json.* objects .* none in 2 images'):
        check_datasets(coco_folder.config())
    config = coco_folder.config()
    config.val_evaluator.format_only = True
    check_datasets(config)


def test_all_kinds_of_faults_are_said_at_once(coco_folder):
    coco_folder.edit(drop('annotations', 'area'))
    coco_folder.edit(drop('images', 'height'))
    coco_folder.edit(drop('annotations', 'id'), 'val')
    with pytest.raises(DataError) as caught:
        check_datasets(coco_folder.config())
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, r'annotation file, got No such file'),
        (b'\xef\xbb\xbf{}', 'byte-order mark'),
        (b'{"images": [', r'expected JSON, got in it: .* line 1'),
        (b'{"name": "\xff"}', 'JSON in UTF-8'),
        (b'[]', 'a list of each of images, annotations, categories, .* in list'),
        (b'{"images": [1], "annotations": [], "categories": []}', 'JSON objects, got'),
    ],
)
def test_a_file_that_is_not_coco_is_refused(coco_folder, content, message):
    path = coco_folder.path('train')
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        check_datasets(coco_folder.config())
    assert str(path) in str(caught.value)


def test_a_file_to_be_copied_is_checked_wholly(coco_folder):
    path = coco_folder.root / 'train.json'
    assert read_checked(path, needs_crowd=True) == coco_folder.content(4)
    coco_folder.edit(drop('images', 'file_name'))
    with pytest.raises(DataError, match='a file_name for each image'):
        read_checked(path, needs_crowd=True)


def test_an_image_that_cannot_be_opened_is_named(coco_folder):
    (coco_folder.root / 'train' / '2.png').write_text('<html>')
    with pytest.raises(DataError, match=r'train/2.png, which cannot be opened'):
        check_datasets(coco_folder.config())


def test_an_exif_tag_turns_the_size(coco_folder):
    path = coco_folder.root / 'train' / '1.png'
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.rotate(90, expand=True).save(path.with_suffix('.jpg'), exif=exif)
    coco_folder.edit(change_first('images', file_name='1.jpg'))
    train, _ = check_datasets(coco_folder.config())
    assert 'an EXIF tag turns' in str(train)
    coco_folder.edit(change_first('images', file_name='1.jpg', height=60, width=40))
    with pytest.raises(DataError, match=r'1.jpg of \(40, 60\), in the file \(60, 40\)'):
        check_datasets(coco_folder.config())


def test_a_few_slips_are_left_out_and_named(coco_folder):
    content = coco_folder.content(4)
    content['annotations'] *= 5
    for number, annotation in enumerate(content['annotations'], start=1):
        content['annotations'][number - 1] = {**annotation, 'id': number}
    content['annotations'][11]['bbox'] = [9, 9, 12, 0]
    content['annotations'][12]['bbox'] = [50, 9, 25, 9]
    content['annotations'][13]['ignore'] = 1
    content['annotations'][14]['iscrowd'] = 1
    content['categories'].insert(0, {'id': 7, 'name': 'egg'})
    content['annotations'][15]['category_id'] = 7
    coco_folder.write('train', content)
    config = coco_folder.config()
    train, _ = check_datasets(config)
    assert train.counts == {'person': 19, 'chair': 17}
    text = str(train)
    assert '4 images of 40 x 60 pixels (h x w), 36 objects: person 19, chair 17' in text
    assert '1 crowds' in text
    assert 'left out: boxes narrower or lower than 1 pixel: annotation 12' in text
    assert 'beyond their image by more than a pixel' in text
    assert 'annotation 13 (3.png) with [50, 9, 25, 9]' in text
    assert 'marked with `ignore`: annotation 14' in text
    assert 'not in `classes`: annotation 16 (4.png), a egg' in text
    # These are the objects that the class gives to the model.
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config.train_dataloader.dataset)
    instances = [i for record in dataset for i in record['instances']]
    assert sum(not instance['ignore_flag'] for instance in instances) == 36


@pytest.mark.parametrize('place', [(-8, 5), (59, 5), (5, -8), (5, 39)])
def test_a_box_with_a_pixel_in_its_image_is_learned(coco_folder, place):
    coco_folder.edit(box(bbox=[*place, 9, 9]))
    config = coco_folder.config()
    train, _ = check_datasets(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config.train_dataloader.dataset)
    num_learned = sum(len(record['instances']) for record in dataset)
    assert sum(train.counts.values()) == num_learned == 8
    assert 'left out' not in str(train)


def test_what_is_tolerated_can_be_set(coco_folder):
    coco_folder.edit(box(area=0))
    config = coco_folder.config(data_check=dict(max_left_out_rate=0.2))
    assert 'area 0 or less: annotation 2' in str(check_datasets(config)[0])
    config.data_check = False
    assert check_datasets(config) == []
    config.data_check = dict(max_left_out=1)
    with pytest.raises(ValueError, match=r"expected .*'max_left_out_rate'.*or False"):
        check_datasets(config)


def test_a_large_set_is_opened_at_even_distances(coco_folder, monkeypatch):
    opened = []
    real_open = Image.open
    monkeypatch.setattr(
        Image, 'open', lambda path, *args: opened.append(path) or real_open(path)
    )
    check_datasets(coco_folder.config(data_check=dict(max_opened=2)))
    names = [str(path).rsplit('/', 2)[-2:] for path in opened]
    assert names == [
        ['train', '1.png'],
        ['train', '3.png'],
        *(['val', f'{i}.png'] for i in (1, 2)),
    ]


def test_data_sets_in_wrappers_are_looked_at(coco_folder):
    config = coco_folder.config()
    inner = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=3,
        dataset=dict(type='ConcatDataset', datasets=[inner, inner]),
    )
    assert [report.split for report in check_datasets(config)] == [
        'train',
        'train',
        'val',
    ]
    coco_folder.edit(drop('annotations', 'area'))
    with pytest.raises(DataError, match='annotation 9'):
        check_datasets(config)


def test_splits_have_the_same_classes(coco_folder):
    config = coco_folder.config()
    config.val_dataloader.dataset.metainfo = dict(classes=('chair',))
    with pytest.raises(
        DataError, match=r'1 here and 2 in .*train.json, not in both: p'
    ):
        check_datasets(config)


def test_other_data_sets_are_left_alone(coco_folder):
    config = coco_folder.config()
    config.train_dataloader.dataset.update(type='CocoPanopticDataset')
    train, _ = check_datasets(config)
    assert 'not looked at: nothing here knows how CocoPanopticDataset reads' in str(
        train
    )


def test_the_evaluator_has_the_file_of_the_data_set(coco_folder):
    config = coco_folder.config()
    config.val_evaluator.ann_file = str(coco_folder.path('train'))
    _, val = check_datasets(config)
    assert 'the evaluator measures with another file' in str(val)
    config.val_evaluator.ann_file = 'data/coco/annotations/instances_val2017.json'
    with pytest.raises(DataError, match=r'val.json: .* evaluator .* does not exist'):
        check_datasets(config)
