"""What one reply is worth (boxes, crops, words), and means of many.

Tables are those of :func:`unireason_lib.evaluation.table.as_table`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unireason_lib.boxes import Box
from unireason_lib.evaluation.statistics import Interval, mean

if TYPE_CHECKING:
    import pandas as pd

HIT = 0.5
"""Intersection over union from which a box counts as a hit."""

IOU_BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)


def overlaps(written: Sequence[Box], truth: Sequence[Box]) -> dict[str, float | None]:
    """How well the boxes of a reply, in its order, fit those of what the answer rests on.

    Returns:
        Intersection over union, in 3D of volumes; a rectangle never overlaps a cuboid.
        ``iou_first``: of the first box with the true one that it fits best; ``iou_best``: of the
        best pair; ``iou_all``: mean over the true boxes of their best. 0 when nothing was written;
        None when there is no truth.
    """
    if not truth:
        return {"iou_first": None, "iou_best": None, "iou_all": None}
    table = [
        [one.iou(true) if type(one) is type(true) else 0.0 for true in truth] for one in written
    ] or [[0.0] * len(truth)]
    values = {
        "iou_first": max(table[0]),
        "iou_best": max(map(max, table)),
        "iou_all": sum(max(column) for column in zip(*table, strict=True)) / len(truth),
    }
    return {name: round(value, 6) for name, value in values.items()}


def crop_fraction(
    crops: Sequence[tuple[int, int]], injections: int, frame: Sequence[int]
) -> float | None:
    """Mean fraction of the image (of the volume: over all slices) that an injected box fetched; a
    model that always fetches everything looks at nothing in particular, and has 1.

    Args:
        crops: (width, height) of all crops of a reply, in pixels of the frame.
        injections: Boxes that fetched them; without any the fraction is None.
        frame: Height, width and number of the images.
    """
    if not injections:
        return None
    return round(sum(map(math.prod, crops)) / math.prod(frame) / injections, 6)


def same_words(one: str, other: str) -> bool:
    """Whether two short answers agree: word for word, case, marks and articles aside."""
    return _words(one) == _words(other) != []


def word_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall of the words of an open answer (as SQuAD scores it)."""
    written, true = Counter(_words(answer)), Counter(_words(truth))
    common = sum((written & true).values())
    return 2 * common / (sum(written.values()) + sum(true.values())) if common else 0.0


def _words(text: str) -> list[str]:
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return [word for word in words if word not in ("a", "an", "the")] or words


def measure(table: pd.DataFrame, column: str | pd.Series) -> Interval | None:
    """Mean of a column with its interval; None when it applies to no row."""
    if table.empty:
        return None
    values = table[column] if isinstance(column, str) else column
    return mean(values.tolist(), table["patient"].tolist())


def reliability(
    table: pd.DataFrame, bins: Sequence[float] = IOU_BINS, value: str = "iou_best"
) -> pd.DataFrame:
    """Does a good box go with a right answer? Accuracy (with its ends; NaN in an empty bin) and
    ``n`` of the replies whose overlap ``value`` lies in bins from ``low`` to below ``high``; the
    last one includes its end."""
    import pandas as pd

    known, rows = table[table[value].notna() & table["correct"].notna()], []
    binned = pd.cut(known[value].clip(upper=bins[-1] - 1e-9), bins, right=False)
    for part in binned.cat.categories:
        row = with_ends("accuracy", measure(known[binned == part], "correct"))
        rows.append({"low": part.left, "high": part.right, "n": int((binned == part).sum()), **row})
    return pd.DataFrame(rows)


def with_ends(name: str, interval: Interval | None) -> dict[str, float]:
    """``name``, ``name_low`` and ``name_high``; NaN without an interval."""
    ends = ("value", "low", "high")
    numbers = [math.nan if interval is None else getattr(interval, end) for end in ends]
    return dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))
