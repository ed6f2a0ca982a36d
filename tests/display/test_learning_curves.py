"""The drawn log of a run."""

from __future__ import annotations

import json

import pytest

from unireason_lib.display import show_learning
from unireason_lib.errors import RequestError


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_numbers_of_the_log_are_drawn(tmp_path):
    lines = [{"step": step, "loss": 4.0 - step / 10} for step in (10, 20, 30)]
    flat = {"right": 0.5, "iou": 0.25, "in_format": 1.0}
    lines += [{"step": 20, "answers": {"2d": flat, "3d": flat | {"right": 0.3, "iou": None}}}]
    figure = show_learning(write(tmp_path / "log.jsonl", lines))
    charts = {axes.get_ylabel(): axes for axes in figure.axes if axes.get_ylabel()}
    assert list(charts) == ["loss", "right answers", "IoU of boxes", "in format"]
    assert charts["loss"].lines[0].get_xydata().tolist() == [[10, 3], [20, 2], [30, 1]]
    drawn = [line.get_xydata().tolist() for line in charts["right answers"].lines]
    assert [[20, 0.5]] in drawn and [[20, 0.3]] in drawn
    assert len(charts["IoU of boxes"].lines) == 1  # volumes had none


def test_a_run_without_probes_or_steps(tmp_path):
    figure = show_learning(
        write(tmp_path / "a.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    )
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["loss"]
    with pytest.raises(RequestError):
        show_learning(write(tmp_path / "b.jsonl", []))
