"""A row for every condition, seed and question."""

import gzip
import json

import pytest

from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.statistics import compare
from unireason_lib.evaluation.tidy import (
    COLUMNS,
    conditions,
    paired_runs,
    read_tidy,
    runs,
    tidy,
    write_tidy,
)


def line(k, right, dimension="2d", **more):
    return {
        "id": f"q{k}",
        "patient": f"p{k // 2}",
        "dimension": dimension,
        "family": "size, comparison",
        "kind": "ratio",
        "correct": right,
        "in_format": True,
        "iou_first": 0.25 if dimension == "2d" else None,
        "text": "much that is not kept",
        **more,
    }


@pytest.fixture
def files(tmp_path):
    made = {}
    for condition, seed, right in (("before", 0, {0}), ("RL", 0, {0, 1, 3}), ("RL", 1, {0, 1})):
        path = tmp_path / f"{condition}-{seed}.jsonl"
        lines = [line(k, k in right, "3d" if k == 3 else "2d") for k in (3, 0, 1, 2)]
        path.write_text("".join(json.dumps(one) + "\n" for one in lines))
        made[condition, seed] = path
    return made


def test_the_table_comes_back(files, tmp_path):
    rows = tidy(files)
    assert [row["id"] for row in rows[:4]] == ["q0", "q1", "q2", "q3"] and len(rows) == 12
    write_tidy(rows, tmp_path / "t.csv")
    assert read_tidy(tmp_path / "t.csv") == rows
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    packed = tmp_path / "t.csv.gz"
    write_tidy(rows, packed)
    assert (
        read_tidy(packed) == rows
        and gzip.decompress(packed.read_bytes()) == (tmp_path / "t.csv").read_bytes()
    )
    first = packed.read_bytes()
    write_tidy(rows, packed)
    assert packed.read_bytes() == first
    packed.write_bytes(first[:-20])
    with pytest.raises(DatasetError, match=r"t\.csv\.gz: expected gzip"):
        read_tidy(packed)
    assert rows[3]["iou_first"] is None and rows[0]["iou_first"] == 0.25
    assert conditions(rows) == {"before": [0], "RL": [0, 1]}


@pytest.mark.parametrize(
    "text, letter, concluded, followed",
    [
        ("<think>The left one. Hence the right one.</think>B. The right one", "B", 1, 1),
        (
            "<think>Hence the right one.</think>A. The left one",
            "A",
            1,
            0,
        ),  # reasoned well, the letter is another's
        ("<think>Hence the left one.</think>B. The right one", "B", 0, 0),
        ("<think>Hence that.</think>B. The right one", "B", 0, None),
        ("<think>Hence the right one", None, 0, None),  # cut off
        ("B. The right one", "B", 0, None),
        (None, None, 0, None),  # a failed reply
    ],
)
def test_where_the_reasoning_comes_to_is_told_apart_from_the_letter(
    tmp_path, text, letter, concluded, followed
):
    options = {"A": "The left one", "B": "The right one"}
    asked = {"options": options, "truth": "B"}
    one = line(0, letter == "B", text=text, prediction=letter, **asked)
    other = line(
        1, True, text="<think>Hence the right one.</think>B. The right one", prediction="B", **asked
    )
    (tmp_path / "r.jsonl").write_text(json.dumps(one) + "\n" + json.dumps(other) + "\n")
    write_tidy(tidy({("x", 0): tmp_path / "r.jsonl"}), tmp_path / "t.csv")
    row, _ = read_tidy(tmp_path / "t.csv")
    assert (row["concluded"], row["followed"]) == (concluded, followed)


def test_an_older_table_lacks_what_came_later(files, tmp_path):
    write_tidy(tidy(files), tmp_path / "t.csv")
    shorter = [row.rsplit(",", 2)[0] for row in (tmp_path / "t.csv").read_text().splitlines()]
    (tmp_path / "t.csv").write_text("\n".join(shorter) + "\n")
    assert read_tidy(tmp_path / "t.csv") == tidy(files)  # without reasoning, so both are empty


def test_who_does_not_reason_comes_to_no_conclusion(files):
    assert {(row["concluded"], row["followed"]) for row in tidy(files)} == {(None, None)}


def test_runs_are_compared(files):
    rows = tidy(files)
    after, patients = runs(rows, "RL")
    before, _ = runs(rows, "before")
    assert len(after) == 2 and patients["q3"] == "p1"
    assert compare(before * 2, after, patients).difference.value == pytest.approx(3 / 8)
    assert runs(rows, "RL", dimension="3d")[0] == [{"q3": 1.0}, {"q3": 0.0}]
    assert set(runs(rows, "RL", "iou_first")[0][0]) == {"q0", "q1", "q2"}


def test_what_is_not_there_is_said(files, tmp_path):
    rows = tidy(files)
    with pytest.raises(DatasetError, match=r"rows of 'SFT'.*choose one of RL, before"):
        runs(rows, "SFT")
    with pytest.raises(DatasetError, match="none where"):
        runs(rows, "RL", "iou_first", dimension="3d")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DatasetError, match=r"empty\.jsonl.*evaluate"):
        tidy({("a", 0): tmp_path / "empty.jsonl"})
    (tmp_path / "t.csv").write_text("condition,seed\n")
    with pytest.raises(DatasetError, match=r"t\.csv: expected columns.*found no id"):
        read_tidy(tmp_path / "t.csv")
    write_tidy(rows, tmp_path / "t.csv")
    torn = (tmp_path / "t.csv").read_text().replace(",0.25,,\n", ",x,,\n", 1)
    (tmp_path / "t.csv").write_text(torn)
    with pytest.raises(DatasetError, match=r"t\.csv:2: expected numbers"):
        read_tidy(tmp_path / "t.csv")


def test_a_reply_that_failed_is_wrong(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(line(0, None, in_format=None)) + "\n")
    (row,) = tidy({("a", 0): tmp_path / "a.jsonl"})
    assert row["correct"] == 0.0 and row["in_format"] is None


def test_pairs_are_of_one_seed(files, tmp_path):
    rows = tidy(files)
    before, after, patients, seeds = paired_runs(rows, "before", "RL", dimension="2d")
    assert seeds == [0] and patients == {"q0": "p0", "q1": "p0", "q2": "p1"}
    assert before == [{"q0": 1.0, "q1": 0.0, "q2": 0.0}] and after == [
        {"q0": 1.0, "q1": 1.0, "q2": 0.0}
    ]
    apart = [row for row in rows if (row["condition"], row["seed"]) != ("RL", 0)]
    with pytest.raises(DatasetError, match=r"'before' and 'RL' have.*\[0\] and \[1\]"):
        paired_runs(apart, "before", "RL")
    with pytest.raises(DatasetError, match="rows of 'Rl'"):
        paired_runs(rows, "before", "Rl")
