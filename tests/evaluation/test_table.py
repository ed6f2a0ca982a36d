"""Replies as a table, what is computed from it, the pooled table, and slices against volumes."""

import gzip
import json
import math
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from unireason_lib.ablation import load_grid
from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.evaluation import (
    as_table,
    compare,
    evaluate,
    holm,
    mean,
    read_table,
    report,
    slice_benchmark,
    slice_consistency,
    summary,
)
from unireason_lib.evaluation import table as tables
from unireason_lib.evaluation.table import beside, consistency, pooled, read_pooled, select
from unireason_lib.grounding import Settings
from unireason_lib.inference import read_results

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "data" / "results"


# --- a run -------------------------------------------------------------------------------------


@pytest.fixture
def results(write, line):
    """Forty replies about twenty patients, three in four right, boxes better where right."""
    lines = []
    for k in range(40):
        about = dict.fromkeys(("iou_first", "iou_best", "iou_all"), 0.6 if k % 4 else 0.2)
        about |= {"family": "lesion analysis" if k < 20 else "size comparison"}
        about |= {"dimension": "3d" if k % 2 else "2d"}
        lines.append(line(f"q{k}", f"p{k // 2}", k % 4 > 0, **about))
    return write("r.jsonl", lines)


def test_the_summary_has_every_measure_with_its_interval(results):
    table, text = report(results)
    rows = product(("all", "lesion analysis", "size comparison"), ("all", "2d", "3d"))
    assert list(zip(table["family"], table["dimension"], strict=True)) == [*rows]
    first = table.iloc[0]
    assert (first["n"], first["failed"], first["patients"]) == (40, 0, 20)
    assert first["accuracy"] == first["hit"] == 0.75 and first["chance"] == 0.5
    assert first["accuracy_low"] < 0.75 < first["accuracy_high"]
    assert first["iou_best"] == pytest.approx(0.5) and math.isnan(first["blank"])
    assert table.iloc[1]["accuracy"] == 0.5 and table.iloc[2]["accuracy"] == 1.0
    assert "75.0 (" in text and "chance" in text and "0 failed (counted as wrong)" in text
    assert "no run with blank images yet" in text and "Student's t" in text and "nan" not in text


def test_baselines_stand_beside(write, line):
    lines = [
        line(f"{k}", f"p{k}", letter == "A", truth=letter, guess="B" if k else None)
        for k, letter in enumerate("AAAB")
    ]
    path = write("r.jsonl", lines)
    blank = [line(f"{k}", f"p{k}", k == 0) for k in range(4)] + [line("other", "x")]
    write(beside(path, "blank").name, blank, control="blank")
    first = report(path)[0].iloc[0]
    assert first["majority"] == 0.75 and first["chance"] == 0.5 and first["abstained"] == 0
    assert first["question_only"] == pytest.approx(1 / 3)  # where nothing is known, no guess
    assert first["blank"] == 0.25  # of the same questions only
    (row,) = summary(as_table([line("n", right=None)])).iloc[:1].itertuples()
    assert (row.accuracy, row.abstained) == (0, 1) and math.isnan(row.followed)
    path = write("s.jsonl", lines)  # blank images of another benchmark are not taken
    write(beside(path, "blank").name, blank, control="blank", benchmark={"name": "b"})
    assert "no run with blank images" in report(path)[1]


def test_other_files_are_refused(tmp_path, write):
    with pytest.raises(RequestError, match="lines of an evaluation, found none"):
        read_table(write("empty.jsonl", []))
    (tmp_path / "x.jsonl").write_text('{"id": "a", "choice": "B"}\n', encoding="utf-8")
    with pytest.raises(RequestError, match="lines of an evaluation"):
        report(tmp_path / "x.jsonl")
    with pytest.raises(RequestError, match="no such file"):
        read_table(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("text", "letter", "concluded", "followed"),
    [
        ("<think>The left one. Hence the right one.</think>B. The right one", "B", 1, 1),
        ("<think>Hence the right one.</think>A. The left one", "A", 1, 0),  # letter of another
        ("<think>Hence the left one.</think>B. The right one", "B", 0, 0),
        ("<think>Hence that.</think>B. The right one", "B", 0, None),
        ("<think>Hence the right one", None, 0, None),  # cut off
        ("B. The right one", "B", 0, None),
    ],
)
def test_rationale_answer_consistency_is_told_apart_from_accuracy(
    line, text, letter, concluded, followed
):
    asked = {"options": {"A": "The left one", "B": "The right one"}, "truth": "B"}
    one = line("q0", right=letter == "B", text=text, **asked) | {"prediction": letter}
    other = line("q1", text="<think>x</think>B", **asked)
    row = as_table([one, other]).iloc[0]
    assert row["concluded"] == concluded and row["correct"] == (letter == "B")
    assert row["followed"] == followed or (followed is None and math.isnan(row["followed"]))
    assert {"concluded", "followed_low"} <= {*summary(as_table([one, other]))}


