"""Numbers from lines, on lines whose numbers are known."""

from __future__ import annotations

import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.evaluation import (
    cells,
    crop_share,
    guess_accuracy,
    measure,
    reliability,
    volume_consistency,
)
from unireason_lib.evaluation.metrics import chance, majority_letters, overlaps, same_words, word_f1


def test_overlaps_of_first_best_and_all_boxes():
    truth = [Box2D(0, 0, 10, 10), Box2D(20, 0, 30, 10)]
    written = [Box2D(0, 0, 10, 5), Box2D(20, 0, 30, 10), Box3D(0, 0, 0, 10, 10, 1)]
    assert overlaps(written, truth) == {"iou_first": 0.5, "iou_best": 1.0, "iou_all": 0.75}
    assert overlaps([], truth) == {"iou_first": 0.0, "iou_best": 0.0, "iou_all": 0.0}
    assert overlaps(written, []) == {"iou_first": None, "iou_best": None, "iou_all": None}
    cuboid = Box3D(0, 0, 0, 10, 10, 4)
    assert overlaps([Box3D(0, 0, 2, 10, 10, 6)], [cuboid])["iou_best"] == pytest.approx(
        1 / 3, abs=1e-6
    )
    assert overlaps([Box2D(0, 0, 10, 10)], [cuboid])["iou_best"] == 0  # a rectangle is no cuboid


def test_crop_share_counts_slices():
    assert crop_share([(32, 32)], 1, (64, 64, 1)) == 0.25
    assert crop_share([(64, 64)] * 2, 1, (64, 64, 8)) == 0.25
    assert crop_share([(32, 32), (64, 64)], 2, (64, 64, 1)) == 0.625
    assert crop_share([], 0, (64, 64, 1)) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The left kidney.", "left kidney", True),
        ("Ödem", "ödem", True),
        ("a", "A", True),
        ("left kidney", "right kidney", False),
        ("", "", False),
        ("?", "!", False),
        ("肝脏", "肝脏。", True),
    ],
)
def test_short_answers_are_compared_in_words(one, other, same):
    assert same_words(one, other) is same


def test_word_f1():
    assert word_f1("the left lung", "left lung") == 1.0
    assert word_f1("in the left lung", "left lung") == pytest.approx(0.8)
    assert word_f1("", "left") == word_f1("right", "left") == 0.0


def test_cells_by_dimension_and_family(line):
    lines = [
        line(f"a{k}", f"p{k}", right=k < 6, dimension="2d", family="lesion analysis")
        for k in range(8)
    ]
    lines += [
        line(f"b{k}", f"q{k}", right=k < 1, dimension="3d", family="size comparison")
        for k in range(4)
    ]
    lines += [line("n", "q9", right=None, dimension="3d", family="size comparison")]
    lines += [{**line("e", "q8"), "error": {"type": "ScanError", "message": "lost"}}]
    table = {(cell.dimension, cell.family): cell for cell in cells(lines, samples=200)}
    assert list(table) == [
        ("all", "all"),
        ("2d", "all"),
        ("3d", "all"),
        ("all", "lesion analysis"),
        ("all", "size comparison"),
        ("2d", "lesion analysis"),
        ("3d", "size comparison"),
    ]
    everything = table["all", "all"]
    assert everything.n == 13 and everything.patients == 13  # the failed one is not among them
    assert everything.values["accuracy"].value == pytest.approx(7 / 13)
    assert table["2d", "all"].values["accuracy"].value == 0.75
    assert table["3d", "size comparison"].values["accuracy"].value == pytest.approx(1 / 5)
    assert table["3d", "size comparison"].values["abstained"].value == pytest.approx(1 / 5)
    assert table["2d", "all"].values["abstained"].value == 0
    assert everything.values["blind"] is None and everything.values["iou_best"] is None


def test_baselines_stand_beside(line):
    letters = ["A", "A", "A", "B"]
    lines = [
        line(
            f"{k}",
            f"p{k}",
            truth=letter,
            prediction="A",
            correct=letter == "A",
            guess="B" if k else None,
        )
        for k, letter in enumerate(letters)
    ]
    blind = [line(f"{k}", f"p{k}", right=k == 0) for k in range(4)] + [
        line("other", "x", right=True)
    ]
    (everything,) = cells(lines, blind, samples=100)
    assert everything.values["majority"].value == 0.75 and majority_letters(lines) == {"2d": "A"}
    assert everything.values["guess"].value == pytest.approx(1 / 3) == guess_accuracy(lines).value
    assert everything.values["guess"].n == 3  # where nothing is known by heart there is no guess
    assert everything.values["blind"].value == 0.25 and everything.values["blind"].n == 4
    assert chance(lines) == 0.5


def test_measures_take_functions_and_open_answers(line):
    lines = [
        line("o", options={}, truth="left lung", prediction="left", answer="left", correct=False)
    ]
    assert measure(lines, "word_f1").value == pytest.approx(2 / 3)
    assert measure(lines, "abstained") is None and majority_letters(lines) == {"2d": ""}
    assert measure(lines, lambda one: one["rounds"] + 1.0).value == 2
    assert measure([], "accuracy") is None


def test_costs_are_no_shares(line):
    found = measure([line(f"{k}", f"p{k}", rounds=1) for k in range(5)], "rounds")
    assert (found.low, found.value, found.high, found.method) == (1, 1, 1, "bootstrap")


def test_reliability_relates_boxes_to_answers(line):
    ious = [0.0, 0.05, 0.1, 0.45, 0.5, 0.69, 0.7, 1.0]
    lines = [line(f"{k}", f"p{k}", right=iou >= 0.5, iou_best=iou) for k, iou in enumerate(ious)]
    bins = reliability([*lines, line("no truth")])
    assert [(b.low, b.n) for b in bins] == [(0.0, 2), (0.1, 1), (0.3, 1), (0.5, 2), (0.7, 2)]
    assert [b.accuracy.value for b in bins] == [0, 0, 0, 1, 1]


def test_volume_consistency_takes_every_spanned_slice():
    cuboid = Box3D(0, 0, 2, 10, 10, 6)
    same, half = Box2D(0, 0, 10, 10), Box2D(0, 0, 10, 5)
    assert volume_consistency(cuboid, dict.fromkeys(range(2, 6), same)) == 1
    assert volume_consistency(cuboid, {2: same, 3: half, 4: None, 9: same}) == pytest.approx(
        1.5 / 4
    )
    assert volume_consistency(cuboid, {2: same, 3: same}, depth=4) == 1
    with pytest.raises(ValueError, match="found none"):
        volume_consistency(cuboid, {}, depth=2)
