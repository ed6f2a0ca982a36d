"""From a folder of Parquet to what a trainer takes: which records, and where their pictures are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from unireason_lib.dataset.mixture import Mixture
from unireason_lib.dataset.parquet import ImageStore, ScanRoots, pictures_of, read_records
from unireason_lib.dataset.records import Record
from unireason_lib.errors import DatasetError, explain
from unireason_lib.training.examples import Pictures


def training_records(
    folder: str | Path, counts: Mapping[str, int | None] | None = None, *, split: str = "train", seed: int = 0
) -> list[Record]:
    """Records of a data set, in a random order.

    Args:
        folder: A data set that :mod:`unireason_lib.dataset` wrote.
        counts: Dimension -> how many records of it; None takes all of them, a dimension left out none. More than there
            are means that some come again, which is how a mixture is matched in steps.
        split: Of the data set.
        seed: Draws the selection and the order. With the same seed, a smaller count is part of a larger one.

    Raises:
        DatasetError: There are no records of a dimension that is asked for.
    """
    parts: dict[str, list[Record]] = {"2d": [], "3d": []}
    for record in read_records(folder, split):
        parts[record.dimension].append(record)
    sizes = {part: len(records) for part, records in parts.items()}
    wanted = {part: sizes[part] for part in parts} if counts is None else dict(counts)
    wanted = {part: sizes[part] if count is None else count for part, count in wanted.items()}
    lacking = [part for part, count in wanted.items() if count and not sizes.get(part)]
    if lacking or not sum(wanted.values()):
        raise DatasetError(
            explain(
                folder,
                expected=f"records of the split {split!r} in {' and '.join(lacking) or '2d or 3d'}",
                found=", ".join(f"{count} in {part}" for part, count in sizes.items()),
                do="build a data set that has them, or ask for others",
            )
        )
    mixture = Mixture.by_count(sizes, {part: count for part, count in wanted.items() if count}, seed)
    return [parts[part][row] for part, row in mixture.epoch(0)]


def pictures_from(
    folder: str | Path, roots: Mapping[str, str | Path] | None = None, keep: int = 16
) -> Pictures:
    """Gives the pictures of a record: from ``images/`` of a data set, else from scans that the user holds.

    Args:
        folder: The data set.
        roots: Source -> folder of its scans, for records that only name a path.
        keep: Groups of rows of ``images/`` to keep in memory.
    """
    store = ImageStore(folder, keep=keep)
    scan = ScanRoots(roots) if roots else None
    return partial(pictures_of, store=store, scan=scan)