def test_failed_replies_count_as_wrong_in_every_table(write, line, failed):
    """(They were left out in one table and wrong in the other.)"""
    text = "<think>Hence the liver.</think>A. liver"
    lines = [line("q0", "p0", text=text), line("q1", "p1", text=text), failed("q2", "p2")]
    unknown = {**failed("q3", "p2"), "truth": None}  # never scored
    path = write("r.jsonl", [*lines, unknown])
    whole, table = report(path)[0].iloc[0], pooled({("x", 0): path})
    assert whole["accuracy"] == table["correct"].mean() == pytest.approx(2 / 3)
    assert whole["concluded"] == table["concluded"].mean() == pytest.approx(2 / 3)
    assert (whole["n"], whole["failed"]) == (4, 2) and table["failed"].sum() == 2
    assert whole["format"] == table["format"].mean() == 1  # no reply, no format
    good = as_table([line(f"q{k}", f"p{k}", text=text) for k in range(3)])
    assert compare(read_table(path), good).difference.value == pytest.approx(1 / 3)


def test_seeds_without_a_value_are_left_out_of_pairs(results):
    """Seeds 1 and 2 of one were compared with seeds 0 and 1 of the other."""
    one = pd.concat([read_table(results).assign(seed=seed) for seed in range(3)])
    other = one.assign(iou_first=one["iou_first"] + 0.1 * one["seed"])
    one.loc[one["seed"] == 0, "iou_first"] = other.loc[other["seed"] == 2, "iou_first"] = math.nan
    found = compare(one, other, "iou_first", paired_seeds=True)
    assert found.seeds == (1, 1) and found.difference.value == pytest.approx(0.1)


def test_two_runs_are_compared_question_by_question(results, line):
    better = [line(f"q{k}", f"p{k // 2}", k % 4 > 0 or k < 30) for k in range(44)]
    one, other = read_table(results), as_table(better)
    found = compare(one, other)
    assert found.questions == 40 and found.a == 0.75 and found.b == pytest.approx(38 / 40)
    assert found.difference.low > 0 and "+20.0 (+" in found.text()
    turned = as_table([line(f"q{k}", f"p{k // 2}", truth="B") for k in range(40)])
    with pytest.raises(DatasetError, match=r"q0 with the right answers 'A' and 'B'"):
        compare(one, turned)
    with pytest.raises(DatasetError, match="questions that all runs share"):
        compare(one, other.assign(id=other["id"] + "x"))


# --- the pooled table --------------------------------------------------------------------------


@pytest.fixture
def files(write, line):
    """One run of the condition "before", two of "RL", and one of them with blank images."""
    right = {("before", 0): {0}, ("RL", 0): {0, 1, 3}, ("RL", 1): {0, 1}, ("RL", 1, "blank"): {2}}
    about = {k: {"dimension": "2d", "iou_first": 0.25} for k in range(3)} | {3: {"dimension": "3d"}}

    def lines(rights):
        one = partial(line, family="size, comparison")
        return [one(f"q{k}", f"p{k // 2}", k in rights, **about[k]) for k in (3, 0, 1, 2)]

    return {key: write(f"{n}.jsonl", lines(r)) for n, (key, r) in enumerate(right.items())}


def test_the_pooled_table_comes_back(files, tmp_path):
    table = pooled(files)
    assert list(table.columns) == list(tables.POOLED)
    assert list(table["id"][:4]) == "q0 q1 q2 q3".split()
    packed = tmp_path / "t.csv.gz"
    tables.write_pooled(table, packed)
    pd.testing.assert_frame_equal(read_pooled(packed), table, check_dtype=False)
    first = packed.read_bytes()
    assert b'"size, comparison"' in gzip.decompress(first)
    tables.write_pooled(read_pooled(packed), packed)
    assert packed.read_bytes() == first
    packed.write_bytes(first[:-20])
    with pytest.raises(DatasetError, match=r"t\.csv\.gz: expected a pooled table"):
        read_pooled(packed)


def test_rows_are_chosen_by_condition_control_and_more(files):
    table = pooled(files)
    assert len(select(table, "RL")) == 8
    blank = select(table, "RL", control="blank")
    assert blank.set_index("id")["correct"].to_dict() == {"q0": 0, "q1": 0, "q2": 1, "q3": 0}
    assert select(table, "RL", dimension="3d")["correct"].tolist() == [1.0, 0.0]
    before, after = (select(table, name, dimension="2d") for name in ("before", "RL"))
    found = compare(before, after, paired_seeds=True)  # seed 0 only
    assert found.seeds == (1, 1) and found.difference.value == pytest.approx(1 / 3)
    assert mean(select(table, "RL"), "iou_first").n == 6
    with pytest.raises(DatasetError, match=r"rows of 'SFT'.*choose one of RL, before"):
        select(table, "SFT")


