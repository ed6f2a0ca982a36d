"""The log of a run: each step once, whatever happened to the run or to its last line."""

from __future__ import annotations

import json

from unireason_lib.training.logbook import Logbook, read_log


def test_repeated_steps_count_as_they_were_last(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "answers": {}}]
    lines += [{"step": 3, "loss": 9.0}, {"step": 2, "loss": 2.5}, {"step": 3, "loss": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert [(line["step"], line["loss"]) for line in read_log(path)] == [
        (1, 3.0),
        (2, 2.5),
        (3, 1.0),
    ]
    assert [line["step"] for line in read_log(path, "answers")] == [2]


def test_a_line_that_was_torn_costs_no_other(tmp_path):
    book = Logbook(tmp_path / "log.jsonl", None)
    book._write(1, {"loss": 3.0})
    with book.path.open("ab") as lines:
        lines.write(b'{"step": 2, "lo')
    assert [line["step"] for line in read_log(book.path)] == [1]
    book._write(2, {"loss": 2.0})
    book._write(3, {"loss": 1.0})
    assert [(line["step"], line["loss"]) for line in read_log(book.path)] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    ]
