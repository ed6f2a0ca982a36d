"""Does a model point at the same place in a volume and in its slices?

Two interfaces share one syntax, so they can be held against each other without any truth: a cuboid that a checkpoint
wrote for a volume spans some slices. Each of these is shown to the same checkpoint alone, as a picture, with the
question where the structure is. The rectangle of the cuboid should be the box that it writes there.

    lines about volumes --slice_benchmark--> 2D questions --evaluate--> lines --read_consistency--> a number
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.questions import WORDS
from unireason_lib.dataset.schema import box_of
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.items import Benchmark, Item
from unireason_lib.evaluation.metrics import answered, measure, spanned_slices, volume_consistency
from unireason_lib.evaluation.statistics import Interval
from unireason_lib.inference.results import read_results

QUADRANTS = ("Left and anterior", "Right and anterior", "Left and posterior", "Right and posterior")
"""The options of the question where something lies, in the words of the training data."""


def slice_benchmark(benchmark: Benchmark, lines: Iterable[Mapping[str, Any]]) -> Benchmark:
    """The 2D questions that a run over volumes raises.

    Args:
        benchmark: What was asked; it gives the volumes.
        lines: The replies. Those to questions about one structure count, if their first box is a cuboid that spans a
            slice of the volume.

    Returns:
        A question for each spanned slice. Its ``about`` holds ``parent`` (the question about the volume), ``slice``
        and the ``cuboid``. Which option is right is not known and not asked for.

    Raises:
        DatasetError: There is no such reply.
    """
    volumes = {item.id: item for item in benchmark if item.dimension == "3d"}
    items = []
    for line in answered(lines):
        parent = volumes.get(line["id"])
        cuboid = first_cuboid(line)
        if parent is None or cuboid is None or len(parent.truth_boxes) != 1:
            continue
        pictures = lru_cache(maxsize=1)(
            parent.load
        )  # slices of one volume are asked for one after the other
        for z in spanned_slices(cuboid, line["frame"][2]):
            items.append(_slice_item(parent, pictures, z, cuboid))
    if not items:
        raise DatasetError(
            f"slices of {benchmark.name}",
            "replies about one structure of a volume that begin with a cuboid",
            "none",
            "ask a model that points in volumes, or more questions",
        )
    return Benchmark(
        f"slices of {benchmark.name}",
        tuple(items),
        {**benchmark.identity, "mode": "slices"},
        opened=benchmark.opened,
    )


def first_cuboid(line: Mapping[str, Any]) -> Box3D | None:
    """The first box of a reply if it is a cuboid that reaches into its volume."""
    box = box_of(line["boxes"][0]) if line["boxes"] else None
    return box if isinstance(box, Box3D) and spanned_slices(box, line["frame"][2]) else None


def _slice_item(parent: Item, pictures: Any, z: int, cuboid: Box3D) -> Item:
    name = next(iter(parent.about.get("names", ())), None) or f"the {parent.truth_boxes[0][0]}"
    question = WORDS["families"]["spatial localization"]["quadrant"][3].format(a=name, it="image")
    return Item(
        id=f"{parent.id}#z{z:03d}",
        patient=parent.patient,
        dimension="2d",
        family=parent.family,
        question=question,
        options=dict(zip("ABCD", QUADRANTS, strict=True)),
        answer=None,
        load=lambda: [pictures()[z]],
        kind="quadrant",
        source=parent.source,
        frame=parent.frame,
        about={"parent": parent.id, "slice": z, "cuboid": list(cuboid.as_tuple())},
    )


@dataclass(frozen=True)
class Consistency:
    """Agreement of cuboids with the boxes on their slices.

    Attributes:
        overlap: Mean over the cuboids, see :func:`unireason_lib.evaluation.metrics.volume_consistency`; None without
            any.
        boxed: Share of the slices for which a box was written.
        cuboids: ``(question about the volume, agreement)`` of each.
    """

    overlap: Interval | None
    boxed: float
    cuboids: tuple[tuple[str, float], ...]

    def text(self) -> str:
        """One line."""
        if self.overlap is None:
            return "nothing to compare"
        return (
            f"IoU {self.overlap.value:.2f} [{self.overlap.low:.2f}, {self.overlap.high:.2f}] over "
            f"{len(self.cuboids)} cuboids, boxes on {100 * self.boxed:.0f} % of their slices"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "overlap": self.overlap and self.overlap.to_dict(),
            "boxed": self.boxed,
            "cuboids": len(self.cuboids),
        }


def consistency(lines: Sequence[Mapping[str, Any]], samples: int = 2000) -> Consistency:
    """The agreement from the replies to a :func:`slice_benchmark`.

    A slice that could not be asked is left out with its whole cuboid.
    """
    broken = {line["about"]["parent"] for line in lines if "error" in line}
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in answered(lines):
        if line["about"]["parent"] not in broken:
            groups[line["about"]["parent"]].append(line)
    found, written, slices = [], 0, 0
    for parent, mine in groups.items():
        boxes = {line["about"]["slice"]: _first_rectangle(line) for line in mine}
        slices, written = (
            slices + len(boxes),
            written + sum(box is not None for box in boxes.values()),
        )
        spanned = range(min(boxes), max(boxes) + 1)
        cuboid = Box3D.from_xy(box_of(mine[0]["about"]["cuboid"]).xy, spanned.start, spanned.stop)
        found.append((parent, mine[0]["patient"], volume_consistency(cuboid, boxes)))
    lined = [{"patient": patient, "value": value} for _, patient, value in found]
    overlap = measure(lined, lambda line: line["value"], samples=samples)
    return Consistency(
        overlap, written / slices if slices else 0.0, tuple((p, v) for p, _, v in found)
    )


def read_consistency(path: str | Path, samples: int = 2000) -> Consistency:
    """The agreement from the file beside a file of results, see :func:`slices_file`."""
    return consistency(list(read_results(slices_file(path))), samples)


def slices_file(path: str | Path) -> Path:
    """Where the replies about slices are kept: ``result.jsonl`` -> ``result.slices.jsonl``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.slices{path.suffix}")


def _first_rectangle(line: Mapping[str, Any]) -> Box2D | None:
    box = box_of(line["boxes"][0]) if line["boxes"] else None
    return box if isinstance(box, Box2D) else None
