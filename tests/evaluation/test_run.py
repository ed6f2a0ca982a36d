"""Asking a benchmark: the lines, what survives, and the controls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.errors import DatasetError, RequestError, ScanError
from unireason_lib.evaluation import CONTROLS, Benchmark, Item, evaluate
from unireason_lib.evaluation.run import ask_items, by_length, fitted, partners, shown_pictures
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Script, Settings
from unireason_lib.grounding.elsewhere import RandomCrops, elsewhere
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.inference import read_results

SHORT = Settings(max_new_tokens=4)


def picture(value: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (value,) * 3)


def item(name: str, patient: str = "p", pictures: int = 1, value: int = 50, **more) -> Item:
    said = {
        "dimension": "3d" if pictures > 1 else "2d",
        "family": "lesion analysis",
        "question": "Where is it?",
        "options": {"A": "Left", "B": "Right"},
        "answer": "B",
        "load": lambda: [picture(value + k) for k in range(pictures)],
    }
    return Item(name, patient, **(said | more))


@pytest.fixture
def scripted(monkeypatch, generator):
    """A function that makes the model write given parts in every reply."""
    plain = GroundedGenerator.generate

    def write(*parts):
        def generate(self, requests, **settings):
            requests = list(requests)
            scripts = [Script(self.tokenizer, parts)] * len(requests)
            return plain(self, requests, scripts=scripts, **settings)

        monkeypatch.setattr(GroundedGenerator, "generate", generate)
        return generator

    return write


def test_a_line_says_what_was_asked_written_and_reached(scripted):
    generator = scripted(
        "<think>It is at ",
        format_box(Box2D(0, 0, 32, 32)),
        ", so ",
        "</think>",
        "B. Right",
        "<|im_end|>",
    )
    asked = item("q", truth_boxes=(("lesion", Box2D(0, 0, 32, 64)),), kind="quadrant", guess="A")
    (line,) = ask_items(generator, [asked], settings=Settings(max_new_tokens=80))
    assert (
        line["prediction"] == "B"
        and line["correct"] is True
        and line["truth"] == "B"
        and line["guess"] == "A"
    )
    assert line["boxes"] == [[0, 0, 32, 32]] and [p["status"] for p in line["pointings"]] == [
        "injected"
    ]
    assert line["iou_first"] == line["iou_best"] == line["iou_all"] == 0.5
    assert line["crop_share"] == 0.25 and line["frame"] == [64, 64, 1] and line["in_format"]
    assert line["rounds"] == 2 and line["injected_tokens"] == 6 and line["stop"] == "end"
    assert line["truth_boxes"] == [["lesion", [0, 0, 32, 64]]] and 0 < line["seconds"]
    json.dumps(line)


def test_a_volume_is_measured_in_three_dimensions(scripted):
    generator = scripted(
        "<think>", format_box(Box3D(0, 0, 1, 64, 32, 3)), "</think>", "A. Left", "<|im_end|>"
    )
    asked = item("q", pictures=4, truth_boxes=(("lesion", Box3D(0, 0, 0, 64, 32, 4)),))
    (line,) = ask_items(generator, [asked], settings=Settings(max_new_tokens=80))
    assert line["iou_first"] == 0.5 and line["crop_share"] == 0.25 and line["correct"] is False
    assert line["frame"] == [64, 64, 4]


def test_truth_boxes_follow_the_picture_into_the_frame_of_the_model(scripted):
    generator = scripted(
        "<think>", format_box(Box2D(0, 0, 64, 64)), "</think>", "A. Left", "<|im_end|>"
    )
    double = ProcessorFrame(8, 2, 128 * 128, 128 * 128)
    asked = item("q", truth_boxes=(("lesion", Box2D(0, 0, 128, 64)),), frame=double)
    words = item("w", question="What is at [0,0,128,64]?", frame=double)
    (line,) = ask_items(generator, [asked], settings=Settings(max_new_tokens=80))
    assert line["truth_boxes"] == [["lesion", [0, 0, 64, 32]]] and line["iou_first"] == 0.5
    (line,) = ask_items(generator, [words], settings=SHORT)
    assert "build --model" in line["error"]["message"]


def test_an_open_question_is_compared_in_words(scripted):
    generator = scripted("<think>x</think>", "The Left kidney.", "<|im_end|>")
    asked = item("q", options={}, answer="left kidney")
    (line,) = ask_items(generator, [asked], settings=Settings(max_new_tokens=40))
    assert line["correct"] is True and line["prediction"] == "The Left kidney."


def test_who_does_not_choose_abstains_and_unknown_truth_is_not_scored(scripted):
    generator = scripted("<think>x</think>", "I cannot tell.", "<|im_end|>")
    lines = list(
        ask_items(
            generator, [item("q"), item("u", answer=None)], settings=Settings(max_new_tokens=40)
        )
    )
    assert [(line["prediction"], line["correct"]) for line in lines] == [
        (None, False),
        (None, None),
    ]


def test_mixed_batches_keep_like_with_like():
    items = [
        item(f"{k}", pictures=1 + 3 * (k % 2), question="Where?" + " x" * (k % 7))
        for k in range(40)
    ]
    order = list(by_length(items, 4))
    assert sorted(i.id for i in order) == sorted(i.id for i in items)
    batches = [order[first : first + 4] for first in range(0, 40, 4)]
    assert all(len({i.dimension for i in batch}) == 1 for batch in batches)
    lengths = [len(i.question) for i in order if i.dimension == "2d"]
    assert lengths == sorted(lengths)
    volumes = [i.id for i in order if i.dimension == "3d"]
    assert volumes == [
        i.id for i in items if i.dimension == "3d"
    ]  # those of one scan stay together


def test_a_run_is_gone_on_with_and_may_grow(tmp_path, phantoms, generator):
    half = Benchmark("p", phantoms.items[:5], phantoms.identity)
    out = evaluate(half, tmp_path / "r.jsonl", generator, settings=SHORT, batch_size=3, quiet=True)
    before = {line["id"]: line for line in read_results(out)}
    with out.open("ab") as file:
        file.write(b'{"id": "torn')
    evaluate(phantoms, out, generator, settings=SHORT, batch_size=4, quiet=True)
    lines = list(read_results(out))
    assert sorted(line["id"] for line in lines) == sorted(i.id for i in phantoms)
    assert all(
        before[line["id"]] == line for line in lines if line["id"] in before
    )  # seconds too: not asked again
    with pytest.raises(RequestError, match="max_new_tokens was 4 and is now 5"):
        evaluate(phantoms, out, generator, settings=Settings(max_new_tokens=5), quiet=True)
    with pytest.raises(RequestError, match=r'control was "none" and is now "blank"'):
        evaluate(phantoms, out, generator, settings=SHORT, control="blank", quiet=True)


def test_a_killed_run_loses_and_repeats_nothing(tmp_path, tiny_checkpoint):
    out = tmp_path / "r.jsonl"
    program = (
        "import sys; from unireason_lib.evaluation import open_benchmark, evaluate;"
        "from unireason_lib.inference import Checkpoint; from unireason_lib.grounding import Settings;"
        "c = Checkpoint(sys.argv[1], device='cpu');"
        "b = open_benchmark('phantom', limit=24, prior_studies=0, size=(4, 64, 64), frame=c.frame());"
        "evaluate(b, sys.argv[2], c, settings=Settings(max_new_tokens=24), batch_size=2, quiet=True)"
    )
    command = [sys.executable, "-c", program, str(tiny_checkpoint), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment)
    deadline = time.time() + 120
    while time.time() < deadline and not (out.exists() and out.read_bytes().count(b"\n") >= 4):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    finished = out.read_bytes().rpartition(b"\n")[0]
    assert 4 <= finished.count(b"\n") + 1 < 24
    subprocess.run(command, env=environment, check=True)
    assert out.read_bytes().startswith(finished)
    names = [line["id"] for line in read_results(out)]
    assert len(names) == len(set(names)) == 24


def test_an_interrupted_run_leaves_whole_lines(tmp_path, phantoms, generator, monkeypatch):
    plain, calls = GroundedGenerator.generate, []

    def interrupted(self, requests, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, requests, **settings)

    monkeypatch.setattr(GroundedGenerator, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            phantoms, tmp_path / "r.jsonl", generator, settings=SHORT, batch_size=2, quiet=True
        )
    assert len(list(read_results(tmp_path / "r.jsonl"))) == 4
    evaluate(phantoms, tmp_path / "r.jsonl", generator, settings=SHORT, batch_size=2, quiet=True)
    assert len(list(read_results(tmp_path / "r.jsonl"))) == 12


def test_an_unreadable_scan_is_one_line_and_is_tried_again(tmp_path, phantoms, generator):
    def broken():
        raise ScanError("scan.png: expected a picture, found none.")

    items = (*phantoms.items[:3], replace(phantoms.items[3], load=broken), *phantoms.items[4:6])
    out = evaluate(
        Benchmark("b", items), tmp_path / "r.jsonl", generator, settings=SHORT, quiet=True
    )
    lines = {line["id"]: line for line in read_results(out)}
    failed = lines[items[3].id]
    assert failed["error"]["type"] == "ScanError" and "scan.png" in failed["error"]["message"]
    assert (
        failed["family"] == items[3].family and sum("error" in line for line in lines.values()) == 1
    )
    evaluate(Benchmark("b", phantoms.items[:6]), out, generator, settings=SHORT, quiet=True)
    assert not any("error" in line for line in read_results(out))


def test_replies_do_not_depend_on_the_batch(tmp_path, phantoms, generator):
    one = evaluate(
        phantoms, tmp_path / "1.jsonl", generator, settings=SHORT, batch_size=1, quiet=True
    )
    many = evaluate(
        phantoms, tmp_path / "5.jsonl", generator, settings=SHORT, batch_size=5, quiet=True
    )
    texts = [{line["id"]: line["text"] for line in read_results(path)} for path in (one, many)]
    assert texts[0] == texts[1]


# -- controls -------------------------------------------------------------------------------------------------------


def test_controls_change_what_is_shown_and_nothing_else():
    items = tuple(item(f"{k}", f"p{k // 2}", pictures=3, value=20 * k) for k in range(4))
    benchmark = Benchmark("b", items)
    for control in CONTROLS:
        shown = [list(shown_pictures(benchmark, control)(i)) for i in items]
        assert all(len(pictures) == 3 and pictures[0].size == (64, 64) for pictures in shown)
        arrays = np.array([[np.asarray(p) for p in pictures] for pictures in shown])
        if control == "blank":
            assert (arrays == 128).all()
        elif control == "noise":
            assert arrays.std() > 60 and len({a.tobytes() for row in arrays for a in row}) == 12
            again = np.asarray(shown_pictures(benchmark, control)(items[0])[0])
            assert (again == arrays[0, 0]).all()
        elif control == "other":
            assert (
                arrays[0, 0, 0, 0, 0] == 40 and arrays[2, 0, 0, 0, 0] == 20
            )  # first of p1; last of p0
        else:
            assert (arrays[3, 1] == 61).all()


def test_partners_are_other_patients_and_stay_when_the_benchmark_grows():
    items = [item(f"{k}", f"p{k // 3}", pictures=1 + k % 2) for k in range(30)]
    found = partners(items)
    assert all(
        found[i.id].patient != i.patient and found[i.id].dimension == i.dimension for i in items
    )
    first = partners(items[:12])
    assert all(found[name] is first[name] for name in first)
    with pytest.raises(RequestError, match="two patients"):
        partners(items[:3])


def test_pictures_of_another_patient_take_the_size_of_ones_own():
    changed = fitted([picture(10, (32, 32)), picture(90, (32, 32))], [picture(0)] * 4)
    assert [p.size for p in changed] == [(64, 64)] * 4
    assert [np.asarray(p)[0, 0, 0] for p in changed] == [10, 10, 90, 90]


def test_a_random_crop_has_the_size_of_the_box_and_misses_it(generator):
    rough = RandomCrops(generator.model, generator.processor)
    ramp = Image.fromarray(
        np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8)
    ).convert("RGB")
    request = GroundedRequest("?", [ramp], dimension="2d", id="q")
    box = Box2D(4, 4, 20, 24)
    (true,), (other,) = generator.crops_for(request, box), rough.crops_for(request, box)
    assert other.size == true.size and other.tobytes() != true.tobytes()
    assert rough.crops_for(request, box)[0].tobytes() == other.tobytes()
    assert not rough.crops_for(request, Box2D(100, 100, 120, 120))
    for k in range(50):
        moved = elsewhere(box, (64, 64), str(k))
        assert moved.iou(box) < 0.1 and (moved.width, moved.height) == (16, 20)
        assert moved.clip(64, 64) == moved
    cuboid = elsewhere(Box3D(0, 0, 1, 30, 30, 3), (64, 64, 4), "s")
    assert (cuboid.width, cuboid.height, cuboid.depth) == (30, 30, 2) and cuboid.clip(
        64, 64, 4
    ) == cuboid


def test_without_crops_boxes_are_written_and_fetch_nothing(tmp_path, scripted):
    generator = scripted(
        "<think>", format_box(Box2D(0, 0, 32, 32)), "</think>", "B. Right", "<|im_end|>"
    )
    out = evaluate(
        Benchmark("b", (item("q"),)),
        tmp_path / "r.jsonl",
        generator,
        settings=Settings(max_new_tokens=60),
        control="no-crop",
        quiet=True,
    )
    (line,) = read_results(out)
    assert (
        line["boxes"] == [[0, 0, 32, 32]]
        and line["injected_tokens"] == 0
        and line["crop_share"] is None
    )


def test_impossible_requests_are_refused(tmp_path, phantoms, generator):
    with pytest.raises(RequestError, match="a control of none, blank"):
        evaluate(phantoms, tmp_path / "r.jsonl", generator, control="blink")
    with pytest.raises(RequestError, match="batch size"):
        evaluate(phantoms, tmp_path / "r.jsonl", generator, batch_size=0)
    with pytest.raises(DatasetError, match="'q' twice"):
        Benchmark("b", (item("q"), item("q")))
    with pytest.raises(DatasetError, match="found none"):
        Benchmark("b", ())
