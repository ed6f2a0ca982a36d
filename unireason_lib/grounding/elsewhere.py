"""Boxes that fetch another region: what is a reply worth when its crops do not show what it names?

A control of evaluation (does the model use its crops?) and the contrast of outcome RL.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from PIL import Image

from unireason_lib.boxes import Box, Box2D
from unireason_lib.grounding.generate import GroundedGenerator
from unireason_lib.grounding.replies import Script
from unireason_lib.grounding.trace import GroundedRequest, Trace

TRIES, LOW_OVERLAP = 16, 0.1


class RandomCrops(GroundedGenerator):
    """A generator whose boxes fetch another region, the same for the same request and box."""

    def crops_for(self, request: GroundedRequest, box: Box) -> list[Image.Image]:
        """The crops of the random region."""
        width, height = request.images[0].size
        height, width = self.frame.size(height, width)
        limits = (width, height) if isinstance(box, Box2D) else (width, height, len(request.images))
        return super().crops_for(request, elsewhere(box, limits, f"{request.id}/{box.as_tuple()}"))


def elsewhere(box: Box, limits: Sequence[int], seed: str) -> Box:
    """A random box of the same size that overlaps the given one little.

    Args:
        box: In pixels and slices; clipped to the limits first, and returned as it is outside them.
        limits: Width and height, and for a cuboid the number of slices.
        seed: Decides the place.

    Returns:
        The first of :data:`TRIES` places whose IoU is below :data:`LOW_OVERLAP`, else the least.
    """
    inside = box.clip(*limits)
    if inside.is_empty:
        return box
    draw, corners = random.Random(seed), inside.as_tuple()
    sides = [high - low for low, high in zip(corners, corners[len(limits) :], strict=False)]
    best, least = inside, 2.0
    for _ in range(TRIES):
        start = [draw.randint(0, int(a - b)) for a, b in zip(limits, sides, strict=True)]
        stop = [low + side for low, side in zip(start, sides, strict=True)]
        other = type(inside)(*start, *stop)
        if (overlap := other.iou(inside)) < least:
            best, least = other, overlap
        if least < LOW_OVERLAP:
            break
    return best


def repeat_elsewhere(
    generator: GroundedGenerator, traces: Sequence[Trace], **settings: Any
) -> list[Trace | None]:
    """The same replies, word for word up to the last box that fetched crops, but with the crops of
    random regions; from there on the model goes on by itself, greedily. None for a reply without
    crops. ``settings`` are those of :class:`~unireason_lib.grounding.Settings`."""
    scripts: dict[int, Script] = {}
    for k, trace in enumerate(traces):
        if positions := [pointing.position for pointing in trace.pointings if pointing.crops]:
            tokens = zip(trace.token_ids[: positions[-1]], trace.own_mask, strict=False)
            written = tuple(token for token, own in tokens if own)
            scripts[k] = Script(generator.tokenizer, (written,))
    rough = RandomCrops(generator.model, generator.processor, generator.reuse_cache)
    requests = [traces[k].request for k in scripts]
    settings |= {"scripts": list(scripts.values()), "temperature": 0.0}
    again = dict(zip(scripts, rough.generate(requests, **settings), strict=True))
    return [again.get(k) for k in range(len(traces))]
