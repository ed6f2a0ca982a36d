"""Does a model refer to the same place in a volume and in its slices?

Two kinds of boxes share one syntax, so they can be held against each other without any truth. Each
slice that a cuboid spans is shown to the same checkpoint alone, as an image, with the question
where the structure is. The rectangle of the cuboid should be the box that it writes there.

    replies about volumes -> slice_benchmark -> evaluate -> consistency -> mean overlap
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
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
    for line in (line for line in lines if "error" not in line):
        parent, box = volumes.get(line["id"]), _first_box(line)
        if parent is None or not isinstance(box, Box3D) or len(parent.truth_boxes) != 1:
            continue
        name = next(iter(parent.about.get("names", ())), f"the {parent.truth_boxes[0][0]}")
        alone = replace(
            parent,
            dimension="2d",
            question=words.format(a=name, it="image"),
            options=dict(zip("ABCD", QUADRANTS, strict=True)),
            answer=None,
            kind="quadrant",
            truth_boxes=(),
            guess=None,
        )
        load = lru_cache(maxsize=1)(parent.load)  # slices of one volume are asked together
        for z in slice_range(box, line["frame"][2]):
            about = {"parent": parent.id, "slice": z, "cuboid": list(box.as_tuple())}
            of_slice = partial(lambda load, z: [load()[z]], load, z)
            items.append(replace(alone, id=f"{parent.id}#z{z:03d}", load=of_slice, about=about))
    name = f"slices of {benchmark.name}"
    if not items:
        expected = "replies about one structure of a volume that begin with a cuboid"
        do = "ask a model that writes boxes in volumes, or more questions"
        raise DatasetError(name, expected, "none", do)
    identity = {**benchmark.identity, "mode": "slices"}
    return Benchmark(name, tuple(items), identity, opened=benchmark.opened)


@dataclass(frozen=True)
class Consistency:
    """Agreement of cuboids with the boxes on their slices."""

    overlap: Interval | None  # mean over the cuboids; None without any
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
    """The agreement from the replies to a :func:`slice_benchmark`: of each cuboid the mean over the
    slices that it spans of the intersection over union of its rectangle with the slice's first box,
    0 without one (the paper shows 0.7601, 0.7940 and 0.8342). A cuboid with a slice that failed is
    left out."""
    agreement, patients, written = [], [], []

    def parent_of(line: Mapping[str, Any]) -> str:
        return line["about"]["parent"]

    for parent, group in groupby(sorted(lines, key=parent_of), parent_of):
        replies = list(group)
        if any("error" in line for line in replies):
            continue
        across = box_of(replies[0]["about"]["cuboid"]).xy
        boxes = [box for box in map(_first_box, replies) if isinstance(box, Box2D)]
        agreement.append((parent, sum(map(across.iou, boxes)) / len(replies)))
        patients.append(replies[0]["patient"])
        written += [len(boxes), len(replies)]
    boxed = sum(written[::2]) / max(1, sum(written[1::2]))
    return Consistency(mean([one for _, one in agreement], patients), boxed, tuple(agreement))


def read_consistency(path: str | Path) -> Consistency:
    """The agreement from the file beside a file of results, see :func:`slices_file`."""
    return consistency(list(read_results(slices_file(path))))


def slices_file(path: str | Path) -> Path:
    """Where replies about slices are kept: ``result.jsonl`` -> ``result.slices.jsonl``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.slices{path.suffix}")


def _first_box(line: Mapping[str, Any]) -> Any:
    return box_of(line["boxes"][0]) if line.get("boxes") else None
