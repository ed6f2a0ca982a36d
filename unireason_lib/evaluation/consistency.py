"""Does a model refer to the same place in a volume and in its slices?

Two kinds of boxes share one syntax, so they can be held against each other without any truth. Each
slice that a cuboid spans is shown to the same checkpoint alone, as an image, with the question
where the structure is. The rectangle of the cuboid should be the box that it writes there.

    replies about volumes -> slice_benchmark -> evaluate -> consistency -> mean overlap
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.questions import WORDS
from unireason_lib.dataset.schema import box_of
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.items import Benchmark, Item
from unireason_lib.evaluation.statistics import Interval, mean
from unireason_lib.imaging.crops import slice_range
from unireason_lib.inference import read_results

QUADRANTS = ("Left and anterior", "Right and anterior", "Left and posterior", "Right and posterior")
"""The options of the question where something lies, in the words of the training data."""


def volume_consistency(
    cuboid: Box3D, rectangles: Mapping[int, Box2D | None], depth: int | None = None
) -> float:
    """Agreement of one cuboid with the boxes on its slices (the paper shows three cases: 0.7601,
    0.7940, 0.8342).

    Args:
        cuboid: Box that was written for the volume.
        rectangles: Slice -> box written for the slice alone; None or missing when there was none.
        depth: Slices of the volume; slices of the cuboid beyond it do not count.

    Returns:
        Mean over the spanned slices of the intersection over union of the cuboid's rectangle with
        the slice's; a slice without a box counts 0.

    Raises:
        ValueError: The cuboid spans no slice.
    """
    spanned = slice_range(cuboid, math.ceil(cuboid.z2) if depth is None else depth)
    if not spanned:
        raise ValueError(f"{cuboid}: expected a cuboid that spans slices, found none.")
    boxes = [rectangles.get(z) for z in spanned]
    return sum(0.0 if box is None else cuboid.xy.iou(box) for box in boxes) / len(spanned)


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
    items = []
    for line in (line for line in lines if "error" not in line):
        parent, box = volumes.get(line["id"]), _first_box(line)
        if parent is None or not isinstance(box, Box3D) or len(parent.truth_boxes) != 1:
            continue
        load = lru_cache(maxsize=1)(parent.load)  # slices of one volume are asked together
        items += [_item(parent, load, z, box) for z in slice_range(box, line["frame"][2])]
    name = f"slices of {benchmark.name}"
    if not items:
        expected = "replies about one structure of a volume that begin with a cuboid"
        do = "ask a model that writes boxes in volumes, or more questions"
        raise DatasetError(name, expected, "none", do)
    identity = {**benchmark.identity, "mode": "slices"}
    return Benchmark(name, tuple(items), identity, opened=benchmark.opened)


def _item(parent: Item, load: Any, z: int, cuboid: Box3D) -> Item:
    name = next(iter(parent.about.get("names", ())), f"the {parent.truth_boxes[0][0]}")
    words = WORDS["families"]["spatial localization"]["quadrant"][3]
    return replace(
        parent,
        id=f"{parent.id}#z{z:03d}",
        dimension="2d",
        question=words.format(a=name, it="image"),
        options=dict(zip("ABCD", QUADRANTS, strict=True)),
        answer=None,
        load=lambda: [load()[z]],
        kind="quadrant",
        truth_boxes=(),
        guess=None,
        about={"parent": parent.id, "slice": z, "cuboid": list(cuboid.as_tuple())},
    )


@dataclass(frozen=True)
class Consistency:
    """Agreement of cuboids with the boxes on their slices."""

    overlap: Interval | None  # mean of volume_consistency over the cuboids; None without any
    boxed: float  # proportion of the slices for which a box was written
    cuboids: tuple[tuple[str, float], ...]  # (question about the volume, agreement)

    def text(self) -> str:
        """One line."""
        if (o := self.overlap) is None:
            return "nothing to compare"
        over = f"{len(self.cuboids)} cuboids, boxes on {100 * self.boxed:.0f} % of their slices"
        return f"IoU {o.value:.2f} [{o.low:.2f}, {o.high:.2f}] over {over}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        overlap = self.overlap and self.overlap.to_dict()
        return {"overlap": overlap, "boxed": self.boxed, "cuboids": len(self.cuboids)}


def consistency(lines: Sequence[Mapping[str, Any]]) -> Consistency:
    """The agreement from the replies to a :func:`slice_benchmark`; a cuboid with a slice that
    failed is left out."""
    by_cuboid: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_cuboid.setdefault(line["about"]["parent"], []).append(line)
    agreement, patients, written = {}, [], []
    for parent, replies in by_cuboid.items():
        if any("error" in line for line in replies):
            continue
        boxes = {line["about"]["slice"]: _first_box(line) for line in replies}
        boxes = {z: box if isinstance(box, Box2D) else None for z, box in boxes.items()}
        cuboid = box_of(replies[0]["about"]["cuboid"])
        cuboid = Box3D.from_xy(cuboid.xy, min(boxes), max(boxes) + 1)  # inside the volume
        agreement[parent] = volume_consistency(cuboid, boxes)
        patients.append(replies[0]["patient"])
        written += [box is not None for box in boxes.values()]
    overlap = mean(list(agreement.values()), patients)
    boxed = sum(written) / len(written) if written else 0.0
    return Consistency(overlap, boxed, tuple(agreement.items()))


def read_consistency(path: str | Path) -> Consistency:
    """The agreement from the file beside a file of results, see :func:`slices_file`."""
    return consistency(list(read_results(slices_file(path))))


def slices_file(path: str | Path) -> Path:
    """Where replies about slices are kept: ``result.jsonl`` -> ``result.slices.jsonl``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.slices{path.suffix}")


def _first_box(line: Mapping[str, Any]) -> Any:
    return box_of(line["boxes"][0]) if line["boxes"] else None
