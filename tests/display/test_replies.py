"""Replies as a page and as tokens: right places and images, no text of others as markup. What the
page does is tested in ``test_in_a_browser.py``."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.display import TracePage, page, show_trace, token_owners, token_strip
from unireason_lib.errors import RequestError
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.imaging.crops import crop_region


class Page(HTMLParser):
    """A page of replies (trace, images): its elements and its data."""

    def __init__(self, *replies, frame=None, made=None):
        super().__init__()
        made = made or TracePage()
        for trace, images in replies:
            made.add(trace, images, frame=frame)
        self.html, self.elements, self.scripts, self._inside = made.html(), [], [], []
        self.feed(self.html)
        assert not self._inside and len(self.scripts) == 2
        self.data = json.loads(self.scripts[0])
        self.rows = self.data["rows"]
        self.replies = [reply for row in self.rows for reply in row["replies"].values()]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside += [] if tag == "meta" else [tag]
        self.scripts += [""] if tag == "script" else []

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        if "script" in self._inside:
            self.scripts[-1] += data

    def slices(self, reply):
        stored = [base64.b64decode(self.data["images"][key]) for key in reply["slices"]]
        return [Image.open(io.BytesIO(one)) for one in stored]


def line_of(trace, **more):
    return json.loads(json.dumps(trace.to_dict() | more))


def boxes_of(reply):
    return [piece for piece in reply["pieces"] if not isinstance(piece, str)]


def test_a_page_knows_where_each_box_and_its_crops_lie(volume_trace, slices):
    more = {"truth": "A", "correct": True, "iou_first": 0.25, "iou_best": 0.4321, "family": "where"}
    more["truth_boxes"] = [["liver", [10, 8, 2, 26, 24, 4]], ["far", [90, 90, 0, 99, 99, 1]]]
    shown = Page((line_of(volume_trace, **more), slices))
    (row,), (reply,) = shown.rows, shown.replies
    assert (row["question"], row["truth"], row["dimension"]) == ("Where is it?", "A", "3d")
    assert (row["family"], row["options"]) == ("where", [["A", "left"], ["B", "right"]])
    assert (reply["choice"], reply["right"], reply["iou"]) == ("A", True, 0.25)
    assert "injected tokens: 56" in reply["facts"] and "best IoU: 0.432" in reply["facts"]
    assert reply["pieces"][0] == "<think>It lies at " and len(reply["pieces"]) == 7
    first, outside, second = boxes_of(reply)
    assert [box["number"] for box in (first, outside, second)] == [1, 2, 3]
    assert first["place"] == {"from": 2, "to": 5, "at": [10, 8, 16, 16], "cut": [10, 8, 16, 16]}
    assert outside["place"] is None and (outside["status"], outside["crops"]) == ("outside", 0)
    assert (second["place"]["from"], second["place"]["to"], second["crops"]) == (4, 8, 4)
    assert reply["truths"] == [["liver", {**first["place"], "to": 4}]]
    stored = shown.slices(reply)
    for one, image in zip(stored, slices, strict=True):
        assert one.mode == "L" and np.array_equal(one.convert("RGB"), image)
    for place, crops in ((first["place"], 0), (second["place"], 2)):
        x, y, width, height = place["cut"]
        cut = [one.crop((x, y, x + width, y + height)) for one in stored]
        cut = [one.convert("RGB") for one in cut[place["from"] : place["to"]]]
        assert all(map(np.array_equal, cut, volume_trace.crops[crops]))


def test_a_small_box_is_drawn_as_written_and_its_crop_as_cut(slices):
    box, numbers = "<|box_start|>[5,6,2,6,8,3]<|box_end|>", (5, 6, 2, 6, 8, 3)
    sizes = [list(crop.size) for crop in crop_region(slices, Box3D(*numbers))]
    pointing = {"text": box, "box": list(numbers), "status": "injected", "crops": sizes}
    (reply,) = Page(({"id": "x", "text": box, "pointings": [pointing]}, slices)).replies
    (piece,) = boxes_of(reply)
    assert piece["place"]["at"] == [5, 6, 1, 2] and piece["place"]["cut"][2:] == [4, 4]


def test_results_of_infer_and_evaluate_show_their_images(volume_trace, image_trace, slices):
    """A line keeps no images: they are given. Each is kept once, however many replies share it."""
    traces, images = [volume_trace, image_trace, image_trace], [slices, slices[:1], slices[:1]]

    def shown(**more):
        lines = [line_of(trace, **more) for trace in traces]
        return Page(*zip(lines, images, strict=True))

    assert shown().html == Page(*zip(traces, images, strict=True)).html
    assert len(shown().data["images"]) == 8 and len(shown().rows) == 3
    assert shown().replies[1]["slices"] == shown().replies[0]["slices"][:1]
    assert [one["right"] for one in shown().replies] == [None] * 3
    assert [one["right"] for one in shown(truth="A").replies] == [True, False, False]
    (bare,) = Page((volume_trace, None)).replies
    assert bare["slices"] == [] and [box["crops"] for box in boxes_of(bare)] == [3, 0, 4]


def test_runs_stand_side_by_side(volume_trace, image_trace):
    a, b = line_of(volume_trace), line_of(image_trace)
    failed = {"id": a["id"], "error": {"message": "scan.nii: expected a file"}}
    made, other = TracePage(), b | {"question": "Another one?"}
    for run, line in zip("121122", (failed, a, b, b, b, other), strict=True):
        made.add(line, run=run)
    data = Page(made=made).data
    assert data["runs"] == ["1", "2"]
    assert [list(row["replies"]) for row in data["rows"]] == [["0", "1"], ["0", "1"], ["0"], ["1"]]
    first, *_, last = data["rows"]
    assert first["question"] == a["question"] and first["replies"]["0"]["error"].startswith("scan")
    assert last["question"] == "Another one?"


def test_a_page_that_is_full_says_so(volume_trace, image_trace, slices, monkeypatch):
    monkeypatch.setattr(page, "MAX_BYTES", 1 << 20)
    noise = np.random.default_rng(0).integers(0, 256, (9, 400, 400), np.uint8)
    data = Page(({"text": "x"}, noise), (volume_trace, slices), (image_trace, slices[:1]))
    assert [len(reply["slices"]) for reply in data.replies] == [0, 8, 1]
    notice = data.data["notice"]
    assert notice.startswith("Replies shown without images: 1 (") and "1 MB" in notice


def test_original_images_follow_with_the_frame_and_other_images_are_refused(image_trace, slices):
    original = [image.resize((96, 80)) for image in slices[:1]]
    frame = ProcessorFrame(8, 1, 48 * 40, 48 * 40)
    assert Page((image_trace, None), frame=frame).replies[0]["size"] == [48, 40]
    small = [slices[0].resize((20, 20))]
    for trace, images in ((image_trace, original), (line_of(image_trace), small)):
        with pytest.raises(RequestError, match=r"crops were cut.*as the processor shows them"):
            Page((trace, images))
    with pytest.raises(RequestError, match="images: expected at least one"):
        show_trace(image_trace)
    with pytest.raises(RequestError, match="page: expected replies"):
        TracePage().html()


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "</article></main></body><!-- {{ 7 * 7 }}",
    "\u202egnp.txe\u2066\ud800\x00\x1b[31m",
)


@pytest.mark.parametrize("words", HOSTILE)
def test_nothing_that_others_wrote_becomes_markup(slices, words):
    names = "id question choice stop truth error answer family dimension patient".split()
    box = "<|box_start|>[1,2,9,9]<|box_end|>"
    line = dict.fromkeys(names, words) | {"options": {words: words}, "text": words + box + words}
    line["truth_boxes"] = [[words, [1, 2, 9, 9]]]
    line["pointings"] = [{"text": box, "box": [1, 2, 9, 9], "status": words, "crops": []}]
    made = TracePage(words)
    made.add(line, slices[:1], run=words)
    shown, plain = Page(made=made), Page(({}, None))
    shown.html.encode("utf-8")
    tags = [tag for tag, _ in shown.elements]
    assert tags == [tag for tag, _ in plain.elements], "the data adds no element"
    assert [a for _, a in shown.elements[5:]] == [a for _, a in plain.elements[5:]]
    everything = shown.html + json.dumps(shown.data, ensure_ascii=False)
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\x00\x1b]|\\u00[01]", everything)
    if words.isprintable():
        (row,), (reply,) = shown.rows, shown.replies
        assert row["options"] == [[words, words]] and shown.data["runs"] == [words]
        assert {row[name] for name in "id question dimension family truth".split()} == {words}
        assert {reply["choice"], reply["error"], reply["pieces"][0]} == {words}
        assert boxes_of(reply)[0]["status"] == reply["truths"][0][0] == words


def test_the_page_loads_nothing_and_runs_only_its_own_script(volume_trace, slices):
    shown = Page((volume_trace, slices))
    (policy,) = [a["content"] for _, a in shown.elements if "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(shown.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not re.search("://|innerHTML", shown.html) and "unsafe" not in policy
    assert not [a for _, a in shown.elements if {"style", "src", "href"} & set(a)]


def test_a_line_that_is_no_result_says_so(slices):
    lines = [
        {},
        {"id": "lost", "error": "scan.nii: expected a file"},
        {"text": "nothing else", "seconds": float("nan"), "iou_first": float("inf")},
        {"id": "broken", "text": "x", "pointings": [3]},
        {"text": "x", "pointings": [{"text": "x", "box": [1e400, 0, 1, 1]}]},
        {"text": "x", "truth_boxes": [["liver", [1, 2]]]},
        {"text": "x", "options": ["A"], "own_tokens": "many"},
    ]
    shown = Page(*((line, slices) for line in lines))
    errors = [reply["error"] for reply in shown.replies]
    assert ["this line is no result" in error for error in errors] == [False] * 3 + [True] * 4
    assert errors[1] == "scan.nii: expected a file" and shown.replies[2]["iou"] == 1


def test_a_strip_shows_every_token_and_who_wrote_it(volume_trace, tokenizer):
    html = token_strip(volume_trace, tokenizer).data
    injected = volume_trace.own_mask.count(0)
    assert f"generated by the model (loss): {len(volume_trace.own_mask) - injected}<" in html
    assert f"injected regions (no loss): {injected}<" in html
    words = re.findall(r">([^<]*)</span>", html)[4:]
    assert words[:2] == ["&lt;|im_start|&gt;", "8 images, 48 tokens"]
    assert "3 images, 18 tokens" in words and "".join(words[-7:]) == "A. left"


def test_an_example_shows_what_carries_loss(tokenizer):
    """The two images of the question, and the one in the reply, are told apart."""
    image = [2, 3, 3, 4]
    ids = [*image, *image, *tokenizer.encode("Where?"), *tokenizer.encode("Here "), *image, 1]
    mask = [False] * 14 + [True] * 5 + [False] * 4 + [True]
    example = SimpleNamespace(ids=np.array(ids), loss_mask=np.array(mask))
    owners = token_owners(example, tokenizer)[1]
    assert owners == ["image"] * 8 + ["prompt"] * 6 + ["own"] * 5 + ["injected"] * 4 + ["own"]
    nothing = SimpleNamespace(ids=np.array(ids), loss_mask=np.zeros(len(ids), bool))
    assert set(token_owners(nothing, tokenizer)[1]) == {"image", "prompt"}
