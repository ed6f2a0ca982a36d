"""What one reply is worth, the table of a run, comparisons, and slices against volumes."""

from __future__ import annotations

import json
import math

import pytest

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.evaluation import (
    Benchmark,
    Report,
    as_table,
    consistency,
    evaluate,
    measure,
    read_consistency,
    reliability,
    slice_benchmark,
)
from unireason_lib.evaluation.consistency import slices_file
from unireason_lib.evaluation.metrics import crop_fraction, overlaps, same_words, word_f1
from unireason_lib.evaluation.report import blank_file
from unireason_lib.grounding import Settings
from unireason_lib.inference import read_results

# --- one reply ---------------------------------------------------------------------------------


def test_overlaps_of_first_best_and_all_boxes():
    truth = [Box2D(0, 0, 10, 10), Box2D(20, 0, 30, 10)]
    written = [Box2D(0, 0, 10, 5), Box2D(20, 0, 30, 10), Box3D(0, 0, 0, 10, 10, 1)]
    assert overlaps(written, truth) == {"iou_first": 0.5, "iou_best": 1.0, "iou_all": 0.75}
    assert overlaps([], truth) == {"iou_first": 0.0, "iou_best": 0.0, "iou_all": 0.0}
    assert overlaps(written, []) == {"iou_first": None, "iou_best": None, "iou_all": None}
    cuboid = Box3D(0, 0, 0, 10, 10, 4)
    assert overlaps([Box3D(0, 0, 2, 10, 10, 6)], [cuboid])["iou_best"] == 0.333333
    assert overlaps([Box2D(0, 0, 10, 10)], [cuboid])["iou_best"] == 0  # a rectangle is no cuboid


def test_the_crop_fraction_counts_slices():
    assert crop_fraction([(32, 32)], 1, (64, 64, 1)) == 0.25
    assert crop_fraction([(64, 64)] * 2, 1, (64, 64, 8)) == 0.25
    assert crop_fraction([(32, 32), (64, 64)], 2, (64, 64, 1)) == 0.625
    assert crop_fraction([], 0, (64, 64, 1)) is None


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
    assert word_f1("in the left lung", "left lung") == pytest.approx(0.8)
    assert word_f1("", "left") == word_f1("right", "left") == 0.0


# --- the table ---------------------------------------------------------------------------------


@pytest.fixture
def results(write, line):
    """Forty replies about twenty patients, three in four right, boxes better where right."""
    lines = [
        line(
            f"q{k}",
            f"p{k // 2}",
            k % 4 > 0,
            dimension="3d" if k % 2 else "2d",
            family="lesion analysis" if k < 20 else "size comparison",
            **dict.fromkeys(("iou_first", "iou_best", "iou_all"), 0.6 if k % 4 else 0.2),
        )
        for k in range(40)
    ]
    return write("r.jsonl", lines)


def test_the_table_has_every_measure_with_its_interval(results):
    report = Report.from_file(results)
    table = report.table()
    families = ["lesion analysis", "size comparison"]
    assert list(zip(table["dimension"], table["family"], strict=True)) == [
        (d, family) for family in ("all", *families) for d in ("all", "2d", "3d")
    ]
    first = table.iloc[0]
    assert (first["n"], first["failed"], first["patients"]) == (40, 0, 20)
    assert first["accuracy"] == first["hit"] == 0.75 and first["chance"] == 0.5
    assert first["accuracy_low"] < 0.75 < first["accuracy_high"]
    assert first["iou_best"] == pytest.approx(0.5) and math.isnan(first["blank"])
    assert table.iloc[1]["accuracy"] == 0.5 and table.iloc[2]["accuracy"] == 1.0
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["rows"][0]["n"] == 40 and record["rows"][0]["blank"] is None


def test_markdown_says_how_many_how_sure_and_against_what(results):
    text = Report.from_file(results).to_markdown()
    assert "r.jsonl, benchmark made" in text and "75.0 [" in text and "chance" in text
    assert "no run with blank images yet" in text and "0 failed (counted as wrong)" in text
    assert "Student's t" in text and "0.1-0.3: 0.0 (n 10); 0.5-0.7: 100.0 (n 30)" in text
    assert text.count("\n|") == 9 + 2


def test_baselines_stand_beside(write, line):
    letters = ["A", "A", "A", "B"]
    lines = [
        line(f"{k}", f"p{k}", letter == "A", truth=letter, guess="B" if k else None)
        for k, letter in enumerate(letters)
    ]
    path = write("r.jsonl", lines)
    blank = [line(f"{k}", f"p{k}", k == 0) for k in range(4)] + [line("other", "x")]
    write(blank_file(path).name, blank, control="blank")
    first = Report.from_file(path).table().iloc[0]
    assert first["majority"] == 0.75 and first["chance"] == 0.5 and first["abstained"] == 0
    assert first["question_only"] == pytest.approx(1 / 3)  # where nothing is known, no guess
    assert first["blank"] == 0.25  # of the same questions only
    (row,) = Report(as_table([line("n", right=None)])).table().itertuples()
    assert (row.accuracy, row.abstained) == (0, 1)


def test_blank_images_of_something_else_are_not_taken(results, write, line):
    write(blank_file(results).name, [line("q0")], control="blank", benchmark={"benchmark": "b"})
    assert Report.from_file(results).blank is None


