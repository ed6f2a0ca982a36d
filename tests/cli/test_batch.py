"""``infer 2d-batch`` and ``3d-batch``: every sample once, errors beside it, and on after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OPTIONS = {"option_a": "mass", "option_b": "cyst"}
GOOD_REPLY = "<think><|box_start|>[16,8,48,24]<|box_end|></think>B. cyst<|im_end|>"


def rows(count, **more):
    asked = {"question": "What is it?", **OPTIONS, **more}
    return [{"id": f"s{k}", "image": f"{k % 6}.png", **asked} for k in range(count)]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids(path):
    return [line["id"] for line in lines_of(path)]


@pytest.fixture
def batch(run, scans, tmp_path):
    """A function that runs ``infer 2d-batch`` into ``out.jsonl``."""

    def call(questions, *words):
        out = tmp_path / "out.jsonl"
        words = ("--input", questions, "--image-root", scans, "--output", out, *words)
        return run("infer", "2d-batch", *words), out

    return call


def test_one_line_each_with_truth_and_summary(batch, questions, scripted):
    scripted(GOOD_REPLY)
    asked = rows(3, answer="B")
    asked[1] = {"image": "0.png", "question": "What?", "answer": "b CYST"}  # a free answer
    asked[2]["answer"] = "mass"
    result, out = batch(questions(*asked), "--batch-size", 2, "--max-new-tokens", 99)
    assert result.exit_code == 0
    lines = lines_of(out)
    assert ids(out) == ["s0", "row-2", "s2"]
    assert [line["correct"] for line in lines] == [True, True, False] and lines[2]["truth"] == "A"
    assert lines[0]["image"] == "0.png" and lines[0]["boxes_image"] == [[16, 8, 48, 24]]
    assert lines[0]["pointings"][0]["status"] == "injected"
    assert "asked 3, answered 3, judged 3, correct 2, in_format 3" in result.stdout


def test_failures_stay_with_their_sample_and_are_tried_again(batch, questions, scans):
    (scans / "torn.png").write_bytes((scans / "0.png").read_bytes()[:200])
    (scans / "late.png").unlink(missing_ok=True)
    asked = rows(7)
    for k, name in ((1, "late.png"), (2, "../../etc/passwd"), (3, "torn.png")):
        asked[k]["image"] = name
    asked[4]["question"] = "<|vision_start|>?"
    asked[5]["option_a"] = "NA"
    path = questions(*asked)
    result, out = batch(path, "--batch-size", 4)
    assert result.exit_code == 1 and "5 of 7 samples failed" in result.stderr
    lines = {line["id"]: line for line in lines_of(out)}
    messages = {name: line["error"]["message"] for name, line in lines.items() if "error" in line}
    assert len(lines) == 7 and set(messages) == {"s1", "s2", "s3", "s4", "s5"}
    assert messages["s1"].startswith("late.png: expected a file")
    assert "a path inside" in messages["s2"] and "torn.png" in messages["s3"]
    assert "<|vision_start|>" in messages["s4"] and "without gaps" in messages["s5"]
    assert lines["s1"]["error"]["type"] == "ScanError" and str(scans) not in json.dumps(messages)

    (scans / "late.png").write_bytes((scans / "0.png").read_bytes())
    result, out = batch(path, "--batch-size", 4)
    assert result.exit_code == 1 and "4 of 7 samples failed" in result.stderr
    again = {line["id"]: line for line in lines_of(out)}
    assert len(lines_of(out)) == len(again) == 7 and "error" not in again["s1"]
    assert again["s0"] == lines["s0"]  # seconds and all: not asked again


def test_results_of_another_model_are_not_mixed(batch, questions, tiny_checkpoint, tmp_path):
    path = questions(*rows(2))
    _, out = batch(path)
    before = out.read_bytes()
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere" / tiny_checkpoint.name)
    assert batch(path, "--model-path", moved)[0].exit_code == 0  # the same model in another place
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    refused, _ = batch(path, "--model-path", moved)
    assert refused.exit_code == 2 and "model.sha256" in refused.stderr
    assert out.read_bytes() == before


def test_a_killed_run_goes_on(batch, questions, scans, tiny_checkpoint, tmp_path):
    """A real process, killed without warning in the middle; meanwhile no one else may write."""
    path, out = questions(*rows(30)), tmp_path / "out.jsonl"
    words = ("--input", path, "--image-root", scans, "--output", out, "--quiet")
    words += ("--model-path", tiny_checkpoint, "--max-new-tokens", 24, "--device", "cpu")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "unireason_lib", "infer", "2d-batch", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 600  # on a busy machine
        while not (out.exists() and out.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        busy, _ = batch(path, "--max-new-tokens", 24)
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert errors == b"", "loading bars came through --quiet"
    assert busy.exit_code == 2 and "a running process" in busy.stderr
    before = ids(out)
    assert 3 <= len(before) < 30
    with out.open("ab") as file:  # what a crash of the whole machine may leave
        file.write(b'{"id": "s29", "text": "torn')
    assert batch(path, "--max-new-tokens", 24, "--batch-size", 16)[0].exit_code == 0
    after = ids(out)
    assert after[: len(before)] == before and sorted(after) == sorted(f"s{k}" for k in range(30))
