"""Files of questions: the layouts that are read, what is refused, and paths that lead elsewhere."""

from __future__ import annotations

import json
import os

import pytest

from unireason_lib.errors import RequestError
from unireason_lib.inference import inside, read_samples

M3D = "Image Path,Text,Question Type,Question,Choice A,Choice B,Choice C,Choice D,Answer,Answer Choice\n"


def table(tmp_path, text, name="questions.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_m3d_vqa_table(tmp_path):
    rows = "a/0.npy,words,3,Which organ?,liver,spleen,NA,NA,spleen,B\n"
    rows += "b/1.npy,,1,Plane?,axial,coronal,sagittal,NA,axial,A\n"
    first, second = read_samples(table(tmp_path, "\ufeff" + M3D + rows), "3d")
    assert (first.id, first.row, first.scan, first.question) == ("row-1", 1, "a/0.npy", "Which organ?")
    assert (
        first.options == {"A": "liver", "B": "spleen"} and first.truth == "B" and first.question_type == "3"
    )
    assert second.options == {"A": "axial", "B": "coronal", "C": "sagittal"} and second.problem is None


def test_other_public_layouts(tmp_path):
    pmc = "Figure_path,Question,Answer,Choice A,Choice B,Answer_label\nx.jpg,What?,lung,heart,lung,B\n"
    omni = "question_id,image_path,question,option_A,option_B,gt_answer\nq7,i/x.png,What?,Cyst,Mass,mass\n"
    rad = "VolumeName,Question,Choice A,Choice B,Choice C,AnswerChoice,Answer\nv.nii.gz,Where?,left,right,-,A,left\n"
    assert read_samples(table(tmp_path, pmc), "2d")[0].truth == "B"
    sample = read_samples(table(tmp_path, omni), "2d")[0]
    assert (sample.id, sample.truth) == ("q7", "B")  # a truth in words is the letter of that option
    sample = read_samples(table(tmp_path, rad), "3d")[0]
    assert (sample.scan, sample.options, sample.truth) == ("v.nii.gz", {"A": "left", "B": "right"}, "A")


def test_json_forms(tmp_path):
    rows = [
        {"id": 7, "image": "0.png", "question": "What?", "options": ["left", "right"], "answer": "a"},
        {"id": "x", "image": "0.png", "question": "What?", "options": {"b": "right", "a": "left"}},
        {"id": "free", "image": "0.png", "question": "What?", "answer": "a mass"},
        {
            "id": "salt",
            "image": "0.png",
            "question": "Which?",
            "option_a": "K",
            "option_b": "Na",
            "option_c": "NA",
        },
    ]
    samples = read_samples(table(tmp_path, json.dumps(rows), "q.json"), "2d")
    assert [sample.id for sample in samples] == ["7", "x", "free", "salt"]
    assert samples[0].truth == "A" and samples[1].options == {"A": "left", "B": "right"}
    assert samples[2].truth == "a mass" and samples[2].options == {}
    assert samples[3].options == {"A": "K", "B": "Na"}  # sodium is not a missing option
    lines = "\n\n".join(json.dumps(row) for row in rows)
    assert read_samples(table(tmp_path, lines, "q.jsonl"), "2d")[3].options == samples[3].options


GOOD = {"image": "0.png", "question": "What?", "options": ["left", "right"]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**GOOD, "question": "<|image_pad|> what?"}, r"plain text.*<\|image_pad\|>"),
        ({**GOOD, "options": ["left", "</think>"]}, "option B.*control token"),
        ({**GOOD, "options": {"A": "left", "C": "right"}}, "A, C"),
        ({**GOOD, "options": ["only"]}, "two and more"),
        ({**GOOD, "options": {"Z": "left", "A": "right"}}, "letters A to H"),
        ({**GOOD, "options": "left or right"}, "a list of at most 8"),
        ({**GOOD, "options": [["nested"], "right"]}, "option A: expected text, found list"),
        ({**GOOD, "answer": "C"}, "letters A, B"),
        ({**GOOD, "question": " "}, "question: expected text"),
        ({"question": "What?"}, "the scan's path"),
        ({**GOOD, "image": 5}, "found int"),
        ([1, 2], "expected an object, found list"),
    ],
)
def test_a_bad_row_carries_its_problem_and_spoils_no_other(tmp_path, row, says):
    text = "".join(json.dumps(one) + "\n" for one in (GOOD, row, GOOD))
    before, bad, after = read_samples(table(tmp_path, text, "q.jsonl"), "2d")
    assert before.problem is None and after.problem is None and bad.row == 2
    with pytest.raises(RequestError, match=says):
        raise bad.problem


def test_a_broken_line_is_one_bad_row(tmp_path):
    text = json.dumps(GOOD) + "\n{torn\n" + "[" * 100_000 + "\n" + json.dumps(GOOD) + "\n"
    samples = read_samples(table(tmp_path, text, "q.jsonl"), "2d")
    assert [sample.problem is None for sample in samples] == [True, False, False, True]
    assert "line 2" in str(samples[1].problem)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("q.csv", "", "no header"),
        ("q.csv", "name,question\nx,y\n", "Image Path"),
        ("q.csv", "image,question\n", "at least one row"),
        ("q.jsonl", "\n", "at least one row"),
        ("q.json", '{"a": 1}', "a list of objects"),
        ("q.json", '{"a": 1}\n{"a": 2}', r"\.jsonl"),
        ("q.txt", "x", r"\.jsonl, .*found \.txt"),
    ],
)
def test_files_that_are_no_table(tmp_path, name, text, says):
    with pytest.raises(RequestError, match=says):
        read_samples(table(tmp_path, text, name), "2d")


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        read_samples(tmp_path / "none.csv", "2d")
    (tmp_path / "latin.csv").write_bytes("image,question\n0.png,Où?\n".encode("latin-1"))
    with pytest.raises(RequestError, match="UTF-8"):
        read_samples(tmp_path / "latin.csv", "2d")


def test_ids_must_be_unique(tmp_path):
    rows = [{**GOOD, "id": name} for name in ("a", 1, "b", "1")]
    with pytest.raises(RequestError, match="'1' in rows 2, 4"):
        read_samples(table(tmp_path, json.dumps(rows), "q.json"), "2d")


def test_paths_are_followed_only_below_the_root(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "series").mkdir(parents=True)
    other.mkdir()
    (other / "secret.png").write_bytes(b"x")
    (root / "good.png").write_bytes(b"x")
    (root / "inner.png").symlink_to(root / "good.png")
    (root / "outer.png").symlink_to(other / "secret.png")
    (root / "folder").symlink_to(other)
    (root / "series" / "1.dcm").symlink_to(other / "secret.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    for name in ("good.png", "inner.png", "./good.png", "missing.png"):
        assert inside(root, name) == root.resolve() / name
    for name in (
        "../other/secret.png",
        "series/../../other/secret.png",
        "..\\other\\secret.png",
        "C:\\secret.png",
        "\\\\server\\secret.png",
        str(other / "secret.png"),
        str(root / "good.png"),
        "outer.png",
        "folder/secret.png",
        "series",
        "loop.png",
        "pipe.png",
        "a\0b",
        "",
        "x" * 5000,
    ):
        with pytest.raises(
            RequestError, match=r"below that folder|relative path|regular file|can be followed"
        ):
            inside(root, name)
    assert inside(root, str(root.resolve() / "good.png"), absolute=True).name == "good.png"
    with pytest.raises(RequestError, match="leads out"):
        inside(root, str(other / "secret.png"), absolute=True)
