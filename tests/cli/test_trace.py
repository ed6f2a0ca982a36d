"""``trace``: results of ``infer`` and ``evaluate`` become a page with the images that were seen."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from unireason_lib.evaluation import evaluate, open_benchmark
from unireason_lib.grounding import Settings
from unireason_lib.inference import Checkpoint, read_results

CUBOID = "<think><|box_start|>[16,8,1,48,24,3]<|box_end|></think>B. cyst<|im_end|>"
BOX = "<think><|box_start|>[16,8,48,24]<|box_end|></think>B. cyst<|im_end|>"


def data_of(page):
    """The data block of a page, and its replies."""
    block = re.search('<script type="application/json" id="data">(.*?)</script>', page.read_text())
    data = json.loads(block[1])
    return data, [one for row in data["rows"] for one in row["replies"].values()]


def test_results_of_a_batch(run, scans, questions, scripted, tmp_path):
    scripted(CUBOID)
    asked = [{"id": f"v{k}", "volume": f"{k}.nii.gz", "question": "What?"} for k in (0, 1, 7)]
    out = tmp_path / "out.jsonl"
    words = ("--input", questions(*asked), "--data-root", scans, "--output", out)
    run("infer", "3d-batch", *words, "--target-size", "4x32x64", "--max-new-tokens", 99)
    result = run("trace", out)
    data, replies = data_of(tmp_path / "out.html")
    assert result.exit_code == 0 and "3 replies" in result.stdout and result.stderr == ""
    assert [row["id"] for row in data["rows"]] == ["v0", "v1", "v7"] and len(data["images"]) == 8
    assert "7.nii.gz: expected a file" in replies[2]["error"]  # as it was recorded
    assert [len(reply["slices"]) for reply in replies] == [4, 4, 0]

    result = run("trace", out, "--id", "v0", "--out", tmp_path / "one.html")
    assert "1 reply" in result.stdout and len(data_of(tmp_path / "one.html")[1]) == 1
    result = run("trace", out, "--limit", 2, "--out", tmp_path / "two.html")
    assert (
        "2 replies of 3; --limit" in result.stdout and len(data_of(tmp_path / "two.html")[1]) == 2
    )
    assert run("trace", out, "--id", "nobody").exit_code == 2
    assert run("trace", tmp_path / "none.jsonl").exit_code == 2
    result = run("trace", out, "--data-root", tmp_path, "--out", tmp_path / "bare.html")
    assert result.exit_code == 0 and "v0: shown without images" in result.stderr


def test_one_reply_about_a_scan_outside_the_current_folder(run, scans, scripted, tmp_path):
    """The user's own question shows its scan wherever that is; given a root, nothing outside it."""
    scripted(BOX)
    out = tmp_path / "reply.json"
    words = ("--image", scans / "0.png", "--question", "What?", "--output", out)
    run("infer", "2d", *words, "--max-new-tokens", 99)
    for root in ((), ("--image-root", scans)):
        result = run("trace", out, *root)
        assert result.exit_code == 0 and result.stderr == "" and "1 reply" in result.stdout
        data, (reply,) = data_of(tmp_path / "reply.html")
        assert len(data["images"]) == 1 and reply["pieces"][1]["place"]["cut"] == [16, 8, 32, 16]
    line = json.loads(out.read_text())
    broken = {"window": "nonsense"}
    for change in ({"image": "../secret.png"}, {"frame": None}, {"serialization": broken}):
        out.write_text(json.dumps({**line, **change}))
        result = run("trace", out, "--image-root", scans)
        assert result.exit_code == 0 and "shown without images" in result.stderr
    out.write_text("[]")
    assert run("trace", out).exit_code == 2


@pytest.mark.parametrize("control", ["noise", "random-crop"])
def test_results_of_an_evaluation_show_their_images(
    run, tiny_checkpoint, scripted, tmp_path, control
):
    """A line is the one form of a reply; its images come from the benchmark, as they were shown."""
    checkpoint, out = Checkpoint(str(tiny_checkpoint), device="cpu"), tmp_path / "e.jsonl"
    how = {"dimension": "2d", "limit": 3, "frame": checkpoint.frame(), "prior_studies": 0}
    benchmark = open_benchmark("phantom", **how)
    scripted(BOX)
    settings = Settings(max_new_tokens=99)
    evaluate(benchmark, out, checkpoint, settings=settings, control=control, quiet=True)
    line = next(read_results(out))
    reply = {"text", "answer", "choice", "boxes", "pointings", "in_format", "stop", "rounds"}
    assert reply | {"prediction", "truth", "frame"} <= set(line)
    result = run("trace", out)
    data, replies = data_of(tmp_path / "e.html")
    assert result.exit_code == 0 and "3 replies" in result.stdout and result.stderr == ""
    assert all(len(reply["slices"]) == 1 for reply in replies)
    assert all(row["family"] and row["dimension"] == "2d" for row in data["rows"])
    elsewhere = [reply["pieces"][1]["status"] == "not the region of the box" for reply in replies]
    assert all(elsewhere) if control == "random-crop" else not any(elsewhere)
    (tmp_path / "e.jsonl.run.json").write_text('{"run": {"benchmark": {}}}')
    result = run("trace", out)
    assert result.exit_code == 0 and "shown without images" in result.stderr


def test_a_data_set_that_moved_is_found_by_its_new_place(run, tiny_checkpoint, tmp_path, scans):
    rows = [{"img_name": "0.png", "question": "Is it?", "answer": "Yes", "q_lang": "en"}]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "test.json").write_text(json.dumps(rows))
    shutil.copy(scans / "0.png", tmp_path / "old")
    checkpoint, out = Checkpoint(str(tiny_checkpoint), device="cpu"), tmp_path / "e.jsonl"
    benchmark = open_benchmark("slake", tmp_path / "old", frame=checkpoint.frame())
    evaluate(benchmark, out, checkpoint, settings=Settings(max_new_tokens=3), quiet=True)
    (tmp_path / "old").rename(tmp_path / "new")
    assert "shown without images" in run("trace", out).stderr
    assert run("trace", out, "--image-root", tmp_path / "new").stderr == ""


def test_two_runs_are_shown_side_by_side(run, scans, questions, scripted, tmp_path, monkeypatch):
    asked = [{"id": f"i{k}", "image": f"{k}.png", "question": "What?"} for k in (0, 1)]
    for name, text in (("a", BOX), ("b", BOX.replace("B. cyst", "A. liver"))):
        scripted(text)
        (tmp_path / name).mkdir()
        words = ("--input", questions(*asked[name == "b" :]), "--data-root", scans)
        words += ("--output", tmp_path / name / "out.jsonl")
        run("infer", "2d-batch", *words, "--max-new-tokens", 99)
    both = [tmp_path / name / "out.jsonl" for name in "ab"]
    result = run("trace", *both, "--out", tmp_path / "page.html")
    data, replies = data_of(tmp_path / "page.html")
    assert result.exit_code == 0 and "2 replies" in result.stdout
    assert data["runs"] == list(map(str, both)), "files of one name are told apart"
    assert [[*row["replies"]] for row in data["rows"]] == [["0"], ["0", "1"]]
    assert [reply["choice"] for reply in replies] == ["B", "B", "A"]
    assert len(data["images"]) == 2
    monkeypatch.setattr("unireason_lib.display.page.MAX_BYTES", 0)
    assert "Replies shown without images: 3" in run("trace", *both).stderr
    assert not data_of(tmp_path / "a" / "out.html")[0]["images"]
