"""A small hand-made reply, every position of which is known; and what a reader would see wrong in a figure."""

from itertools import combinations

import pytest
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.grounding.trace import GroundedRequest, Pointing, Trace
from unireason_lib.imaging.crops import crop_region

SPECIAL = {
    1: "<|im_start|>",
    2: "<|im_end|>",
    3: "<|vision_start|>",
    4: "<|image_pad|>",
    5: "<|vision_end|>",
    6: "<|box_start|>",
    7: "<|box_end|>",
    8: "<think>",
    9: "</think>",
}


class ByteTokenizer:
    """One token a byte, and the control tokens that matter."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            token = next((i for i, name in SPECIAL.items() if text.startswith(name)), None)
            if token is None:
                ids += [byte + 16 for byte in text[0].encode()]
                text = text[1:]
            else:
                ids.append(token)
                text = text[len(SPECIAL[token]) :]
        return ids

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self.encode(token)[0] for token in tokens]

    def decode(self, ids) -> str:
        out = b"".join(SPECIAL[i].encode() if i in SPECIAL else bytes([i - 16]) for i in ids)
        return out.decode("utf-8", errors="replace")


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def slices() -> list[Image.Image]:
    """Eight slices of 48 x 40 pixels; every pixel of every slice has a grey level of its own kind."""
    pictures = []
    for z in range(8):
        picture = Image.new("L", (48, 40))
        picture.putdata([(3 * x + 5 * y + 29 * z) % 256 for y in range(40) for x in range(48)])
        pictures.append(picture.convert("RGB"))
    return pictures


@pytest.fixture(scope="session")
def make_trace():
    return _make_trace


def _make_trace(
    pictures, parts, tokenizer, *, dimension="3d", id="case", options=None, question="Where is it?"
):
    """A trace as the generator would return it: ``parts`` are texts and boxes, and every box fetches its crops."""
    text, ids, own, pointings = "", [], [], []
    for part in parts:
        written = part if isinstance(part, str) else format_box(part)
        text += written
        new = tokenizer.encode(written)
        ids, own = ids + new, own + [1] * len(new)
        if isinstance(part, str):
            continue
        crops = crop_region(pictures, part)
        pointings.append(
            Pointing(written, part, "injected" if crops else "outside", tuple(crops), len(ids))
        )
        for _ in crops:
            ids, own = [*ids, 3, *[4] * 6, 5], own + [0] * 8
    request = GroundedRequest(
        question, pictures, options or {"A": "left", "B": "right"}, dimension, id
    )
    prompt = [
        1,
        *tokenizer.encode("user\n"),
        *([3, *[4] * 6, 5] * len(pictures)),
        *tokenizer.encode(question),
        2,
    ]
    rounds = 1 + sum(p.status == "injected" for p in pointings)
    return Trace(
        request,
        text,
        tuple(ids),
        tuple(own),
        (0.0,) * len(ids),
        tuple(prompt),
        tuple(pointings),
        "end",
        rounds,
        0.5,
    )


@pytest.fixture(scope="session")
def volume_trace(slices, tokenizer):
    parts = (
        "<think>It lies at ",
        Box3D(10, 8, 2, 26, 24, 5),
        ", not at ",
        Box3D(900, 900, 0, 950, 950, 2),
        " nor ",
        Box3D(30, 4, 4, 44, 20, 8),
        ".</think>A. left",
    )
    return _make_trace(slices, parts, tokenizer, id="volume")


@pytest.fixture(scope="session")
def picture_trace(slices, tokenizer):
    parts = ("<think>Here ", Box2D(5, 6, 25, 30), ".</think>B. right")
    return _make_trace(slices[:1], parts, tokenizer, dimension="2d", id="picture")


@pytest.fixture(scope="session")
def clean_layout():
    """Asserts that no text of a figure lies on another one or runs off the sheet."""

    def check(figure, slack=1.0):
        figure.draw_without_rendering()
        renderer = figure._get_renderer()
        placed = [(text.get_text(), text.get_window_extent(renderer)) for text in _texts(figure)]
        assert [
            (a, b) for (a, one), (b, two) in combinations(placed, 2) if _overlap(one, two, slack)
        ] == []
        width, height = figure.canvas.get_width_height()
        beyond = [(-e.x0, -e.y0, e.x1 - width, e.y1 - height) for _, e in placed]
        assert [
            words for (words, _), by in zip(placed, beyond, strict=True) if max(by) > slack
        ] == []

    return check


def _overlap(one, two, slack):
    x = min(one.x1, two.x1) - max(one.x0, two.x0)
    y = min(one.y1, two.y1) - max(one.y0, two.y0)
    return min(x, y) > slack


def _texts(figure):
    everything = list(figure.texts)
    for axes in figure.axes:
        everything += axes.texts
        if axes.axison:
            everything += [axes.title, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                everything += [
                    tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
                ]
    return [text for text in everything if text.get_text().strip() and text.get_visible()]
