"""The bench of fine-tuning, at its smallest: every row is there, and is a ratio of two times."""

from __future__ import annotations

import pytest

from unireason_lib.bench.generation import bench_rollouts
from unireason_lib.bench.imaging import bench_feeding
from unireason_lib.bench.planning import WITHIN, bench_plan
from unireason_lib.bench.training import PROCESSES, SHARE, bench_processes, bench_sft


def test_every_row_compares_two_times():
    rows = bench_sft(steps=2, batch=3, repeats=1)
    assert [("trainer" in row["name"]) for row in rows] == [True, False, False, False, False, False]
    for row in rows:
        assert row["baseline_s"] > 0 and row["ours_s"] > 0
        assert row["ratio"] == pytest.approx(row["baseline_s"] / row["ours_s"])
    first = rows[0]
    assert first["target"] == SHARE and first["ok"] == (first["ratio"] >= SHARE)
    assert first["tokens_per_s"] > 0


def test_rollouts_together_point_as_those_alone():
    (row,) = bench_rollouts(prompts=2, rollouts=2, slices=2)
    assert (
        row["same_boxes"]
        and row["ratio"] == pytest.approx(row["baseline_s"] / row["ours_s"])
        and row["target"] == 5
    )
    assert row["ok"] == (row["ratio"] >= 5) and row["replies_per_s"] == pytest.approx(
        4 / row["ours_s"]
    )


def test_two_processes_train_as_fast_as_they_say():
    (row,) = bench_processes(steps=2, batch=4, repeats=1)
    assert (
        row["ratio"] == pytest.approx(row["baseline_s"] / row["ours_s"])
        and row["target"] == PROCESSES
    )
    assert row["ok"] == (row["ratio"] >= PROCESSES)


def test_foretold_times_are_held_against_measured_ones():
    rows = bench_plan(steps=3, batch=4, repeats=1)
    assert [row["name"].split()[4] for row in rows] == ["volumes", "both"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["baseline_s"] / row["ours_s"])
        assert row["ok"] == (abs(row["ratio"] - 1) <= WITHIN)


def test_volumes_are_read_within_the_time_that_the_bill_leaves():
    rows = bench_feeding(repeats=1)
    assert len(rows) == 2
    for row in rows:
        assert row["ratio"] == pytest.approx(row["baseline_s"] / row["ours_s"]) and row["ok"] == (
            row["ratio"] >= 1
        )
    assert rows[1]["ok"], "an M3D array is read in far less"