@pytest.mark.parametrize(
    "study", sorted(p.relative_to(KEPT).with_suffix("") for p in KEPT.rglob("*.json")), ids=str
)
def test_the_kept_studies_can_be_computed_again(study):
    """Their verdicts stand on the closed form as they did on the bootstrap."""
    kept = json.loads((KEPT / study).with_suffix(".json").read_text(encoding="utf-8"))["verdicts"]
    table, p_values = read_pooled((KEPT / study).with_suffix(".csv.gz")), []
    conditions = load_grid((ROOT / "data" / "ablations" / study).with_suffix(".yaml")).conditions
    assert {one[side] for one in kept for side in ("better", "worse")} <= {*conditions}
    for one in kept:
        where = {key: one[key] for key in ("dimension", "kind") if one.get(key)}
        sides = [select(table, one[side], **where) for side in ("worse", "better")]
        found, before = compare(*sides, one["value"], paired_seeds=True), one["comparison"]
        assert found.difference.value == pytest.approx(before["difference"]["value"], abs=1e-6)
        assert found.p == pytest.approx(before["p"], rel=0.1, abs=0.001)
        p_values.append(found.p)
    decided = {"supported at this scale", "contradicted", "reproduced"}  # the last: of old files
    significant = [one["verdict"] in decided for one in kept]
    assert [p < 0.05 for p in holm(p_values)] == significant


# --- slices and volumes ------------------------------------------------------------------------


def test_slices_are_asked_alone_and_held_against_the_volume(
    tmp_path, phantoms, scripted, checkpoint
):
    """A model that writes one place in volumes and, in images, its upper half."""
    cuboid, rectangle = Box3D(0, 0, 1, 32, 32, 3), Box2D(0, 0, 32, 16)

    def parts(request):
        box = format_box(cuboid if request.dimension == "3d" else rectangle)
        return "<think>", box, "</think>A. Left"

    scripted(parts)
    out, how = tmp_path / "r.jsonl", {"settings": Settings(max_new_tokens=60), "quiet": True}
    evaluate(phantoms, out, checkpoint, **how)
    slices = slice_benchmark(phantoms, read_results(out))
    single = [i for i in phantoms if i.dimension == "3d" and len(i.truth_boxes) == 1]
    assert single and len(slices) == 2 * len(single)
    first = slices.items[0]
    assert first.dimension == "2d" and first.about["slice"] == 1 and "image" in first.question
    parent = next(i for i in single if i.id == first.about["parent"])
    assert parent.about["names"][0] in first.question
    assert first.load()[0].tobytes() == parent.load()[1].tobytes()
    cuboids = slice_consistency(phantoms, out, checkpoint, **how)
    assert len(list(read_results(beside(out, "slices")))) == len(slices)
    assert set(cuboids["id"]) == {item.id for item in single} and (cuboids["boxed"] == 1).all()
    assert mean(cuboids, "overlap").value == pytest.approx(0.5)
    scripted(lambda request: ("<think></think>A. Left",))
    out = evaluate(phantoms, tmp_path / "silent.jsonl", checkpoint, **how)
    assert slice_consistency(phantoms, out, checkpoint, **how) is None


def test_slices_without_boxes_count_as_disagreement(line, failed):
    def about(z, cuboid=(0, 0, 1, 10, 10, 3)):
        return {"about": {"parent": "v", "slice": z, "cuboid": list(cuboid)}}

    lines = [line("v#1", **about(1), boxes=[[0, 0, 10, 10]]), line("v#2", **about(2))]
    (row,) = consistency(lines).itertuples()
    assert (row.id, row.overlap, row.boxed) == ("v", 0.5, 0.5)
    assert mean(consistency([lines[0], failed("v#2") | about(2)]), "overlap") is None
    paper = line("v", **about(5, (96, 105, 5, 147, 152, 6)), boxes=[[98, 107, 153, 154]])
    overlap = consistency([paper])["overlap"][0]
    assert overlap == pytest.approx(0.7940, abs=5e-5)  # its second case


def test_the_average_box_is_that_of_other_patients_and_scales_with_the_image(line):
    def about(name, patient, box, side=64, iou=0.5):
        frame = [side, side, 1]
        return line(name, patient, truth_boxes=[["liver", box]], frame=frame, iou_first=iou)

    lines = [
        about("a", "p", [0, 0, 32, 32]),
        about("b", "q", [0, 0, 32, 64]),
        about("c", "r", [0, 0, 64, 128], side=128),
        about("d", "r", [0, 0, 64, 128], side=128, iou=None),
    ]
    # heights of the others, as fractions: 1, 1, 1; 1/2, 1, 1; 1/2, 1
    expected = pytest.approx([1 / 2, 5 / 6, 3 / 4, math.nan], nan_ok=True)
    table = as_table(lines)
    assert list(table["iou_average_box"]) == expected
    assert as_table(lines[:1])["iou_average_box"].isna().all()  # nobody else has a liver
    average = summary(table)["iou_average_box"].iloc[0]
    assert average == pytest.approx((1 / 2 + 5 / 6 + 3 / 4) / 3)
