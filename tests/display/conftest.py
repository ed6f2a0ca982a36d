"""A small reply whose every position is known, and what a reader would see wrong in a figure."""

from itertools import combinations

import pytest
from matplotlib.text import Text
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.grounding.trace import GroundedRequest, Pointing, Trace
from unireason_lib.imaging.crops import crop_region

SPECIAL = "<|im_start|> <|im_end|> <|vision_start|> <|image_pad|> <|vision_end|> <|box_start|>"
SPECIAL = [*SPECIAL.split(), "<|box_end|>", "<think>", "</think>"]


class ByteTokenizer:
    """One token a byte, and the control tokens that matter."""

    def encode(self, text):
        ids = []
        while text:
            name = next((name for name in SPECIAL if text.startswith(name)), None)
            ids += [SPECIAL.index(name)] if name else [byte + 16 for byte in text[0].encode()]
            text = text[len(name or "?") :]
        return ids

    def convert_tokens_to_ids(self, tokens):
        return [self.encode(token)[0] for token in tokens]

    def decode(self, ids):
        parts = [bytes([i - 16]) if i >= 16 else SPECIAL[i].encode() for i in ids]
        return b"".join(parts).decode("utf-8", errors="replace")


@pytest.fixture(scope="session")
def tokenizer():
    return ByteTokenizer()


@pytest.fixture(scope="session")
def slices():
    """Eight slices of 48 x 40 pixels; every pixel of every slice has a grey level of its own."""
    images = []
    for z in range(8):
        image = Image.new("L", (48, 40))
        image.putdata([(3 * x + 5 * y + 29 * z) % 256 for y in range(40) for x in range(48)])
        images.append(image.convert("RGB"))
    return images


def make_trace(images, parts, tokenizer, name, dimension="3d", question="Where is it?"):
    """A trace as the generator returns it, of texts and boxes; each box fetches its crops."""
    text, ids, own, pointings = "", [], [], []
    for part in parts:
        written = part if isinstance(part, str) else format_box(part)
        text, new = text + written, tokenizer.encode(written)
        ids, own = ids + new, own + [1] * len(new)
        if not isinstance(part, str):
            crops = crop_region(images, part)
            status = "injected" if crops else "outside"
            pointings.append(Pointing(written, part, status, tuple(crops), len(ids)))
            ids, own = ids + [2, *[3] * 6, 4] * len(crops), own + [0] * 8 * len(crops)
    request = GroundedRequest(question, images, {"A": "left", "B": "right"}, dimension, name)
    prompt = [0, *[2, *[3] * 6, 4] * len(images), *tokenizer.encode(question), 1]
    reply = (tuple(ids), tuple(own), (0.0,) * len(ids), tuple(prompt), tuple(pointings))
    return Trace(request, text, *reply, "end", 3, 0.5)


@pytest.fixture(scope="session")
def volume_trace(slices, tokenizer):
    """Three boxes, the second outside of the volume, and text that looks like markup."""
    first, second = Box3D(10, 8, 2, 26, 24, 5), Box3D(30, 4, 4, 44, 20, 8)
    outside = Box3D(900, 900, 0, 950, 950, 2)
    parts = ("<think>It lies at ", first, ", not at ", outside, " nor ", second, "</think>A. left")
    return make_trace(slices, parts, tokenizer, "volume")


@pytest.fixture(scope="session")
def image_trace(slices, tokenizer):
    parts = ("<think>Here ", Box2D(5, 6, 25, 30), ".</think>B. right")
    return make_trace(slices[:1], parts, tokenizer, "image", dimension="2d")


@pytest.fixture(scope="session")
def clean():
    """Asserts of a figure: a description, and no text that lies on another one."""

    def check(figure):
        assert figure.alt
        figure.draw_without_rendering()
        texts = [*figure.texts, *(text for one in figure.legends for text in one.get_texts())]
        for axes in figure.axes:
            texts += axes.findobj(Text) if axes.axison else [*axes.texts, axes._left_title]
        placed = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text().strip()]
        for (one, a), (other, b) in combinations(placed, 2):
            common = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(common) <= 1.5, f"{one!r} lies on {other!r}"
        return figure

    return check
