"""From a folder of Parquet to what a trainer takes: which records, and where their pictures are.

The folder is a data set of ours, or the authors' release (a folder, or its hub id), of which a volume is known by its
path only: with ``m3d_root`` rows whose volume the user holds are learnt from, without it only those about slices.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from unireason_lib.dataset.mixture import Mixture
from unireason_lib.dataset.official import open_official, split_of
from unireason_lib.dataset.parquet import MANIFEST, ImageStore, ScanRoots, pictures_of, read_records
from unireason_lib.dataset.records import Record
from unireason_lib.errors import DatasetError, explain
from unireason_lib.training.examples import Pictures


def training_records(
    folder: str | Path,
    counts: Mapping[str, int | None] | None = None,
    *,
    split: str = "train",
    seed: int = 0,
    form: Literal["sft", "rl"] = "sft",
    m3d_root: str | Path | None = None,
    volumes: str | Path | None = None,
) -> list[Record]:
    """Records of a data set, in a random order.

    Args:
        folder: A data set that :mod:`unireason_lib.dataset` wrote, or the authors' release.
        counts: Dimension -> how many records of it; None takes all of them, a dimension left out none. More than there
            are means that some come again, which is how a mixture is matched in steps.
        split: Of the data set.
        seed: Draws the selection and the order. With the same seed, a smaller count is part of a larger one.
        form: ``"sft"`` with replies, ``"rl"`` without.
        m3d_root, volumes: For the release: the volumes that the user holds, and which row belongs to which; see
            :func:`~unireason_lib.dataset.official.open_official`. Rows whose volume is missing are left out, with a
            warning that counts them.

    Raises:
        DatasetError: There are no records of a dimension that is asked for.
    """
    parts: dict[str, list[Record]] = {"2d": [], "3d": []}
    ours = (Path(folder) / MANIFEST).is_file()
    found = read_records(folder, split, form) if ours else _released(folder, split, form, m3d_root, volumes)
    for record in found:
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


def data_folder(where: str | Path) -> Path:
    """The folder of a data set: itself, or for a hub id what of it lies in the local cache.

    Raises:
        DatasetError: Neither is there.
    """
    return Path(where) if Path(where).is_dir() else open_official(where).folder


def _released(
    folder: str | Path,
    split: str,
    form: Literal["sft", "rl"],
    m3d_root: str | Path | None,
    volumes: str | Path | None,
) -> Iterator[Record]:
    data = open_official(folder, m3d_root=m3d_root, volumes=volumes)
    left_out = 0
    for record in data.records(form):
        if split_of(record) != split:
            continue
        if record.dimension == "3d" and not record.image_ids:
            left_out += 1
            continue
        yield record
    if left_out:
        warnings.warn(
            f"{folder}: {left_out:,} rows about volumes are left out, because their volume is not there; the release "
            "has none: give the folder of those that you hold (m3d_root), and a table of rows and paths (volumes)",
            stacklevel=3,
        )


def pictures_from(
    folder: str | Path,
    roots: Mapping[str, str | Path] | None = None,
    keep: int = 16,
    *,
    m3d_root: str | Path | None = None,
) -> Pictures:
    """Gives the pictures of a record: from ``images/`` of a data set, else from scans that the user holds.

    Args:
        folder: The data set, or the release.
        roots: Source -> folder of its scans, for records that only name a path.
        keep: Groups of rows of ``images/`` to keep in memory.
        m3d_root: Folder of the scans of all other sources.
    """
    store = ImageStore(data_folder(folder), keep=keep)
    known = {**({"": m3d_root} if m3d_root else {}), **(roots or {})}
    scan = ScanRoots(known) if known else None
    return partial(pictures_of, store=store, scan=scan)
