"""Real scans from end to end: opened, asked, measured, on the command line as users do it.

The brain comes with a package that is always there. The abdomen stands beside the checkout for some only.
"""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from unireason_lib.boxes import format_box
from unireason_lib.cli import app
from unireason_lib.evaluation import Benchmark, Report, evaluate, open_benchmark
from unireason_lib.grounding import GroundedGenerator, Script, Settings
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.inference import read_results

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)

ABDOMEN = {"image": "*_ct", "label": "*_seg", "names": "abdomen_seg_labels.json", "modality": "CT"}
"""How the files of the real scans are named."""


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """A function that evaluates the tiny model on the command line; gives the output, the lines and the table."""

    def call(*words: str):
        out, table = tmp_path / "r.jsonl", tmp_path / "t.json"
        more = (
            "--profile",
            "smoke",
            "--quiet",
            "--device",
            "cpu",
            "--set",
            "generation.max_new_tokens=4",
        )
        files = ("--out", out, "--json", table, "--model", tiny_checkpoint)
        done = CliRunner().invoke(app, ["evaluate", *words, *map(str, (*more, *files))])
        assert done.exit_code == 0, done.output
        return done.output, list(read_results(out)), json.loads(table.read_text(encoding="utf-8"))

    return call


def check(lines, table, questions, depth):
    """What holds for every run on a real volume."""
    assert len(lines) == questions and not any("error" in line for line in lines)
    assert {line["dimension"] for line in lines} == {"3d"} and len(
        {line["patient"] for line in lines}
    ) == 1
    for line in lines:
        height, width, pictures = line["frame"]
        assert pictures == depth and line["truth"] in line["options"]
        for _, (x1, y1, z1, x2, y2, z2) in line["truth_boxes"]:
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and 0 <= z1 < z2 <= depth
    assert any(line["truth_boxes"] for line in lines)
    first = table["rows"][0]
    assert first["n"] == questions and first["blind"] is not None and first["patients"] == 1


def test_the_brain_template(run):
    output, lines, table = run("--benchmark", "brain", "--limit", "3", "--with-blank")
    check(lines, table, 3, 32)  # slices of 256 x 256, as in the paper
    assert "benchmark brain" in output and lines[0]["patient"] == "mni152"


def test_the_brain_has_questions_of_most_families():
    found = open_benchmark("brain", size=(8, 64, 64), frame=FRAME)
    assert found.name == "mni-brain" and len({item.family for item in found}) >= 4
    assert len(found.items[0].load()) == 8 and found.items[0].load()[0].size == (64, 64)


def test_an_abdomen_in_a_folder(run, real_scans):
    options = [word for name, value in ABDOMEN.items() for word in ("--option", f"{name}={value}")]
    words = (
        "--benchmark",
        f"folder:{real_scans}",
        "--window",
        "abdomen",
        "--size",
        "16x128x128",
        "--limit",
        "4",
    )
    output, lines, table = run(*words, *options, "--with-blank")
    check(lines, table, 4, 16)
    assert "benchmark folder" in output


def test_a_model_that_points_well_is_measured_well(tmp_path, monkeypatch, generator, real_scans):
    """Truth boxes, written by a script, come back as what they are."""
    found = open_benchmark(
        "folder", real_scans, size=(8, 64, 64), frame=FRAME, window="abdomen", **ABDOMEN
    )
    items = {item.id: item for item in found if item.truth_boxes}
    plain = GroundedGenerator.generate

    def write(self, requests, **settings):
        requests = list(requests)
        scripts = []
        for request in requests:
            item = items[request.id]
            boxes = [
                part for _, box in item.truth_boxes for part in ("It is at ", format_box(box), ". ")
            ]
            said = f"{item.answer}. {item.options[item.answer]}"
            scripts.append(
                Script(self.tokenizer, ("<think>", *boxes, "</think>", said, "<|im_end|>"))
            )
        return plain(self, requests, scripts=scripts, **settings)

    monkeypatch.setattr(GroundedGenerator, "generate", write)
    pointed = Benchmark(found.name, tuple(items.values()), found.identity)
    out = evaluate(
        pointed,
        tmp_path / "r.jsonl",
        generator,
        settings=Settings(max_new_tokens=300),
        batch_size=4,
        quiet=True,
    )
    first = Report.from_file(out, samples=100).rows()[0]
    assert (
        first["n"] == len(items) >= 3
        and first["accuracy"] == first["in_format"] == first["hit"] == 1
    )
    assert first["iou_first"] > 0.95 and first["iou_all"] > 0.95
