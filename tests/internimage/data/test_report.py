# SPDX-License-Identifier: Apache-2.0
"""What a report writes of many classes, and of sizes."""

from internimage.data.report import list_counts, list_sizes


def test_few_classes_are_listed_in_their_order():
    assert list_counts({'b': 3, 'a': 12.5}, ' %') == 'b 3 %, a 12.5 %'
    counts = {f'c{i}': i for i in range(20)}
    assert list_counts(counts).count(',') == 19


def test_of_many_classes_the_most_and_the_fewest_are_listed():
    counts = {f'c{i}': (7 * i) % 21 + i / 100 for i in range(1, 22)}
    assert list_counts(counts) == (
        '21 classes, most: c20 14.2, c17 14.17, c14 14.14, c11 14.11, c8 14.08; '
        'fewest: c15 0.15, c12 0.12, c9 0.09, c6 0.06, c3 0.03'
    )


def test_sizes_are_ordered_by_area():
    assert list_sizes([(40, 60)]) == '40 x 60'
    assert list_sizes([(60, 40), (30, 70), (9, 300)]) == '30 x 70 to 9 x 300'
