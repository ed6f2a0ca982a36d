"""Controls ask whether the model looks: one that answers as well when its images are blanked has
learnt the answers of the questions; one that answers as well when its crops come from elsewhere
does not use its crops.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unireason_lib.boxes import Box
from unireason_lib.errors import RequestError
from unireason_lib.evaluation.items import Benchmark, Item

if TYPE_CHECKING:
    from unireason_lib.grounding import GroundedGenerator, GroundedRequest

OTHER_CROPS = ("random-crop", "shifted-crop", "swapped-crop")
"""A box fetches a random region of its size, the one beside it, or its own of another patient."""
CONTROLS = ("none", "blank", "noise", "other", *OTHER_CROPS, "no-crop")
"""Images as they are, mid grey, random pixels, of another patient; crops of elsewhere; no crops."""
TRIES, LOW_OVERLAP = 16, 0.1


def shown_images(benchmark: Benchmark, control: str) -> Callable[[Item], Sequence[Image.Image]]:
    """What a model is shown of an item under a control."""
    if control == "blank":
        return lambda item: [Image.new("RGB", i.size, (128, 128, 128)) for i in item.load()]
    if control == "noise":
        return lambda item: [_noise(i.size, f"{item.id}/{k}") for k, i in enumerate(item.load())]
    if control == "other":
        partner = partners(benchmark.items)
        return lambda item: fitted(partner[item.id].load(), item.load())
    return lambda item: item.load()


def _noise(size: tuple[int, int], seed: str) -> Image.Image:
    pixels = _draw(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def _draw(seed: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(seed.encode()))


def partners(items: Sequence[Item]) -> dict[str, Item]:
    """For each item one of another patient and the same dimension: the last one before it, for the
    first patient the first one after, so that a longer benchmark changes nothing."""
    partner: dict[str, Item] = {}
    for dimension in {item.dimension for item in items}:
        same = [item for item in items if item.dimension == dimension]
        last = same[0]
        before = next((item for item in same if item.patient != last.patient), None)
        if before is None:
            do = "ask a longer benchmark, or take another control"
            raise RequestError("another patient", f"two patients in {dimension}", "one", do)
        for item in same:
            before = last if item.patient != last.patient else before
            partner[item.id], last = before, item
    return partner


def fitted(images: Sequence[Image.Image], like: Sequence[Image.Image]) -> list[Image.Image]:
    """Images in the number and sizes of others."""
    rows = np.linspace(0, len(images), len(like), endpoint=False).astype(int)
    return [images[k].convert("RGB").resize(o.size) for k, o in zip(rows, like, strict=True)]


def other_crops(
    generator: GroundedGenerator, control: str, benchmark: Benchmark
) -> GroundedGenerator:
    """The generator with boxes that fetch what the control says, always the same for the same
    request and box; the generator itself under any other control."""
    if control not in OTHER_CROPS:
        return generator
    partner = partners(benchmark.items) if control == "swapped-crop" else {}

    def crops_for(request: GroundedRequest, box: Box) -> list[Image.Image]:
        if partner:
            images = fitted(partner[request.id].load(), request.images)
            return generator.crops_for(replace(request, images=images), box)
        width, height = request.images[0].size
        height, width = generator.frame.size(height, width)
        limits = (width, height, len(request.images))[: len(box.as_tuple()) // 2]
        seed = f"{request.id}/{box.as_tuple()}" if control == "random-crop" else None
        return generator.crops_for(request, elsewhere(box, limits, seed))

    under_control = copy.copy(generator)
    under_control.crops_for = crops_for
    return under_control


def elsewhere(box: Box, limits: Sequence[int], seed: str | None = None) -> Box:
    """A box of the same size that overlaps the given one little: the first of :data:`TRIES` random
    places whose IoU is below :data:`LOW_OVERLAP`, or without ``seed`` of the four places beside it;
    if there is none, the one that overlaps least. The box is clipped to the ``limits`` (width,
    height, for a cuboid number of slices) first, and returned as it is outside them."""
    inside = box.clip(*limits)
    if inside.is_empty:
        return box
    start, stop = np.split(np.array(inside.as_tuple(), int), 2)
    side, steps = stop - start, np.eye(len(start), dtype=int)[:2]
    room = np.array(limits, int) - side
    if seed is None:
        places = np.clip(start + np.concatenate([steps, -steps]) * side, 0, room)
    else:
        places = _draw(seed).integers(0, room + 1, (TRIES, len(start)))
    boxes = [type(inside)(*map(int, (*place, *(place + side)))) for place in places]
    return next((b for b in boxes if b.iou(inside) < LOW_OVERLAP), min(boxes, key=inside.iou))