def test_other_files_are_refused(tmp_path, write):
    with pytest.raises(RequestError, match="lines of an evaluation, found none"):
        Report.from_file(write("empty.jsonl", []))
    (tmp_path / "x.jsonl").write_text('{"id": "a", "choice": "B"}\n', encoding="utf-8")
    with pytest.raises(RequestError, match="lines of an evaluation"):
        Report.from_file(tmp_path / "x.jsonl")
    with pytest.raises(RequestError, match="no such file"):
        Report.from_file(tmp_path / "none.jsonl")


def test_open_answers_have_their_column(line):
    options = {"options": {}, "truth": "left lung", "correct": False}
    lines = [line(f"o{k}", f"p{k}", **options, prediction="left", answer="left") for k in range(3)]
    report = Report(as_table(lines))
    assert report.table()["word_f1"][0] == pytest.approx(2 / 3)
    assert "word F1" in report.to_markdown() and "abstained" not in report.to_markdown()
    assert measure(report.results, "abstained") is None


def test_reliability_relates_boxes_to_answers(line):
    overlap = [0.0, 0.05, 0.1, 0.45, 0.5, 0.69, 0.7, 1.0]
    lines = [line(f"{k}", f"p{k}", iou >= 0.5, iou_best=iou) for k, iou in enumerate(overlap)]
    bins = reliability(as_table([*lines, line("no truth")]))
    assert list(bins["n"]) == [2, 1, 1, 2, 2] and list(bins["accuracy"]) == [0, 0, 0, 1, 1]


def test_two_runs_are_compared_question_by_question(results, write, line):
    better = [line(f"q{k}", f"p{k // 2}", k % 4 > 0 or k < 30) for k in range(44)]
    one, other = Report.from_file(results), Report.from_file(write("b.jsonl", better))
    found = one.compare(other)
    assert found.questions == 40 and found.a == 0.75 and found.b == pytest.approx(38 / 40)
    assert found.difference.low > 0 and found.mcnemar == pytest.approx(2 / 2**8)
    assert "difference +20.0 points" in found.to_markdown()
    assert one.compare([other, other], also=[one], paired_seeds=True).seeds == (2, 2)
    turned = Report(as_table([line(f"q{k}", f"p{k // 2}", truth="B") for k in range(40)]))
    with pytest.raises(RequestError, match=r"q0 with the right answers 'A' and 'B'"):
        one.compare(turned)


# --- slices and volumes ------------------------------------------------------------------------


def test_slices_are_asked_alone_and_held_against_the_volume(tmp_path, phantoms, scripted):
    """A model that writes one place in volumes and, in images, its upper half."""
    cuboid, rectangle = Box3D(0, 0, 1, 32, 32, 3), Box2D(0, 0, 32, 16)

    def parts(request):
        box = format_box(cuboid if request.dimension == "3d" else rectangle)
        return "<think>", box, "</think>A. Left"

    generator, out = scripted(parts), tmp_path / "r.jsonl"
    how = {"settings": Settings(max_new_tokens=60), "quiet": True}
    evaluate(phantoms, out, generator, **how)
    slices = slice_benchmark(phantoms, read_results(out))
    single = [i for i in phantoms if i.dimension == "3d" and len(i.truth_boxes) == 1]
    assert single and len(slices) == 2 * len(single)
    first = slices.items[0]
    assert first.dimension == "2d" and first.about["slice"] == 1 and "image" in first.question
    parent = next(i for i in single if i.id == first.about["parent"])
    assert parent.about["names"][0] in first.question
    assert first.load()[0].tobytes() == parent.load()[1].tobytes()
    evaluate(slices, slices_file(out), generator, **how)
    found = read_consistency(out)
    assert found.overlap.value == pytest.approx(0.5) and found.boxed == 1
    assert len(found.cuboids) == len(single) and "IoU 0.50" in found.text()
    assert found.to_dict()["cuboids"] == len(single)


def test_slices_without_boxes_count_as_disagreement(line, failed):
    def about(z, cuboid=(0, 0, 1, 10, 10, 3)):
        return {"about": {"parent": "v", "slice": z, "cuboid": list(cuboid)}}

    lines = [line("v#1", **about(1), boxes=[[0, 0, 10, 10]]), line("v#2", **about(2))]
    assert consistency(lines).cuboids == (("v", 0.5),) and consistency(lines).boxed == 0.5
    assert consistency([lines[0], failed("v#2") | about(2)]).overlap is None
    paper = line("v", **about(5, (96, 105, 5, 147, 152, 6)), boxes=[[98, 107, 153, 154]])
    assert consistency([paper]).cuboids[0][1] == pytest.approx(0.7940, abs=5e-5)  # its second case


@pytest.mark.parametrize("box", [[0, 0, 5, 5], [0, 0, 9, 5, 5, 12]])
def test_replies_without_a_cuboid_in_the_volume_raise_no_slices(phantoms, line, box):
    lines = [line(i.id, boxes=[box], frame=[64, 64, 4]) for i in phantoms]
    with pytest.raises(DatasetError, match="begin with a cuboid"):
        slice_benchmark(Benchmark("b", phantoms.items), lines)
