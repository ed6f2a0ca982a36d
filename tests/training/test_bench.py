"""The bench of fine-tuning, at its smallest: every row is there, and is a ratio of two times."""

from __future__ import annotations

from unireason_lib.bench.generation import bench_rollouts
from unireason_lib.bench.training import SHARE, bench_sft


def test_every_row_compares_two_times():
    rows = bench_sft(steps=2, batch=3, repeats=1)
    assert [("trainer" in row["name"]) for row in rows] == [True, False, False, False, False, False]
    for row in rows:
        assert row["baseline_s"] > 0 and row["ours_s"] > 0
        assert row["ratio"] == row["baseline_s"] / row["ours_s"]
    first = rows[0]
    assert first["target"] == SHARE and first["ok"] == (first["ratio"] >= SHARE)
    assert first["tokens_per_s"] > 0


def test_rollouts_together_point_as_those_alone():
    (row,) = bench_rollouts(prompts=2, rollouts=2, slices=2)
    assert row["same_boxes"] and row["ratio"] == row["baseline_s"] / row["ours_s"] and row["target"] == 5
    assert row["ok"] == (row["ratio"] >= 5) and row["replies_per_s"] == 4 / row["ours_s"]
