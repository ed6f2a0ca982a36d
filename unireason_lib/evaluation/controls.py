"""Controls ask whether the model looks: something is taken away, and the questions asked again.

A model that answers as well when its images are blanked has learnt the answers of the questions;
one that answers as well when its crops come from a random place does not use its crops.
"""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unireason_lib.boxes import Box
from unireason_lib.errors import RequestError
from unireason_lib.evaluation.items import Benchmark, Item

if TYPE_CHECKING:
    from unireason_lib.grounding import GroundedGenerator, GroundedRequest

CONTROLS = {
    "none": "the images as they are",
    "blank": "all images mid grey",
    "noise": "all images random pixels",
    "other": "the images of another patient, in the same size",
    "random-crop": "the images as they are, but a box fetches a random region of its size",
    "no-crop": "the images as they are, and boxes fetch nothing",
}

TRIES, LOW_OVERLAP = 16, 0.1


def shown_images(benchmark: Benchmark, control: str) -> Callable[[Item], Sequence[Image.Image]]:
    """What a model is shown of an item under a control."""
    if control == "blank":
        return lambda item: [Image.new("RGB", i.size, (128, 128, 128)) for i in item.load()]
    if control == "noise":
        return lambda item: [_noise(i, f"{item.id}/{k}") for k, i in enumerate(item.load())]
    if control == "other":
        partner = partners(benchmark.items)
        return lambda item: fitted(partner[item.id].load(), item.load())
    return lambda item: item.load()


def _noise(image: Image.Image, seed: str) -> Image.Image:
    draw = np.random.default_rng(zlib.crc32(seed.encode()))
    return Image.fromarray(draw.integers(0, 256, image.size[::-1], dtype=np.uint8)).convert("RGB")


def partners(items: Sequence[Item]) -> dict[str, Item]:
    """For each item one of another patient and the same dimension: the last one before it, for the
    first patient the first one after, so that a longer benchmark changes nothing. A
    ``RequestError`` when a dimension has one patient only."""
    partner: dict[str, Item] = {}
    for dimension in {item.dimension for item in items}:
        same = [item for item in items if item.dimension == dimension]
        before = next((item for item in same if item.patient != same[0].patient), None)
        if before is None:
            do = "ask a longer benchmark, or take another control"
            raise RequestError("control 'other'", f"two patients in {dimension}", "one", do)
        last = same[0]
        for item in same:
            if item.patient != last.patient:
                before = last
            partner[item.id], last = before, item
    return partner


def fitted(images: Sequence[Image.Image], like: Sequence[Image.Image]) -> list[Image.Image]:
    """Images in the number and sizes of others."""
    rows = np.linspace(0, len(images), len(like), endpoint=False).astype(int)
    return [
        images[row].convert("RGB").resize(other.size) for row, other in zip(rows, like, strict=True)
    ]


def random_crops(generator: GroundedGenerator) -> GroundedGenerator:
    """The generator with boxes that fetch another region, the same for the same request and box."""

    def crops_for(request: GroundedRequest, box: Box) -> list[Image.Image]:
        width, height = request.images[0].size
        height, width = generator.frame.size(height, width)
        limits = (width, height, len(request.images))[: len(box.as_tuple()) // 2]
        return generator.crops_for(
            request, elsewhere(box, limits, f"{request.id}/{box.as_tuple()}")
        )

    control = copy.copy(generator)
    control.crops_for = crops_for
    return control


def elsewhere(box: Box, limits: Sequence[int], seed: str) -> Box:
    """A random box of the same size that overlaps the given one little: the first of :data:`TRIES`
    places whose IoU is below :data:`LOW_OVERLAP`, else the least.

    Args:
        box: In pixels and slices; clipped to the limits first, and returned as it is outside them.
        limits: Width and height, and for a cuboid the number of slices.
        seed: Decides the place.
    """
    inside, places = box.clip(*limits), []
    if inside.is_empty:
        return box
    draw, corners = random.Random(seed), inside.as_tuple()
    sides = [high - low for low, high in zip(corners, corners[len(limits) :], strict=False)]
    for _ in range(TRIES):
        start = [draw.randint(0, int(a - b)) for a, b in zip(limits, sides, strict=True)]
        stop = [low + side for low, side in zip(start, sides, strict=True)]
        places.append(type(inside)(*start, *stop))
        if places[-1].iou(inside) < LOW_OVERLAP:
            break
    return min(places, key=inside.iou)
