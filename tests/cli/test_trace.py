"""``trace``: results of ``infer`` and ``evaluate`` become a page with the images that were seen."""

import json
import re
import shutil

import pytest

from unireason_lib.evaluation import evaluate, open_benchmark
from unireason_lib.grounding import Settings
from unireason_lib.inference import read_results

CUBOID = "<think><|box_start|>[16,8,1,48,24,3]<|box_end|></think>B. cyst<|im_end|>"
BOX = "<think><|box_start|>[16,8,48,24]<|box_end|></think>B. cyst<|im_end|>"


@pytest.fixture
def trace(run, tmp_path):
    """A function that makes a page: the command's result, the page's data and its replies."""

    def call(*words):
        result, data, page = run("trace", *words, "--out", tmp_path / "page.html"), {"rows": []}, ""
        if result.exit_code == 0:
            page = (tmp_path / "page.html").read_text()
            data = json.loads(re.search('json" id="data">(.*?)</script>', page)[1])
        return result, data, [one for row in data["rows"] for one in row["replies"].values()]

    return call


def test_results_of_a_batch(run, trace, scans, questions, scripted, tmp_path):
    scripted(CUBOID)
    asked = [{"id": f"v{k}", "volume": f"{k}.nii.gz", "question": "What?"} for k in (0, 1, 7)]
    out = tmp_path / "out.jsonl"
    words = ("--input", questions(*asked), "--data-root", scans, "--output", out)
    run("infer", "3d-batch", *words, "--target-size", "4x32x64", "--max-new-tokens", 99)
    result, data, replies = trace(out)
    assert "3 replies" in result.stdout and result.stderr == ""
    assert [row["id"] for row in data["rows"]] == ["v0", "v1", "v7"] and len(data["images"]) == 8
    assert "7.nii.gz: expected a file" in replies[2]["error"]  # as it was recorded
    assert [len(reply["slices"]) for reply in replies] == [4, 4, 0]

    result, _, replies = trace(out, "--id", "v0")
    assert "1 reply" in result.stdout and len(replies) == 1
    result, _, replies = trace(out, "--limit", 2)
    assert "2 replies of 3; --limit" in result.stdout and len(replies) == 2
    for wrong in ((out, "--id", "nobody"), (tmp_path / "none.jsonl",)):
        assert trace(*wrong)[0].exit_code == 2
    assert "v0: shown without images" in trace(out, "--data-root", tmp_path)[0].stderr
    assert "page.html" not in run("trace", out).stdout and out.with_suffix(".html").is_file()

    (other := tmp_path / "other" / out.name).parent.mkdir()
    other.write_text("".join(out.read_text().splitlines(keepends=True)[1:]))
    data = trace(out, other)[1]
    assert data["runs"] == [str(out), str(other)], "files of one name are told apart"
    assert [[*row["replies"]] for row in data["rows"]] == [["0"], ["0", "1"], ["0", "1"]]


def test_one_reply_about_a_scan_outside_the_current_folder(run, trace, scans, scripted, tmp_path):
    """The user's own question shows its scan wherever that is; given a root, nothing outside it."""
    scripted(BOX)
    out = tmp_path / "reply.json"
    words = ("--image", scans / "0.png", "--question", "What?", "--output", out)
    run("infer", "2d", *words, "--max-new-tokens", 99)
    for root in ((), ("--image-root", scans)):
        result, data, (reply,) = trace(out, *root)
        assert result.stderr == "" and "1 reply" in result.stdout and len(data["images"]) == 1
        assert reply["pieces"][1]["place"]["cut"] == [16, 8, 32, 16]
    line = json.loads(out.read_text())
    broken = {"window": "nonsense"}
    for change in (
        {"image": "../secret.png"},
        {"frame": None},
        {"serialization": broken},
        {"frame": [8, 8]},
        {"frame": [0, 8, 1]},
        {"frame": [10**5, 10**5, 1]},
    ):
        out.write_text(json.dumps({**line, **change}))
        result, _, _ = trace(out, "--image-root", scans)
        assert result.exit_code == 0 and "shown without images" in result.stderr
    out.write_text("[]")
    assert trace(out)[0].exit_code == 2


@pytest.mark.parametrize("control", ["noise", "random-crop"])
def test_results_of_an_evaluation_show_their_images(trace, checkpoint, scripted, tmp_path, control):
    """A line is the one form of a reply; its images come from the benchmark, as they were shown."""
    out = tmp_path / "e.jsonl"
    how = {"dimension": "2d", "limit": 2, "frame": checkpoint.frame(), "prior_studies": 0}
    benchmark = open_benchmark("phantom", **how)
    scripted(BOX)
    settings = Settings(max_new_tokens=99)
    evaluate(benchmark, out, checkpoint, settings=settings, control=control, quiet=True)
    line = next(read_results(out))
    reply = {"text", "answer", "choice", "boxes", "pointings", "in_format", "stop", "rounds"}
    assert reply | {"prediction", "truth", "frame"} <= set(line)
    result, data, replies = trace(out)
    assert "2 replies" in result.stdout and result.stderr == ""
    assert [len(reply["slices"]) for reply in replies] == [1, 1]
    assert all(row["family"] and row["dimension"] == "2d" for row in data["rows"])
    elsewhere = [reply["pieces"][1]["status"] == "not the region of the box" for reply in replies]
    assert elsewhere == [control == "random-crop"] * 2
    (tmp_path / "e.jsonl.run.json").write_text('{"run": {"benchmark": {}}}')
    result, _, _ = trace(out)
    assert result.exit_code == 0 and "shown without images" in result.stderr


def test_a_data_set_that_moved_is_found_by_its_new_place(trace, checkpoint, tmp_path, scans):
    rows = [{"img_name": "0.png", "question": "Is it?", "answer": "Yes", "q_lang": "en"}]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "test.json").write_text(json.dumps(rows))
    shutil.copy(scans / "0.png", tmp_path / "old")
    out = tmp_path / "e.jsonl"
    benchmark = open_benchmark("slake", tmp_path / "old", frame=checkpoint.frame())
    evaluate(benchmark, out, checkpoint, settings=Settings(max_new_tokens=3), quiet=True)
    (tmp_path / "old").rename(tmp_path / "new")
    assert "shown without images" in trace(out)[0].stderr
    assert trace(out, "--image-root", tmp_path / "new")[0].stderr == ""
