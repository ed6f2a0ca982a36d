"""Files of questions: the layouts that are read, what is refused, paths that lead elsewhere."""

import json
import os
from pathlib import Path

import pytest
import yaml

from unireason_lib.errors import RequestError
from unireason_lib.inference import read_samples, scan_below

CASES = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8"))
GOOD = {"image": "0.png", "question": "What?", "options": ["left", "right"]}


def samples(tmp_path, content, name="questions.csv", dimension="2d"):
    path = tmp_path / name
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content, encoding="utf-8")
    return read_samples(path, dimension)


@pytest.mark.parametrize("case", CASES["layouts"])
def test_public_layouts(tmp_path, case):
    three = "Path" in case["table"] or "Volume" in case["table"]
    (sample,) = samples(tmp_path, "\ufeff" + case["table"], dimension="3d" if three else "2d")
    expected = case["id"], case["scan"], case["truth"], None, ["A", "B"]
    found = sample.id, sample.scan, sample.truth, sample.problem, list(sample.options)
    assert found == expected


def test_json_forms(tmp_path):
    rows = [
        {**GOOD, "id": 0, "answer": "a"},
        {**GOOD, "id": "x", "options": {"b": "right", "a": "left"}},
        {"image": "0.png", "question": "How many?", "answer": 0},
        {**GOOD, "options": None, "option_a": "K", "option_b": "Na", "option_c": "NA"},
    ]
    found = samples(tmp_path, json.dumps(rows), "q.json")
    assert [sample.id for sample in found] == ["0", "x", "row-3", "row-4"]
    assert found[0].truth == "A" and found[1].options == {"A": "left", "B": "right"}
    assert found[2].truth == "0" and found[2].options == {}
    assert found[3].options == {"A": "K", "B": "Na"}  # sodium is not a missing option
    assert samples(tmp_path, rows, "q.jsonl") == found


@pytest.mark.parametrize("case", CASES["bad_rows"])
def test_a_bad_row_carries_its_problem_and_spoils_no_other(tmp_path, case):
    row = "{torn" if case["row"] == "TORN" else json.dumps(case["row"])
    lines = [json.dumps(GOOD), row, json.dumps(GOOD)]
    before, bad, after = samples(tmp_path, "\n\n".join(lines), "q.jsonl")
    assert before.problem is None and after.problem is None
    with pytest.raises(RequestError, match=case["message"]):
        raise bad.problem


@pytest.mark.parametrize("case", CASES["bad_files"])
def test_files_that_are_no_table(tmp_path, case):
    path = tmp_path / case["name"]
    if case["content"] is not None:
        path.write_text(case["content"], encoding="latin-1")
    with pytest.raises(RequestError, match=case["message"]):
        read_samples(path, "2d")


def test_links_and_devices_are_followed_only_below_the_root(tmp_path):
    root, secret = tmp_path / "root", tmp_path / "secret.png"
    (root / "series").mkdir(parents=True)
    for path in (secret, root / "good.png"):
        path.write_bytes(b"x")
    links = {"inner.png": root / "good.png", "outer.png": secret, "series/1.dcm": secret}
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    assert scan_below(root, "inner.png") == root.resolve() / "good.png"
    assert scan_below(root, "missing.png").name == "missing.png"
    for name in ("outer.png", "series", "pipe.png"):
        with pytest.raises(RequestError, match=r"a path inside root/|regular files inside root/"):
            scan_below(root, name)
