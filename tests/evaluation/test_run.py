"""Asking a benchmark: the lines, what survives, and the controls."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.evaluation import CONTROLS, Benchmark, Item, ask_items, evaluate, report
from unireason_lib.evaluation.controls import elsewhere, fitted, other_crops, partners, shown_images
from unireason_lib.evaluation.run import overlaps
from unireason_lib.grounding import Settings
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.inference import read_results

SHORT, LONG = Settings(max_new_tokens=4), Settings(max_new_tokens=80)
QUICK = partial(evaluate, settings=SHORT, quiet=True)


def image(value: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (value,) * 3)


def item(name: str, patient: str = "p", images: int = 1, value: int = 50, **more) -> Item:
    plain = {"dimension": "3d" if images > 1 else "2d", "family": "lesion analysis", "answer": "B"}
    plain |= {"question": "Where is it?", "options": {"A": "Left", "B": "Right"}}
    plain["load"] = lambda: [image(value + k) for k in range(images)]
    return Item(name, patient, **(plain | more))


def only_line(generator, asked):
    (line,) = ask_items(generator, [asked], settings=LONG)
    return line


# --- lines -------------------------------------------------------------------------------------


def test_a_line_says_what_was_asked_written_and_reached(scripted):
    box = format_box(Box2D(0, 0, 32, 32))
    generator = scripted(lambda _: ("<think>It is at ", box, ", so ", "</think>", "B. Right"))
    truth = (("lesion", Box2D(0, 0, 32, 64)),)
    line = only_line(generator, item("q", truth_boxes=truth, kind="quadrant", guess="A"))
    assert line["prediction"] == line["truth"] == "B" and line["correct"] is True
    assert line["boxes"] == [[0, 0, 32, 32]] and line["guess"] == "A"
    assert [p["status"] for p in line["pointings"]] == ["injected"]
    assert line["iou_first"] == line["iou_best"] == line["iou_all"] == 0.5
    assert line["crop_fraction"] == 0.25 and line["frame"] == [64, 64, 1] and line["in_format"]
    assert line["rounds"] == 2 and line["injected_tokens"] == 6 and line["stop"] == "end"
    assert line["truth_boxes"] == [["lesion", [0, 0, 32, 64]]] and 0 < line["seconds"]
    json.dumps(line)


def test_boxes_in_the_json_of_stock_qwen_are_counted(scripted, write):
    """They fetch nothing, and nobody was told that a model writes them."""
    json_box = '```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "lesion"}]\n```'
    replies = (json_box, "no box")
    lines = [only_line(scripted(lambda _, r=r: (r,)), item(r[-3:])) for r in replies]
    assert lines[0]["other_syntax"] == [[1, 2, 30, 40]] and lines[0]["boxes"] == []
    assert "other_syntax" not in lines[1]
    assert "1 boxes in 1 replies are JSON (bbox_2d)" in report(write("r.jsonl", lines))[1]


def test_truth_boxes_follow_the_image_into_the_frame_of_the_model(scripted):
    box = format_box(Box2D(0, 0, 64, 64))
    generator = scripted(lambda _: ("<think>", box, "</think>", "A. Left"))
    double = ProcessorFrame(8, 2, 128 * 128, 128 * 128)
    asked = item("q", truth_boxes=(("lesion", Box2D(0, 0, 128, 64)),), frame=double)
    line = only_line(generator, asked)
    assert line["truth_boxes"] == [["lesion", [0, 0, 64, 32]]] and line["iou_first"] == 0.5
    thousandths = replace(double, scale=1000)
    asked = item("t", truth_boxes=(("lesion", Box2D(0, 0, 1000, 500)),), frame=thousandths)
    assert only_line(generator, asked)["truth_boxes"] == line["truth_boxes"]
    words = item("w", question="What is at [0,0,128,64]?", frame=double)
    assert "build --model" in only_line(generator, words)["error"]["message"]


def test_a_box_that_the_question_states_is_no_measure_of_looking(scripted):
    box = format_box(Box2D(0, 0, 32, 32))
    generator = scripted(lambda _: ("<think>", box, "</think>", "A. Left"))
    truth = (("lesion", Box2D(0, 0, 32, 64)),)
    stated = item("q", question="What is at [0,0,32,64]?", truth_boxes=truth)
    line = only_line(generator, stated)
    assert line["iou_first"] is None and line["truth_boxes"] and line["boxes"]


@pytest.mark.parametrize(
    ("reply", "asked", "prediction", "correct"),
    [
        ("Left kidney.", {"options": {}, "answer": "left  Kidney"}, "Left kidney.", True),
        ("?", {"options": {}, "answer": "!"}, "?", False),
        ("I cannot tell.", {}, None, False),  # an abstention
        ("I cannot tell.", {"answer": None}, None, None),  # the truth is unknown
    ],
)
def test_open_answers_abstentions_and_unknown_truths(scripted, reply, asked, prediction, correct):
    generator = scripted(lambda _: ("<think>x</think>", reply))
    line = only_line(generator, item("q", **asked))
    assert line["prediction"] == prediction and line["correct"] is correct


def test_overlaps_of_first_best_and_all_boxes():
    truth = [Box2D(0, 0, 10, 10), Box2D(20, 0, 30, 10)]
    written = [Box2D(0, 0, 10, 5), Box2D(20, 0, 30, 10), Box3D(0, 0, 0, 10, 10, 1)]
    assert overlaps(written, truth) == {"iou_first": 0.5, "iou_best": 1.0, "iou_all": 0.75}
    assert overlaps([], truth) == {"iou_first": 0.0, "iou_best": 0.0, "iou_all": 0.0}
    assert overlaps(written, []) == {"iou_first": None, "iou_best": None, "iou_all": None}
    cuboid = Box3D(0, 0, 0, 10, 10, 4)
    assert overlaps([Box3D(0, 0, 2, 10, 10, 6)], [cuboid])["iou_best"] == 0.333333
    assert overlaps([Box2D(0, 0, 10, 10)], [cuboid])["iou_best"] == 0  # a rectangle is no cuboid


# --- what survives -----------------------------------------------------------------------------


def test_a_run_is_gone_on_with_and_may_grow(tmp_path, phantoms, generator):
    half = Benchmark("p", phantoms.items[:5], phantoms.identity)
    out = QUICK(half, tmp_path / "r.jsonl", generator, batch_size=3)
    before = {line["id"]: line for line in read_results(out)}
    with out.open("ab") as file:
        file.write(b'{"id": "torn')
    QUICK(phantoms, out, generator, batch_size=4)
    lines = list(read_results(out))
    assert sorted(line["id"] for line in lines) == sorted(i.id for i in phantoms)
    again = {line["id"]: line for line in lines if line["id"] in before}
    assert again == before  # seconds too: not asked again
    shorter = Benchmark("p", phantoms.items[2:4], phantoms.identity)
    assert list(read_results(QUICK(shorter, out, generator))) == lines  # those of others stay
    with pytest.raises(RequestError, match="max_new_tokens was 4 and is now 80"):
        QUICK(phantoms, out, generator, settings=LONG)
    with pytest.raises(RequestError, match=r'control was "none" and is now "blank"'):
        QUICK(phantoms, out, generator, control="blank")


def test_a_full_disk_is_named_with_its_file(tmp_path, phantoms, generator, monkeypatch):
    """(It was a bare "Errno 28" without a path.)"""
    few = Benchmark("b", phantoms.items[:2], phantoms.identity)
    out = QUICK(few, tmp_path / "r.jsonl", generator)
    before, plain = out.read_bytes(), os.fsync

    def full(file):
        if os.path.samestat(os.fstat(file), out.stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatasetError, match=r"r\.jsonl: expected space on the disk.*free some"):
        QUICK(phantoms, out, generator)
    monkeypatch.undo()
    assert out.read_bytes() == before  # whole lines only


# --- controls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_change_what_is_shown_and_nothing_else(control):
    items = tuple(item(f"{k}", f"p{k // 2}", images=3, value=20 * k) for k in range(4))
    shown = shown_images(Benchmark("b", items), control)
    arrays = np.array([[np.asarray(i) for i in shown(one)] for one in items])
    assert arrays.shape == (4, 3, 64, 64, 3)
    if control == "blank":
        assert (arrays == 128).all()
    elif control == "noise":
        assert arrays.std() > 60 and len({a.tobytes() for row in arrays for a in row}) == 12
        assert (np.asarray(shown(items[0])[0]) == arrays[0, 0]).all()
    elif control == "other":  # the first of p1; the last of p0
        assert arrays[0, 0, 0, 0, 0] == 40 and arrays[2, 0, 0, 0, 0] == 20
    else:
        assert (arrays[3, 1] == 61).all()


def test_partners_are_other_patients_and_stay_when_the_benchmark_grows():
    items = [item(f"{k}", f"p{k // 3}", images=1 + k % 2) for k in range(30)]
    partner = partners(items)
    assert all(partner[i.id].patient != i.patient for i in items)
    assert all(partner[i.id].dimension == i.dimension for i in items)
    assert all(partner[name] is one for name, one in partners(items[:12]).items())
    with pytest.raises(RequestError, match="two patients"):
        partners(items[:3])
    changed = fitted([image(10, (32, 32)), image(90, (32, 32))], [image(0)] * 4)
    assert [i.size for i in changed] == [(64, 64)] * 4
    assert [np.asarray(i)[0, 0, 0] for i in changed] == [10, 10, 90, 90]


@pytest.mark.parametrize("control", ["random-crop", "shifted-crop", "swapped-crop"])
def test_other_crops_have_the_size_of_the_box_and_miss_it_and_no_crop_has_none(
    tmp_path, scripted, control
):
    box = Box2D(4, 4, 20, 24)
    generator = scripted(lambda _: ("<think>", format_box(box), "</think>", "B. Right"))
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8)
    scans = {"q": Image.fromarray(pixels), "p": Image.fromarray(pixels.T)}
    items = (item(k, k, load=lambda one=v: [one.convert("RGB")]) for k, v in scans.items())
    asked = Benchmark("b", tuple(items))
    request = asked.items[0].request(asked.items[0].load())
    other = other_crops(generator, control, asked)
    (true,), (crop,) = (g.crops_for(request, box) for g in (generator, other))
    assert crop.size == true.size and crop.tobytes() != true.tobytes()
    assert other.crops_for(request, box)[0].tobytes() == crop.tobytes()
    assert not other.crops_for(request, Box2D(100, 100, 120, 120))
    (trace,) = other.generate([request], max_new_tokens=60)
    assert trace.crops[0][0].tobytes() == crop.tobytes() and trace.boxes == [box]
    for name, fetched in ((control, True), ("no-crop", False)):
        out = QUICK(asked, tmp_path / name, generator, settings=LONG, control=name)
        line = next(read_results(out))
        assert bool(line["injected_tokens"]) == bool(line["crop_fraction"]) == fetched
        assert line["boxes"] == [list(box.as_tuple())]


def test_a_box_elsewhere_has_its_size_and_overlaps_it_little():
    box = Box2D(4, 4, 20, 24)
    for k in range(50):
        moved = elsewhere(box, (64, 64), str(k) if k else None)
        assert moved.iou(box) < 0.1 and (moved.width, moved.height) == (16, 20)
        assert moved.clip(64, 64) == moved
    assert elsewhere(box, (64, 64)) == Box2D(20, 4, 36, 24)  # beside it
    cuboid = elsewhere(Box3D(0, 0, 1, 30, 30, 3), (64, 64, 4), "s")
    assert (cuboid.width, cuboid.height, cuboid.depth) == (30, 30, 2)
    assert cuboid.clip(64, 64, 4) == cuboid
    whole = Box2D(0, 0, 64, 64)
    assert elsewhere(whole, (64, 64), "s") == whole


def test_impossible_requests_are_refused(tmp_path, phantoms, generator):
    for wrong, message in (
        ({"control": "blink"}, "a control of none"),
        ({"batch_size": 0}, "size"),
    ):
        with pytest.raises(RequestError, match=message):
            QUICK(phantoms, tmp_path / "r.jsonl", generator, **wrong)
    for items, message in (((item("q"), item("q")), "'q' twice"), ((), "found none")):
        with pytest.raises(DatasetError, match=message):
            Benchmark("b", items)
