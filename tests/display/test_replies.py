"""Replies as a page and as tokens: right places and images, no text of others as markup."""

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

from unireason_lib.display import show_trace, token_owners, token_strip, trace_html
from unireason_lib.errors import RequestError
from unireason_lib.imaging import ProcessorFrame


class Page(HTMLParser):
    """The elements of a page, its images, and the text of its articles."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], "", [], []
        self.feed(html)
        self.images = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside += [] if tag in ("meta", "img", "image", "rect", "input") else [tag]
        self.scripts += [""] if tag == "script" else []

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        if "script" in self._inside:
            self.scripts[-1] += data
        elif "article" in self._inside:
            self.text += data

    def all(self, tag, **attributes):
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]

    def pixels(self, key):
        data = base64.b64decode(self.images[key].partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def line_of(trace, **more):
    return json.loads(json.dumps(trace.to_dict() | more))


def test_a_page_shows_where_each_box_lies(volume_trace, slices):
    page = Page(trace_html([line_of(volume_trace, truth="A")], [slices]))
    places = {
        a["data-box"]: (a["data-from"], a["data-to"]) for a in page.all("g") if "data-box" in a
    }
    assert places == {"1": ("2", "5"), "3": ("4", "8")}
    outline = page.all("rect", **{"class": "outline"})[0]
    assert [outline[name] for name in ("x", "y", "width", "height")] == ["10", "8", "16", "16"]
    (slider,) = page.all("input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "7", "3")
    for words in ("Where is it?", "A. left", "chosen, right", "outside", "injected tokens: 56"):
        assert words in page.text
    keys = page.all("svg", **{"class": "stage"})[0]["data-slices"].split()
    crops = [crop for crops in volume_trace.crops for crop in crops]
    shown = [*keys, *(image["data-image"] for image in page.all("img"))]
    for key, image in zip(shown, [*slices, *crops], strict=True):
        assert np.array_equal(page.pixels(key), np.asarray(image))


def test_results_of_infer_and_evaluate_show_their_images(volume_trace, image_trace, slices):
    """A line keeps no images: they are given, and the crops are cut again. Each is kept once."""
    traces, images = [volume_trace, image_trace], [slices, slices[:1]]
    lines = [line_of(trace) for trace in traces]
    html = trace_html(lines, images)
    assert html == trace_html(traces, images)
    evaluated = [
        line | {"prediction": line["choice"], "truth": "A", "correct": True} for line in lines
    ]
    page = Page(trace_html(evaluated, images))
    assert page.images == Page(html).images and len(page.all("svg", **{"class": "stage"})) == 2
    assert "chosen, right" in page.text and "✗ chosen" in page.text
    assert "No images" in Page(trace_html([volume_trace])).text


def test_original_images_follow_with_the_frame_and_other_images_are_refused(image_trace, slices):
    original = [image.resize((96, 80)) for image in slices[:1]]
    empty = ProcessorFrame(8, 1, 48 * 40, 48 * 40)
    assert Page(trace_html([image_trace], frame=empty)).all("svg", viewbox="0 0 48 40")
    small = [slices[0].resize((20, 20))]
    for trace, images in ((image_trace, original), (line_of(image_trace), small)):
        with pytest.raises(RequestError, match=r"crops were cut.*as the processor shows them"):
            trace_html([trace], [images])
    with pytest.raises(RequestError, match="images: expected at least one"):
        show_trace(image_trace)


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "</article></main></body><!-- {{ 7 * 7 }}",
    "\u202egnp.txe\u2066\ud800\x00\x1b[31m",
)


@pytest.mark.parametrize("words", HOSTILE)
def test_nothing_that_others_wrote_becomes_markup(slices, words):
    names = ("id", "question", "choice", "stop", "truth", "error", "answer")
    box = "<|box_start|>[1,2,9,9]<|box_end|>"
    line = dict.fromkeys(names, words) | {"options": {words: words}, "text": words + box + words}
    line["pointings"] = [{"text": box, "box": [1, 2, 9, 9], "status": words, "crops": []}]
    html = trace_html([line, line], [slices[:1]] * 2, title=words)
    html.encode("utf-8")
    page = Page(html)
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert len(page.scripts) == 2 and not page.all("img") and len(page.all("article")) == 2
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", html)
    assert words in page.text or not words.isprintable()


def test_the_page_loads_nothing_and_runs_only_its_own_script(volume_trace, slices):
    html = trace_html([volume_trace], [slices])
    page = Page(html)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "unsafe" not in policy and "://" not in html
    assert not [a for _, a in page.elements if "style" in a]


def test_a_line_that_is_no_result_says_so(slices, tmp_path):
    lines = [
        {},
        {"id": "lost", "error": "scan.nii: expected a file"},
        {"text": "nothing else", "seconds": float("nan")},
        {"id": "broken", "text": "x", "pointings": [3]},
        {"text": "x", "pointings": [{"text": "x", "box": [1e400, 0, 1, 1]}]},
        {"text": "x", "options": ["A"], "own_tokens": "many"},
    ]
    page = Page(trace_html(lines, [slices] * 6, path=tmp_path / "page.html"))
    assert (tmp_path / "page.html").stat().st_size and len(page.all("article")) == 6
    assert page.text.count("this line is no result") == 3 and "expected a file" in page.text
    for wrong in (lambda: trace_html([]), lambda: trace_html(lines, [slices])):
        with pytest.raises(RequestError, match="images for each reply"):
            wrong()


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
