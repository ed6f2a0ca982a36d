"""Boxes that fetch something else: what a reply is worth when its crops do not show what it pointed at.

As a control of an evaluation (does the model use its crops?), and as the contrast of outcome RL.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.grounding.generate import GroundedGenerator
from unireason_lib.grounding.replies import Script
from unireason_lib.grounding.trace import GroundedRequest, Trace

if TYPE_CHECKING:
    from PIL import Image

_LOW_OVERLAP = 0.1


class RandomCrops(GroundedGenerator):
    """A generator whose boxes fetch a region of their size from elsewhere: the one of sixteen random places that
    overlaps the box least, or the first that overlaps it by less than a tenth. The place follows from request and
    box."""

    def crops_for(self, request: GroundedRequest, box: Box) -> list[Image.Image]:
        """The crops of the random place."""
        width, height = request.images[0].size
        height, width = self.frame.size(height, width)
        limits = (width, height) if isinstance(box, Box2D) else (width, height, len(request.images))
        return super().crops_for(request, elsewhere(box, limits, f"{request.id}/{box.as_tuple()}"))


def elsewhere(box: Box, limits: Sequence[int], seed: str) -> Box:
    """A random box of the same size inside the limits that overlaps the given one little."""
    draw = random.Random(seed)
    inside = box.clip(*limits)
    if inside.is_empty:
        return box
    low = inside.as_tuple()[: len(limits)]
    sides = [high - start for start, high in zip(low, inside.as_tuple()[len(limits) :], strict=True)]
    kind = Box2D if len(limits) == 2 else Box3D
    best, least = inside, 2.0
    for _ in range(16):
        corner = [draw.randint(0, int(limit - side)) for limit, side in zip(limits, sides, strict=True)]
        other = kind(*corner, *(start + side for start, side in zip(corner, sides, strict=True)))
        overlap = other.iou(inside)
        if overlap < least:
            best, least = other, overlap
        if least < _LOW_OVERLAP:
            break
    return best


def repeat_elsewhere(
    generator: GroundedGenerator, traces: Sequence[Trace], **settings: Any
) -> list[Trace | None]:
    """The same replies once more, word for word up to their last box that fetched something; but what the boxes fetch
    is random regions, and from there on the model goes on by itself, greedily.

    Args:
        generator: What made the replies.
        traces: The replies.
        settings: Of :meth:`~unireason_lib.grounding.GroundedGenerator.generate`.

    Returns:
        One for each; None for a reply to which nothing was fetched.
    """
    scripts: dict[int, Script] = {}
    for k, trace in enumerate(traces):
        fetched = [pointing.position for pointing in trace.pointings if pointing.crops]
        if not fetched:
            continue
        # a box that was answered is followed by what it fetched: its own last token is before that
        written = zip(trace.token_ids[: fetched[-1]], trace.own_mask, strict=False)
        scripts[k] = Script(generator.tokenizer, (tuple(token for token, own in written if own),))
    rough = RandomCrops(generator.model, generator.processor, generator.reuse_cache)
    again = rough.generate(
        [traces[k].request for k in scripts], scripts=list(scripts.values()), temperature=0.0, **settings
    )
    found: list[Trace | None] = [None] * len(traces)
    for k, trace in zip(scripts, again, strict=True):
        found[k] = trace
    return found
