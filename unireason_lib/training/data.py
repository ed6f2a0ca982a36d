"""From a data set to what a trainer takes: which records, and where their images are.

The data set is a folder that :mod:`unireason_lib.dataset` wrote, or the authors' release (a folder, or its hub id), which
names a volume by its path only: with ``m3d_root`` rows whose volume the user holds are learnt from, without it only those
about 2D images. Rows are selected, shuffled and joined by ``datasets``; nothing is copied, tables stay on the disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from unireason_lib.dataset.hub import ImageTable, load_set, record_images
from unireason_lib.dataset.release import open_release, release_split
from unireason_lib.dataset.schema import SFT_FEATURES, Record
from unireason_lib.errors import DatasetError
from unireason_lib.training.examples import Images


class Records(Sequence):
    """Records of a typed table, made from its memory-mapped rows when asked for.

    Args:
        rows: With the columns of :mod:`unireason_lib.dataset.schema`; its columns can be read whole (``rows["family"]``).
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self._records = rows.with_transform(_as_records)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Records(self.rows.select(range(*index.indices(len(self)))))
        return self._records[index]["record"]


def _as_records(batch: Mapping[str, list[Any]]) -> dict[str, list[Record]]:
    columns = list(batch)
    return {
        "record": [
            Record.from_row(dict(zip(columns, values, strict=True)))
            for values in zip(*batch.values(), strict=True)
        ]
    }


def training_records(
    folder: str | Path,
    counts: Mapping[str, int | None] | None = None,
    *,
    split: str = "train",
    seed: int = 0,
    form: Literal["sft", "rl"] = "sft",
    m3d_root: str | Path | None = None,
    volumes: str | Path | None = None,
) -> Records:
    """Records of a data set, in a random order.

    Args:
        folder: A data set that :mod:`unireason_lib.dataset` wrote, or the authors' release.
        counts: Dimension -> how many records of it; None takes all of them, a dimension left out none. More than there
            are means that some come again, which is how a mixture is matched in steps.
        split: Of the data set.
        seed: Draws the selection and the order. With the same seed, a smaller count is part of a larger one.
        form: ``"sft"`` with replies, ``"rl"`` without.
        m3d_root, volumes: For the release: the volumes that the user holds, and which row belongs to which; see
            :func:`~unireason_lib.dataset.release.open_release`. Rows whose volume is missing are left out, with a
            warning that counts them.

    Raises:
        DatasetError: There are no records of a dimension that is asked for.
    """
    if is_built(folder):
        rows = load_set(folder, form, split)
    else:
        released = _released(folder, split, form, m3d_root, volumes)
        made = [one.to_row("sft") for one in released]  # perhaps none
        rows = Dataset(pa.Table.from_pylist(made, SFT_FEATURES.arrow_schema))
    dimensions = rows["dimension"][:] if len(rows) else []
    where = {d: [k for k, one in enumerate(dimensions) if one == d] for d in ("2d", "3d")}
    wanted = dict.fromkeys(where) if counts is None else dict(counts)
    wanted = {d: len(where.get(d, ())) if n is None else n for d, n in wanted.items()}
    lacking = [d for d, count in wanted.items() if count and not where.get(d)]
    if lacking or not sum(wanted.values()):
        raise DatasetError(
            folder,
            f"records of the split {split!r} in {' and '.join(lacking) or '2d or 3d'}",
            ", ".join(f"{len(numbers)} in {d}" for d, numbers in where.items()),
            "build a data set that has them, or ask for others",
        )
    parts = [_passes(rows.select(where[d]), n, seed) for d, n in wanted.items() if n]
    return Records(concatenate_datasets(parts).shuffle(seed=seed))


def _passes(rows: Dataset, count: int, seed: int) -> Dataset:
    """``count`` rows in random order: every row once before any is repeated."""
    whole, rest = divmod(count, len(rows))
    turns = [rows.shuffle(seed=seed + turn) for turn in range(whole + bool(rest))]
    if rest:
        turns[-1] = turns[-1].select(range(rest))
    return concatenate_datasets(turns)


def is_built(folder: str | Path) -> bool:
    """Whether the folder is a data set of this package, not the release."""
    return (Path(folder) / "manifest.json").is_file()


def data_folder(where: str | Path) -> Path:
    """The folder of a data set: itself, or for a hub id what of it lies in the local cache.

    Raises:
        DatasetError: Neither is there.
    """
    return Path(where) if Path(where).is_dir() else open_release(where).folder


def _released(
    folder: str | Path,
    split: str,
    form: Literal["sft", "rl"],
    m3d_root: str | Path | None,
    volumes: str | Path | None,
) -> Iterator[Record]:
    data = open_release(folder, m3d_root=m3d_root, volumes=volumes)
    left_out = 0
    for record in data.records(form):
        if release_split(record) != split:
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


def images_from(
    folder: str | Path,
    roots: Mapping[str, str | Path] | None = None,
    *,
    m3d_root: str | Path | None = None,
) -> Images:
    """Gives the images of a record: from ``images/`` of a data set, else from scans that the user holds.

    Args:
        folder: The data set, or the release.
        roots: Source -> folder of its scans, for records whose images are not stored.
        m3d_root: Folder of the volumes of the release.
    """
    folder, known = data_folder(folder), dict(roots or {})
    if m3d_root:
        release = None if is_built(folder) else open_release(folder, m3d_root=m3d_root)
        known.setdefault("", release or m3d_root)
    return partial(record_images, table=ImageTable(folder), roots=known)
