"""Files of questions: the layouts that are read, what is refused, paths that lead elsewhere."""

import json
import os

import pytest

from unireason_lib.errors import RequestError
from unireason_lib.inference import read_samples, scan_below

M3D = """\ufeffImage Path,Question Type,Question,Choice A,Choice B,Choice C,Answer,Answer Choice
a/0.npy,3,Which?,liver,spleen,NA,spleen,B"""
PMC = """Figure_path,Question,Answer,Choice A,Choice B,Answer_label
x.jpg,What?,lung,heart,lung,B"""
OMNI = """question_id,image_path,question,option_A,option_B,gt_answer
q7,i.png,What?,Cyst,Mass,mass"""
RAD = """VolumeName,Question,Choice A,Choice B,Choice C,AnswerChoice
v.nii.gz,Where?,left,right,-,A"""
GOOD = {"image": "0.png", "question": "What?", "options": ["left", "right"]}


def samples(tmp_path, content, name="questions.csv", dimension="2d"):
    path = tmp_path / name
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content, encoding="utf-8")
    return read_samples(path, dimension)


@pytest.mark.parametrize(
    ("text", "name", "scan", "truth"),
    [
        (M3D, "row-1", "a/0.npy", "B"),
        (PMC, "row-1", "x.jpg", "B"),
        (OMNI, "q7", "i.png", "B"),  # a truth in words is the letter of that option
        (RAD, "row-1", "v.nii.gz", "A"),
    ],
)
def test_public_layouts(tmp_path, text, name, scan, truth):
    (sample,) = samples(tmp_path, text, dimension="3d" if text in (M3D, RAD) else "2d")
    assert (sample.id, sample.scan, sample.truth, sample.problem) == (name, scan, truth, None)
    assert list(sample.options) == ["A", "B"]


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "options": ["left", "</think>"]}, "option B.*control token"),
        ({**GOOD, "options": {"A": "left", "C": "right"}}, "A, C"),
        ({**GOOD, "options": "left or right"}, "a list of at most 8"),
        ({**GOOD, "options": [["nested"], "right"]}, "options: expected a list.*nested"),
        ({**GOOD, "answer": "C"}, "letters A, B"),
        ({**GOOD, "question": " "}, "text under question"),
        ({**GOOD, "image": 5}, "text under image.*found 5"),
        ([1, 2], "expected an object, found list"),
        ("TORN", "row 2"),
    ],
)
def test_a_bad_row_carries_its_problem_and_spoils_no_other(tmp_path, row, message):
    lines = [json.dumps(GOOD), "{torn" if row == "TORN" else json.dumps(row), json.dumps(GOOD)]
    before, bad, after = samples(tmp_path, "\n\n".join(lines), "q.jsonl")
    assert before.problem is None and after.problem is None
    with pytest.raises(RequestError, match=message):
        raise bad.problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", b"name,question\nx,y\n", "text under image"),
        ("q.jsonl", b"\n", "at least one row"),
        ("q.json", b'{"a": 1}', "a list of objects"),
        ("q.json", b'{"a": 1}\n{"a": 2}', r"\.jsonl"),
        ("q.txt", b"x", r"\.jsonl, .*found a file \.txt"),
        ("q.csv", "image,question\n0.png,Où?\n".encode("latin-1"), "UTF-8"),
        ("q.json", json.dumps([{**GOOD, "id": i} for i in ("a", 1, "1")]).encode(), "'1' in 2"),
        ("q.csv", None, "no such file"),
    ],
)
def test_files_that_are_no_table(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_samples(tmp_path / name, "2d")


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
