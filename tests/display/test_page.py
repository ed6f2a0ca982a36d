import base64
import hashlib
import io
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.display import trace_html
from unireason_lib.errors import RequestError
from unireason_lib.imaging import ProcessorFrame


class Page(HTMLParser):
    """The elements of a page and the text of its articles."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], "", [], []
        self.feed(html)
        data = next(
            content for attributes, content in self.scripts if attributes.get("id") == "pictures"
        )
        self.pictures = json.loads(data)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
        self._inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert tag in self._inside, f"</{tag}> closes nothing"
        while self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self._inside:
            self.scripts[-1][1] += data
        elif "article" in self._inside:
            self.text += data

    def all(self, tag, **attributes):
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]

    def picture(self, key):
        return Image.open(io.BytesIO(base64.b64decode(self.pictures[key].partition(",")[2])))


def boxes_drawn(page):
    return {
        a["data-box"]: (int(a["data-from"]), int(a["data-to"]))
        for a in page.all("g")
        if "data-box" in a
    }


def test_a_reply_over_a_volume(volume_trace, slices):
    page = Page(trace_html(volume_trace, slices, truths="A"))
    assert boxes_drawn(page) == {"1": (2, 5), "3": (4, 8)}
    outline = page.all("rect", **{"class": "outline"})[0]
    assert [outline[name] for name in ("x", "y", "width", "height")] == ["10", "8", "16", "16"]
    assert [a["data-box"] for a in page.all("button") if "data-box" in a] == ["1", "2", "3"]
    assert len(page.all("img")) == 3 + 4
    (slider,) = page.all("input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "7", "3")
    for words in (
        "Where is it?",
        "A. left",
        "chosen, right",
        "outside",
        "3 rounds",
        "56 injected tokens",
    ):
        assert words in page.text


def test_pictures_and_crops_are_the_pixels_that_the_model_saw(volume_trace, slices):
    page = Page(trace_html(volume_trace, slices))
    keys = page.all("svg", **{"class": "stage"})[0]["data-slices"].split()
    assert len(keys) == 8
    for key, picture in zip(keys, slices, strict=True):
        assert np.array_equal(np.asarray(page.picture(key).convert("RGB")), np.asarray(picture))
    crops = [crop for crops in volume_trace.crops for crop in crops]
    for image, crop in zip(page.all("img"), crops, strict=True):
        assert np.array_equal(
            np.asarray(page.picture(image["data-picture"]).convert("RGB")), np.asarray(crop)
        )


def test_a_results_line_makes_the_same_page(volume_trace, picture_trace, slices):
    """A line keeps no pictures: the crops are cut again."""
    traces, pictures = [volume_trace, picture_trace], [slices, slices[:1]]
    lines = [json.loads(json.dumps(trace.to_dict())) for trace in traces]
    assert trace_html(lines, pictures) == trace_html(traces, pictures)
    by_id = {"picture": slices[:1], "volume": slices}
    assert trace_html(lines, by_id) == trace_html(traces, pictures)


def test_pictures_are_kept_once(volume_trace, slices):
    one, two = trace_html(volume_trace, slices), trace_html([volume_trace] * 2, [slices] * 2)
    assert Page(one).pictures == Page(two).pictures
    assert len(two) < 1.6 * len(one)


def test_other_pictures_are_refused(volume_trace, slices):
    twice = [picture.resize((96, 80)) for picture in slices]
    line = volume_trace.to_dict()
    with pytest.raises(RequestError, match="crops were cut"):
        trace_html(volume_trace, twice)
    small = [picture.resize((20, 20)) for picture in slices]  # the crops would have other sizes
    with pytest.raises(RequestError, match="crops were cut"):
        trace_html(json.loads(json.dumps(line)), small)


def test_frame_takes_the_pictures_of_the_request(make_trace, slices, tokenizer):
    frame = ProcessorFrame(8, 2, 48 * 40, 48 * 48)
    aligned = [frame.aligned(picture) for picture in slices]
    trace = make_trace(aligned, [Box3D(0, 0, 0, 9, 9, 2), "A"], tokenizer)
    page = Page(trace_html(trace, frame=frame))
    width, height = aligned[0].size
    assert page.all("svg", **{"class": "stage"})[0]["viewbox"] == f"0 0 {width} {height}"
    assert not Page(trace_html(trace)).all("svg")


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "</article></main></body><!-- ",
    "javascript:alert(1) &lt; &#60;",
    "\u202egnp.txe\u2066",
    "\ud800\x00\x1b[31m",
)


def test_nothing_that_others_wrote_becomes_markup(slices):
    for words in HOSTILE:
        line = dict.fromkeys(
            ("id", "question", "text", "choice", "stop", "truth", "error", "answer"), words
        )
        line |= {
            "options": {words: words},
            "text": f"{words}<|box_start|>[1,2,9,9]<|box_end|>{words}",
        }
        line["pointings"] = [
            {
                "text": "<|box_start|>[1,2,9,9]<|box_end|>",
                "box": [1, 2, 9, 9],
                "status": words,
                "crops": [],
            },
            {"text": words, "box": None, "status": words, "crops": words},
        ]
        html = trace_html([line, line], [slices[:1]] * 2, title=words)
        html.encode("utf-8")
        page = Page(html)
        assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
        assert [a for a, _ in page.scripts] == [{"type": "application/json", "id": "pictures"}, {}]
        assert not page.all("img") and len(page.all("article")) == 2
        assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", html)
        assert words in page.text or not words.isprintable()


def test_the_page_loads_nothing_and_runs_only_its_own_script(volume_trace, slices):
    html = trace_html(volume_trace, slices)
    page = Page(html)
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)[a-z]""", html.split("<script")[0])
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    (policy,) = (
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not [a for _, a in page.elements if "style" in a]


def test_any_line_of_a_results_file_can_be_shown(slices):
    lines = [
        {},
        {"id": "lost", "error": "scan.nii: expected a file, found nothing"},
        {
            "text": None,
            "options": ["A"],
            "pointings": [3],
            "rounds": "many",
            "seconds": float("nan"),
        },
        {
            "text": "<|box_start|>[1,2,9,9]<|box_end|> <|box_start|>[1,2",
            "pointings": None,
            "dimension": 7,
        },
        {
            "text": "x",
            "pointings": [{"box": [1e400, 0, 1, 1]}, {"box": ["a"] * 4}, {"box": [9, 9, 1, 1]}, {}],
        },
    ]
    page = Page(trace_html(lines, [slices] * len(lines)))
    assert len(page.all("article")) == 5 and "expected a file" in page.text
    assert [a["data-box"] for a in page.all("button") if "data-box" in a] == ["1"]


def test_truths_by_id_and_in_the_line(volume_trace, picture_trace, slices):
    pictures = [slices, slices[:1]]
    page = Page(trace_html([volume_trace, picture_trace], pictures, truths={"picture": "A"}))
    assert "✗ chosen" in page.text and "right answer" in page.text
    line = volume_trace.to_dict() | {"truth": "A"}
    assert "chosen, right" in Page(trace_html(line, slices)).text
    with pytest.raises(RequestError, match="truths"):
        trace_html([volume_trace], [slices], truths=["A", "B"])
    with pytest.raises(RequestError, match="at least one"):
        trace_html([])


def test_ten_thousand_boxes_take_a_moment(slices):
    text = "".join(f"<|box_start|>[{i % 40},1,{i % 40 + 3},9]<|box_end|>" for i in range(10_000))
    started = time.perf_counter()
    page = trace_html({"text": text}, slices[:1])
    assert page.count('class="box ') == 10_000
    assert time.perf_counter() - started < 10


def test_the_page_is_written(volume_trace, slices, tmp_path):
    path = tmp_path / "page.html"
    html = trace_html(volume_trace, slices, path=path)
    assert path.read_text(encoding="utf-8") == html
