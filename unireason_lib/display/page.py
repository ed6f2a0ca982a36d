"""Replies as one web page that needs nothing else: pictures, boxes, crops and text, to be stepped through.

The page is a single file. It loads nothing from anywhere (its own content security policy forbids it),
pictures are inside and kept once however often they are shown, and everything that a model or a data set
wrote is escaped. It works with the keyboard alone, on a phone, and in light and dark.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.display import replay
from unireason_lib.display.colors import BOX_COLORS
from unireason_lib.errors import RequestError


def trace_html(
    traces: Any,
    pictures: Any = None,
    *,
    path: str | Path | None = None,
    frame: Any = None,
    truths: Mapping[str, str] | Sequence[str] | None = None,
    title: str = "Grounded replies",
) -> str:
    """A page that replays replies.

    Args:
        traces: One or several :class:`unireason_lib.grounding.Trace`, or the lines of a results file as dictionaries.
        pictures: The pictures of each, as the processor shows them: by the reply's id, or in the order of the replies
            (for a single reply simply its pictures). Replies without pictures are shown as text, with the
            crops that they carry.
        path: Where to write the page as well.
        frame: The :class:`unireason_lib.imaging.ProcessorFrame` of the model. Then ``pictures`` are the original
            ones, by default those of the requests.
        truths: The right letters, by id or in order. A line of results may carry its own in ``truth``.
        title: Heading of the page.

    Returns:
        The page.

    Raises:
        RequestError: There are no replies, lists of different lengths, or pictures from which a reply's crops were not
            cut.
    """
    if isinstance(traces, Mapping) or hasattr(traces, "own_mask"):
        traces, pictures = [traces], None if pictures is None else [pictures]
        truths = [truths] if isinstance(truths, str) else truths
    traces = list(traces)
    told = [replay.from_trace(trace) for trace in traces]
    of_each = _for_each(told, pictures, "pictures")
    right = _for_each(told, truths, "truths")
    told = [
        reply if truth is None else replace(reply, truth=str(truth))
        for reply, truth in zip(told, right, strict=True)
    ]
    store: dict[str, str] = {}
    parts = []
    for number, (trace, reply, images) in enumerate(
        zip(traces, told, of_each, strict=True), start=1
    ):
        shown: list[Image.Image] = []
        if images is not None or (frame is not None and hasattr(trace, "request")):
            shown = replay.aligned_pictures(trace, reply, images, frame)
            reply = replay.with_crops(reply, shown)
        parts.append(_article(number, reply, shown, store))
    page = _page(title, told, parts, store)
    if path is not None:
        Path(path).write_text(page, encoding="utf-8")
    return page


def _for_each(told: Sequence[replay.Reply], values: Any, what: str) -> list[Any]:
    if not told or (
        values is not None and not isinstance(values, Mapping) and len(values) != len(told)
    ):
        raise RequestError(
            "trace page",
            f"at least one reply, and {what} by id or one for each reply",
            f"{len(told)} replies and {0 if values is None else len(values)} {what}",
            "give as many as there are replies",
        )
    if values is None:
        return [None] * len(told)
    return [values.get(reply.id) for reply in told] if isinstance(values, Mapping) else list(values)


# -- one reply ------------------------------------------------------------------------------------------------------


def _article(
    number: int, reply: replay.Reply, pictures: Sequence[Image.Image], store: dict[str, str]
) -> str:
    name = _text(reply.id) or f"reply {number}"
    body = f'<p class="error">{_text(reply.error)}</p>' if reply.error else ""
    if reply.text or not reply.error:
        words = _steps(reply, store)
        if pictures:
            body += f'<div class="board">{_stage(reply, pictures, store)}<div>{words}</div></div>'
        else:
            body += f'<p class="none">No pictures were given.</p>{words}'
    return (
        f'<article id="trace-{number}"><h2 dir="auto">{name}</h2>'
        f'<p class="question" dir="auto">{_text(reply.question) or "(no question)"}</p>'
        f'{_options(reply)}{body}<p class="facts">{_text(reply.summary())}</p></article>'
    )


def _options(reply: replay.Reply) -> str:
    items = []
    for letter, option in reply.options.items():
        chosen, right = letter == reply.choice, letter == reply.truth
        note = ""
        if chosen and reply.truth:
            note = (
                '<span class="note good">✓ chosen, right</span>'
                if right
                else '<span class="note bad">✗ chosen</span>'
            )
        elif chosen:
            note = '<span class="note">chosen</span>'
        elif right:
            note = '<span class="note good">right answer</span>'
        items.append(
            f'<li{" class=chosen" if chosen else ""} dir="auto">{_text(letter)}. {_text(option)}{note}</li>'
        )
    return f'<ul class="options">{"".join(items)}</ul>' if items else ""


def _stage(reply: replay.Reply, pictures: Sequence[Image.Image], store: dict[str, str]) -> str:
    """The picture with the boxes over it; for several pictures a slider, and where along it the boxes lie."""
    width, height = pictures[0].size
    keys = [_keep(picture, store) for picture in pictures]
    reached = [
        (mark, *_reach(mark.box, len(pictures))) for mark in reply.marks if mark.box is not None
    ]
    places = [
        (m, low, high)
        for m, low, high in reached
        if low < high and not _flat(m, width, height).is_empty
    ]
    low, high = places[0][1:] if places else (0, len(pictures))
    first = (low + high - 1) // 2
    outlines = "".join(_place(mark, low, high, width, height) for mark, low, high in places)
    noun = "slice" if reply.dimension == "3d" else "picture"
    stage = (
        f'<svg class="stage" viewBox="0 0 {width} {height}" role="img" data-slices="{" ".join(keys)}" '
        f'aria-label="the {noun} with {len(places)} boxes"><image width="{width}" height="{height}" '
        f'preserveAspectRatio="none"/>{outlines}</svg>'
    )
    if len(pictures) == 1:
        return f"<figure>{stage}</figure>"
    rows = max(1, len(places))
    spans = "".join(
        f'<rect class="{_look(mark)}" data-box="{mark.number}" x="{low}" y="{row + 0.15}" width="{high - low}" '
        'height="0.7"/>'
        for row, (mark, low, high) in enumerate(places)
    )
    return (
        f'<figure>{stage}<div class="scroll"><output>{noun} {first}</output>'
        f'<input type="range" min="0" max="{len(pictures) - 1}" value="{first}" aria-label="{noun}" '
        f'data-noun="{noun}"/>'
        f'<svg class="spans r{min(rows, 12)}" viewBox="0 0 {len(pictures)} {rows}" preserveAspectRatio="none" '
        f'aria-hidden="true">{spans}<rect class="now" x="{first}" y="0" width="1" height="{rows}"/></svg>'
        f"</div></figure>"
    )


def _place(mark: replay.Mark, low: int, high: int, width: int, height: int) -> str:
    """One box over the picture. Here edges of pixels are whole numbers: the half-open box is drawn as written."""
    box = _flat(mark, width, height)
    side = max(width, height) * 0.05
    x = min(box.x1, width - side)
    y = box.y1 - side if box.y1 >= side else min(box.y1, height - side)
    rectangle = f'x="{box.x1:g}" y="{box.y1:g}" width="{box.width:g}" height="{box.height:g}"'
    return (
        f'<g class="place {_look(mark)}" data-box="{mark.number}" data-from="{low}" data-to="{high}">'
        f"<title>box {mark.number} {_text(mark.short)}</title>"
        f'<rect class="rim" {rectangle}/><rect class="outline" {rectangle}/>'
        f'<g transform="translate({x:g} {y:g}) scale({side:g})"><rect class="tag" width="1" height="1"/>'
        f'<text x="0.5" y="0.52" transform="translate(0.5 0.52) scale(0.72) translate(-0.5 -0.52)">{mark.number}</text>'
        "</g></g>"
    )


def _flat(mark: replay.Mark, width: int, height: int) -> Box2D:
    """The part of a box that lies in the picture, seen along z."""
    return (mark.box.xy if isinstance(mark.box, Box3D) else mark.box).clip(width, height)


def _reach(box: Any, count: int) -> tuple[int, int]:
    """First picture on which a box lies, and the one after the last."""
    if not isinstance(box, Box3D) or count == 1:
        return 0, 1
    return max(0, math.floor(box.z1)), min(count, math.ceil(box.z2))


def _steps(reply: replay.Reply, store: dict[str, str]) -> str:
    """The text in steps: each ends with a box and what it fetched."""
    steps, step = [], ""
    for piece in reply.pieces():
        if isinstance(piece, str):
            step += _text(piece)
            continue
        steps.append(step + _mention(piece, store))
        step = ""
    steps += [step] if step else []
    words = (
        "".join(f'<span class="step">{step}</span>' for step in steps)
        or '<span class="none">(nothing written)</span>'
    )
    controls = (
        '<div class="steps" role="group" aria-label="replay" hidden><button type="button" class="begin">Replay</button>'
        '<button type="button" class="back" aria-label="one step back">◀</button>'
        '<button type="button" class="on" aria-label="one step on" disabled>▶</button>'
        f'<button type="button" class="end">All</button><output>step {len(steps)} of {len(steps)}</output></div>'
    )
    return f'{controls if len(steps) > 1 else ""}<p class="text" dir="auto">{words}</p>'


def _mention(mark: replay.Mark, store: dict[str, str]) -> str:
    if not mark.number:
        return f'<span class="lost" title="malformed box">{_text(mark.short)} malformed</span>'
    look, count = _look(mark), len(mark.crops)
    told = (
        f'<button type="button" class="box {look}" data-box="{mark.number}" aria-pressed="false" '
        f'title="show box {mark.number}">{mark.number} {_text(mark.short)}</button>'
    )
    if count:
        images = "".join(
            f'<img data-picture="{_keep(crop, store)}" width="{crop.width}" height="{crop.height}" '
            f'alt="crop {i} of {count}, box {mark.number}"/>'
            for i, crop in enumerate(mark.crops, start=1)
        )
        return f'{told}<span class="crops" data-box="{mark.number}">{images}</span>'
    if mark.crop_sizes:
        return f'{told}<span class="crops" data-box="{mark.number}">{len(mark.crop_sizes)} crops</span>'
    return told + (f'<span class="lost">{_text(mark.status)}</span>' if mark.fate else "")


def _look(mark: replay.Mark) -> str:
    turn, color = divmod(mark.number - 1, len(BOX_COLORS))
    return f"b{color}" + (f" d{turn % 3}" if turn % 3 else "")


# -- the page -------------------------------------------------------------------------------------------------------


def _page(
    title: str, told: Sequence[replay.Reply], articles: Sequence[str], store: Mapping[str, str]
) -> str:
    room = files("unireason_lib.display")
    colors = "".join(f".b{i}{{--box:{color}}}" for i, color in enumerate(BOX_COLORS))
    dashes = ".d1 .outline{stroke-dasharray:8 4}.d2 .outline{stroke-dasharray:2 3}"
    rows = "".join(f".r{n}{{--rows:{n}}}" for n in range(1, 13))
    style = room.joinpath("page.css").read_text("utf-8") + colors + dashes + rows
    script = room.joinpath("page.js").read_text("utf-8")
    data = json.dumps(
        dict(store)
    )  # hexadecimal keys and base64: nothing in it could end the element
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{_text(title)}</title><style>{style}</style></head>\n<body><h1>{_text(title)}</h1>"
        "<noscript><p>Pictures, slices and steps need JavaScript; the text is all here.</p></noscript>\n"
        f"{_navigation(told)}<main>{''.join(articles)}</main>\n"
        f'<script type="application/json" id="pictures">{data}</script>\n<script>{script}</script></body></html>\n'
    )


def _navigation(told: Sequence[replay.Reply]) -> str:
    if len(told) == 1:
        return ""
    options = "".join(
        f'<option value="{i}">{i + 1} · {_text((reply.id or reply.question)[:80])}{_verdict(reply)}</option>'
        for i, reply in enumerate(told)
    )
    return (
        '<nav aria-label="replies" hidden><button type="button" class="previous">Previous</button>'
        f'<select aria-label="reply">{options}</select><button type="button" class="next">Next</button></nav>\n'
    )


def _verdict(reply: replay.Reply) -> str:
    if reply.error:
        return " · error"
    if not reply.truth:
        return ""
    return " · ✓" if reply.choice == reply.truth else " · ✗"


def _keep(picture: Image.Image, store: dict[str, str]) -> str:
    """Store a picture once, as PNG; the key is made from its pixels."""
    key = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:20]
    if key not in store:
        bands = picture.convert("RGB").split()
        grey = all(ImageChops.difference(bands[0], band).getbbox() is None for band in bands[1:])
        buffer = io.BytesIO()
        (bands[0] if grey else picture).save(buffer, format="PNG", optimize=True)
        store[key] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return key


def _text(words: str) -> str:
    """Text for HTML: markup escaped; broken Unicode, control and direction characters replaced."""
    clean = "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t\u200d" else c
        for c in words
    )
    return escape(clean.encode("utf-8", "replace").decode("utf-8"))


def _hash(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"
