"""Many replies on one web page that needs nothing else: images, boxes, text, filters, and runs side
by side.

Python writes one block of JSON, and ``page.js`` draws all from it. The page loads nothing (its own
content security policy forbids it), an image is inside once however many replies share it, crops
are drawn from the slices, and what a model or a data set wrote becomes text, never markup.
"""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from unireason_lib.answers import printable
from unireason_lib.boxes import Box
from unireason_lib.display.figures import BOX_COLORS, need
from unireason_lib.display.replies import Reply, read_reply
from unireason_lib.imaging.crops import crop_rectangle, slice_range

MAX_BYTES = 48 * 2**20  # of images in one page, which a browser opens within seconds


class TracePage:
    """Replies are added one by one; only their images, encoded, are kept. When these reach
    :data:`MAX_BYTES`, further replies are shown as text, and ``notice`` says so on the page."""

    def __init__(self, title: str = "Grounded replies") -> None:
        self.title, self.notice, self._bytes, self._left_out = title, "", 0, 0
        self._images: dict[str, str] = {}  # key -> PNG in base64
        self._rows: dict[Any, dict[str, Any]] = {}
        self._seen: Counter[Any] = Counter()
        self._runs: dict[str, int] = {}

    def add(self, trace: Any, images: Any = None, *, frame: Any = None, run: str = "") -> None:
        """Add a trace, or a line of results with the right letter in ``truth``; arguments and
        errors are those of :func:`unireason_lib.display.replies.read_reply`. Replies of several
        runs to the same question (id and words) stand side by side."""
        reply = read_reply(trace, images, frame)
        shown = self._shown(reply)
        asked = (reply.id, reply.question, *chain(*reply.options.items()))
        alike = (one for one, _ in self._rows if one[0] == asked[0] and not (one[1] and asked[1]))
        asked = next(alike, asked)  # the line of a failed question may have its id only
        self._seen[run, asked] += 1  # of one run, as in a group of rollouts, each has its own row
        new = {name: getattr(reply, name) for name in "id question dimension family truth".split()}
        new |= {"options": list(reply.options.items()), "replies": {}}
        row = self._rows.setdefault((asked, self._seen[run, asked]), new)
        row |= {name: value for name, value in new.items() if not row[name]}
        row["replies"][self._runs.setdefault(run, len(self._runs))] = shown

    def html(self) -> str:
        """The page; a :class:`unireason_lib.errors.RequestError` when it has no replies."""
        need(self._rows, "page", "replies", "none")
        data = {"runs": list(self._runs), "images": self._images, "notice": self.notice}
        data |= {"rows": list(self._rows.values()), "colors": BOX_COLORS}
        here, loader = files("unireason_lib.display"), PackageLoader("unireason_lib", "display")
        style, script = (Markup((here / f"page.{end}").read_text("utf-8")) for end in ("css", "js"))
        how = {"title": printable(self.title), "style": style, "script": script, "hash": _hash}
        environment = Environment(loader=loader, autoescape=True)
        return environment.get_template("page.html.jinja").render(data=_clean(data), **how)

    def _shown(self, reply: Reply) -> dict[str, Any]:
        """A reply as ``page.js`` draws it."""
        slices, pieces = self._keep(reply.images), []
        room = (len(slices), *reply.images[0].size) if slices else (0, 0, 0)
        for piece in reply.pieces:
            if not isinstance(piece, str):
                about = {"words": piece.text, "number": piece.number, "crops": piece.fetched}
                about["status"] = "" if piece.status == "injected" else piece.status
                piece = about | {"place": _place(piece.box, *room) if piece.box else None}
            pieces.append(piece)
        truths = [(name, _place(box, *room)) for name, box in reply.truth_boxes]
        shown = {name: getattr(reply, name) for name in "choice right iou error facts".split()}
        shown |= {"truths": [(name, place) for name, place in truths if place]}
        return shown | {"pieces": pieces, "slices": slices, "size": room[1:]}

    def _keep(self, images: Sequence[Image.Image]) -> list[str]:
        """Store images once each; their keys, made from pixels, or none when the page is full."""
        pixels = [repr(image.size).encode() + image.tobytes() for image in images]
        keys = [hashlib.sha256(one).hexdigest()[:16] for one in pixels]
        new = {k: i for k, i in zip(keys, images, strict=True) if k not in self._images}
        new = {key: _png(image) for key, image in new.items()}
        size = sum(map(len, new.values()))
        if self._bytes + size > MAX_BYTES and new:
            self._left_out += 1
            full = f"a page holds at most {MAX_BYTES >> 20} MB of images"
            self.notice = f"Replies shown without images: {self._left_out} ({full})."
            return []
        self._images |= new
        self._bytes += size
        return keys


def _place(box: Box, count: int, width: int, height: int) -> dict[str, Any] | None:
    """Slices (``from`` up to before ``to``), rectangle and crop of a box; None outside. Edges of
    pixels are whole numbers."""
    span, inside = slice_range(box, count), box.xy.clip(width, height)
    if not span or inside.is_empty:
        return None
    rectangles = {"at": inside, "cut": crop_rectangle(box.xy, width, height)}
    edges = {name: (one.x1, one.y1, one.width, one.height) for name, one in rectangles.items()}
    return {"from": span.start, "to": span.stop, **edges}


def _png(image: Image.Image) -> str:
    """In base64, with one channel where the image is grey."""
    grey, buffer = image.convert("L"), io.BytesIO()
    same = grey.convert("RGB").tobytes() == image.tobytes()
    (grey if same else image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _clean(value: Any) -> Any:
    """All strings without control and direction characters."""
    if isinstance(value, dict):
        return {name: _clean(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    return printable(value) if isinstance(value, str) else value


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
