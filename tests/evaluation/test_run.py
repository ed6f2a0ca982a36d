"""Asking a benchmark: the lines, and the controls."""

import json
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


@pytest.fixture
def line_about(scripted):
    """A function that gives the line of an item to which the model replies with some parts."""

    def ask(asked, *parts):
        (line,) = ask_items(scripted(lambda _: parts), [asked], settings=LONG)
        return line

    return ask


# --- lines -------------------------------------------------------------------------------------


def test_a_line_says_what_was_asked_written_and_reached(line_about):
    reply = "<think>It is at ", format_box(Box2D(0, 0, 32, 32)), ", so ", "</think>", "B. Right"
    truth = (("lesion", Box2D(0, 0, 32, 64)),)
    line = line_about(item("q", truth_boxes=truth, kind="quadrant", guess="A"), *reply)
    assert line["prediction"] == line["truth"] == "B" and line["correct"] is True
    assert line["boxes"] == [[0, 0, 32, 32]] and line["guess"] == "A"
    assert [p["status"] for p in line["pointings"]] == ["injected"]
    assert line["iou_first"] == line["iou_best"] == line["iou_all"] == 0.5
    assert line["crop_fraction"] == 0.25 and line["frame"] == [64, 64, 1] and line["in_format"]
    assert line["rounds"] == 2 and line["injected_tokens"] == 6 and line["stop"] == "end"
    assert line["truth_boxes"] == [["lesion", [0, 0, 32, 64]]] and 0 < line["seconds"]
    json.dumps(line)
    # a box that the question states is no measure of looking
    line = line_about(item("s", question="What is at [0,0,32,64]?", truth_boxes=truth), *reply)
    assert line["iou_first"] is None and line["truth_boxes"] and line["boxes"]


def test_boxes_in_the_json_of_stock_qwen_are_counted(line_about, write):
    """They fetch nothing, and nobody was told that a model writes them."""
    json_box = '```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "lesion"}]\n```'
    lines = [line_about(item(reply[-3:]), reply) for reply in (json_box, "no box")]
    assert lines[0]["other_syntax"] == [[1, 2, 30, 40]] and lines[0]["boxes"] == []
    assert "other_syntax" not in lines[1]
    assert "1 boxes in 1 replies are JSON (bbox_2d)" in report(write("r.jsonl", lines))[1]


def test_truth_boxes_follow_the_image_into_the_frame_of_the_model(line_about):
    reply = "<think>", format_box(Box2D(0, 0, 64, 64)), "</think>", "A. Left"
    double = ProcessorFrame(8, 2, 128 * 128, 128 * 128)
    thousandths = replace(double, scale=1000)
    for frame, corners in ((double, (0, 0, 128, 64)), (thousandths, (0, 0, 1000, 500))):
        line = line_about(item("q", truth_boxes=(("x", Box2D(*corners)),), frame=frame), *reply)
        assert line["truth_boxes"] == [["x", [0, 0, 64, 32]]] and line["iou_first"] == 0.5
    words = item("w", question="What is at [0,0,128,64]?", frame=double)
    assert "build --model" in line_about(words, *reply)["error"]["message"]


@pytest.mark.parametrize(
    ("reply", "asked", "prediction", "correct"),
    [
        ("Left kidney.", {"options": {}, "answer": "left  Kidney"}, "Left kidney.", True),
        ("?", {"options": {}, "answer": "!"}, "?", False),
        ("I cannot tell.", {}, None, False),  # an abstention
        ("I cannot tell.", {"answer": None}, None, None),  # the truth is unknown
    ],
)
def test_open_answers_abstentions_and_unknown_truths(line_about, reply, asked, prediction, correct):
    line = line_about(item("q", **asked), "<think>x</think>", reply)
    assert line["prediction"] == prediction and line["correct"] is correct


def test_overlaps_of_first_best_and_all_boxes():
    truth = [Box2D(0, 0, 10, 10), Box2D(20, 0, 30, 10)]
    written = [Box2D(0, 0, 10, 5), Box2D(20, 0, 30, 10), Box3D(0, 0, 0, 10, 10, 1)]
    assert overlaps(written, truth) == {"iou_first": 0.5, "iou_best": 1.0, "iou_all": 0.75}
    assert {*overlaps([], truth).values()} == {0.0} and {*overlaps(written, []).values()} == {None}
    cuboid = Box3D(0, 0, 0, 10, 10, 4)
    assert overlaps([Box3D(0, 0, 2, 10, 10, 6)], [cuboid])["iou_best"] == 0.333333
    assert overlaps([Box2D(0, 0, 10, 10)], [cuboid])["iou_best"] == 0  # a rectangle is no cuboid


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


@pytest.mark.parametrize("control", ["random-crop", "shifted-crop", "swapped-crop", "no-crop"])
def test_other_crops_have_the_size_of_the_box_and_miss_it_and_no_crop_has_none(
    tmp_path, scripted, checkpoint, control
):
    box = Box2D(4, 4, 20, 24)
    generator = scripted(lambda _: ("<think>", format_box(box), "</think>", "B. Right"))
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8)
    scans = {"q": Image.fromarray(pixels), "p": Image.fromarray(pixels.T)}
    items = (item(k, k, load=lambda one=v: [one.convert("RGB")]) for k, v in scans.items())
    asked = Benchmark("b", tuple(items))
    out = QUICK(asked, tmp_path / "r", checkpoint, settings=LONG, control=control)
    line, fetched = next(read_results(out)), control != "no-crop"
    assert bool(line["injected_tokens"]) == bool(line["crop_fraction"]) == fetched
    assert line["boxes"] == [list(box.as_tuple())]
    if fetched:
        request = asked.items[0].request(asked.items[0].load())
        other = other_crops(generator, control, asked)
        crops = [g.crops_for(request, box) for g in (generator, other, other)]
        (true, crop, again) = (one.tobytes() for (one,) in crops)
        assert crops[0][0].size == crops[1][0].size and true != crop == again
        assert not other.crops_for(request, Box2D(100, 100, 120, 120))


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


def test_impossible_requests_are_refused(tmp_path, phantoms, checkpoint):
    for wrong in ({"control": "blink"}, {"batch_size": 0}):
        with pytest.raises(RequestError, match=r"a control of none.* and a batch size of 1"):
            QUICK(phantoms, tmp_path / "r.jsonl", checkpoint, **wrong)
    for items, message in (((item("q"), item("q")), "'q' twice"), ((), "found none")):
        with pytest.raises(DatasetError, match=message):
            Benchmark("b", items)
