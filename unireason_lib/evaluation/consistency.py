"""Does a model refer to the same place in a volume and in its slices?

Two kinds of boxes share one syntax, so they can be held against each other without any truth. Each
slice that a cuboid spans is shown to the same checkpoint alone, as an image, with the question
where the structure is. The rectangle of the cuboid should be the box that it writes there.

    replies about volumes -> slice_benchmark -> evaluate -> consistency -> mean overlap
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import pandas as pd

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.questions import WORDS
from unireason_lib.dataset.schema import box_of
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.items import Benchmark, Item
from unireason_lib.imaging.crops import slice_range

QUADRANTS = ("Left and anterior", "Right and anterior", "Left and posterior", "Right and posterior")
"""The options of the question where something lies, in the words of the training data."""


def slice_benchmark(benchmark: Benchmark, lines: Iterable[Mapping[str, Any]]) -> Benchmark:
    """A 2D question for each slice that a cuboid in a reply spans.

    Args:
        benchmark: What was asked; it gives the volumes.
        lines: The replies. Those to questions about one structure count, if their first box is a
            cuboid that reaches into the volume.

    Returns:
        Items whose ``about`` holds ``parent`` (the question about the volume), ``slice`` and
        ``cuboid``. Which option is right is not known and not asked for.

    Raises:
        DatasetError: There is no such reply.
    """
    volumes = {item.id: item for item in benchmark if item.dimension == "3d"}
    items: list[Item] = []
    words = WORDS["families"]["spatial localization"]["quadrant"][3]
    for line in (line for line in lines if line.get("boxes") and line["id"] in volumes):
        parent, box = volumes[line["id"]], box_of(line["boxes"][0])
        if not isinstance(box, Box3D) or len(parent.truth_boxes) != 1:
            continue
        name = next(iter(parent.about.get("names", ())), f"the {parent.truth_boxes[0][0]}")
        asked = {
            "dimension": "2d",
            "question": words.format(a=name, it="image"),
            "kind": "quadrant",
        }
        asked |= {"options": dict(zip("ABCD", QUADRANTS, strict=True)), "answer": None}
        load = lru_cache(maxsize=1)(parent.load)  # slices of one volume are asked together
        for z in slice_range(box, line["frame"][2]):
            about = {"parent": parent.id, "slice": z, "cuboid": list(box.as_tuple())}
            show = partial(lambda load, z: [load()[z]], load, z)
            own = {"id": f"{parent.id}#z{z:03d}", "load": show, "about": about, "truth_boxes": ()}
            items.append(replace(parent, guess=None, **asked, **own))
    name = f"slices of {benchmark.name}"
    if not items:
        expected = "replies about one structure of a volume that begin with a cuboid"
        do = "ask a model that writes boxes in volumes, or more questions"
        raise DatasetError(name, expected, "none", do)
    identity = {**benchmark.identity, "mode": "slices"}
    return Benchmark(name, tuple(items), identity, opened=benchmark.opened)


def consistency(lines: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The replies to a :func:`slice_benchmark`, one row a cuboid without failed slices.

    Returns:
        ``id`` (the question about the volume), ``seed`` (0), ``patient``, ``boxed`` (proportion of
        its slices for which a box was written) and ``overlap``: the mean over its slices of the
        intersection over union of its rectangle with the slice's first box, 0 without one (the
        paper shows 0.7601, 0.7940 and 0.8342).
    """
    rows = []
    for line in lines:
        boxes = [box_of(box) for box in (line.get("boxes") or ())[:1]]
        across, boxes = box_of(line["about"]["cuboid"]).xy, [b for b in boxes if type(b) is Box2D]
        row = {"id": line["about"]["parent"], "patient": line["patient"], "boxed": len(boxes)}
        overlap = across.iou(boxes[0]) if boxes else 0.0
        rows.append({**row, "overlap": overlap, "failed": "error" in line})
    columns = {"patient": "first", "boxed": "mean", "overlap": "mean", "failed": "any"}
    table = pd.DataFrame(rows).groupby("id", as_index=False).agg(columns)
    return table[~table.pop("failed")].assign(seed=0)
