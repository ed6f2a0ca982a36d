"""Replies as tables, the pooled table of a study, and the tables that are kept."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from unireason_lib.errors import DatasetError
from unireason_lib.evaluation import Report, as_table, markdown, read_results
from unireason_lib.evaluation.statistics import compare, holm
from unireason_lib.evaluation.table import (
    POOLED,
    paired_runs,
    pooled,
    read_pooled,
    runs,
    write_pooled,
)

KEPT = Path(__file__).parents[2] / "data" / "results"


@pytest.fixture
def files(write, line):
    """One run of the condition "before", two of "RL", and one of them with blank images."""
    right = {("before", 0): {0}, ("RL", 0): {0, 1, 3}, ("RL", 1): {0, 1}, ("RL", 1, "blank"): {2}}
    return {
        key: write(
            f"{n}.jsonl",
            [
                line(
                    f"q{k}",
                    f"p{k // 2}",
                    k in rights,
                    dimension="3d" if k == 3 else "2d",
                    family="size, comparison",
                    iou_first=None if k == 3 else 0.25,
                )
                for k in (3, 0, 1, 2)
            ],
        )
        for n, (key, rights) in enumerate(right.items())
    }


def test_the_pooled_table_comes_back(files, tmp_path):
    table = pooled(files)
    assert list(table.columns) == list(POOLED) and list(table["id"][:4]) == ["q0", "q1", "q2", "q3"]
    plain, packed = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    write_pooled(table, plain)
    write_pooled(table, packed)
    pd.testing.assert_frame_equal(read_pooled(plain), table, check_dtype=False)
    pd.testing.assert_frame_equal(read_pooled(packed), table, check_dtype=False)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    first = packed.read_bytes()
    write_pooled(read_pooled(packed), packed)
    assert packed.read_bytes() == first
    packed.write_bytes(first[:-20])
    with pytest.raises(DatasetError, match=r"t\.csv\.gz: expected a pooled table"):
        read_pooled(packed)


@pytest.mark.parametrize(
    ("text", "letter", "concluded", "followed"),
    [
        ("<think>The left one. Hence the right one.</think>B. The right one", "B", 1, 1),
        ("<think>Hence the right one.</think>A. The left one", "A", 1, 0),  # letter of another
        ("<think>Hence the left one.</think>B. The right one", "B", 0, 0),
        ("<think>Hence that.</think>B. The right one", "B", 0, None),
        ("<think>Hence the right one", None, 0, None),  # cut off
        ("B. The right one", "B", 0, None),
        ("", None, 0, None),
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
    whole = Report(as_table([one, other])).table().iloc[0]
    assert {"concluded", "followed", "followed_low"} <= {*whole.index}  # beside every accuracy


def test_who_does_not_reason_comes_to_no_conclusion(line):
    table = as_table([line("q0"), line("q1", options={}, truth="liver")])
    assert table[["concluded", "followed"]].isna().all(axis=None)


def test_failed_replies_count_as_wrong_in_every_table(write, line, failed):
    """(They were left out in one table and wrong in the other.)"""
    text = "<think>Hence the liver.</think>A. liver"
    lines = [line("q0", "p0", text=text), line("q1", "p1", text=text), failed("q2", "p2")]
    unknown = {**failed("q3", "p2"), "truth": None}  # never scored
    path = write("r.jsonl", [*lines, unknown])
    whole = Report.from_file(path).table().iloc[0]
    table = pooled({("x", 0): path})
    assert whole["accuracy"] == table["correct"].mean() == pytest.approx(2 / 3)
    assert whole["concluded"] == table["concluded"].mean() == pytest.approx(2 / 3)
    assert (whole["n"], whole["failed"]) == (4, 2) and table["failed"].sum() == 2
    assert whole["format"] == table["format"].mean() == 1  # no reply, no format
    good = write("good.jsonl", [line(f"q{k}", f"p{k}", text=text) for k in range(3)])
    report = Report.from_file(path).compare(Report.from_file(good))
    a, b = (pooled({("x", 0): p}) for p in (path, good))
    (left, whose), (right, _) = runs(a, "x"), runs(b, "x")
    assert report.difference.value == compare(left, right, whose).difference.value > 0
    assert Report.from_file(write("n.jsonl", [failed("q0")])).table().iloc[0]["accuracy"] == 0


def test_runs_are_chosen_by_condition_control_and_more(files):
    table = pooled(files)
    after, patients = runs(table, "RL")
    assert len(after) == 2 and patients["q3"] == "p1"
    assert runs(table, "RL", control="blank")[0] == [{"q0": 0, "q1": 0, "q2": 1, "q3": 0}]
    assert runs(table, "RL", dimension="3d")[0] == [{"q3": 1.0}, {"q3": 0.0}]
    assert set(runs(table, "RL", "iou_first")[0][0]) == {"q0", "q1", "q2"}
    before, same, patients, seeds = paired_runs(table, "before", "RL", dimension="2d")
    assert seeds == [0] and patients == {"q0": "p0", "q1": "p0", "q2": "p1"}
    assert before == [{"q0": 1, "q1": 0, "q2": 0}] and same == [{"q0": 1, "q1": 1, "q2": 0}]


def test_what_is_not_there_is_named(files, write, tmp_path):
    table = pooled(files)
    with pytest.raises(DatasetError, match=r"rows of 'SFT'.*choose one of RL, before"):
        runs(table, "SFT")
    with pytest.raises(DatasetError, match="none where"):
        runs(table, "RL", "iou_first", dimension="3d")
    apart = table[(table["condition"] != "RL") | (table["seed"] != 0)]
    with pytest.raises(DatasetError, match=r"'before' and 'RL' have.*\[0\] and \[1\]"):
        paired_runs(apart, "before", "RL")
    with pytest.raises(DatasetError, match=r"empty\.jsonl.*evaluate"):
        pooled({("a", 0): write("empty.jsonl", [])})
    for content, found in (
        ("condition,seed\n", "not in index"),
        ("condition,seed\nx,y\n", "invalid"),
    ):
        (tmp_path / "t.csv").write_text(content)
        with pytest.raises(DatasetError, match=found):
            read_pooled(tmp_path / "t.csv")


@pytest.mark.parametrize("study", ["claims", "efficiency"])
def test_the_kept_studies_can_be_computed_again(study):
    """Their verdicts stand on the closed form as they did on the bootstrap."""
    kept = json.loads((KEPT / f"{study}.json").read_text(encoding="utf-8"))["verdicts"]
    table, comparisons = read_pooled(KEPT / f"{study}.csv.gz"), []
    assert set(table["control"]) == {"none", "blank", "other", "random-crop", "no-crop"}
    for one in kept:
        where = {key: one[key] for key in ("dimension", "kind") if one.get(key)}
        a, b, whose, _ = paired_runs(table, one["worse"], one["better"], one["value"], **where)
        comparisons.append(compare(a, b, whose, paired_seeds=True))
        before = one["comparison"]
        assert comparisons[-1].difference.value == pytest.approx(
            before["difference"]["value"], abs=1e-6
        )
        assert comparisons[-1].p == pytest.approx(before["p"], rel=0.1, abs=0.001)
    corrected = holm([found.p for found in comparisons])
    significant = [one["verdict"] == "reproduced" for one in kept]
    assert [p < 0.05 for p in corrected] == significant


def test_a_table_without_reasoning_has_no_conclusions():
    table = read_pooled(KEPT / "rl-laptop.csv.gz")
    assert table["concluded"].isna().all() and set(table["control"]) == {"none"}
    assert [len(runs(table, name)[0]) for name in ("SFT", "SFT+RL")] == [1, 3]
    lines = read_results(KEPT / "textures-no-regions.jsonl")
    assert 0 < lines["correct"].mean() < 0.5 and lines["followed"].notna().any()


def test_markdown():
    table = pd.DataFrame({"name": ["a|b", "c"], "n": [3, 4], "p": [0.12345, math.nan]})
    head, _, one, other = (
        [c.strip() for c in x.split(" | ")] for x in markdown(table).splitlines()
    )
    assert head == ["| name", "n", "p     |"] and one[2] == "0.123 |" and other[2] == "-     |"
    assert one[:2] == ["| a\\|b", "3"]
