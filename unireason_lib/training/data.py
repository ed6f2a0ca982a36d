"""From a data set to what a trainer takes: which records, where their images are, their tokens.

The data set is a folder that :mod:`unireason_lib.dataset` wrote, or the authors' release (a folder
or its hub id), which names a volume by its path only: with ``m3d_root`` rows whose volume the user
holds are used, without it only those about 2D images. Rows are selected, shuffled and joined by
``datasets``; tables stay memory-mapped on the disk.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from PIL import Image
from tqdm import tqdm

from unireason_lib.dataset.hub import ImageTable, load_set, record_images
from unireason_lib.dataset.release import open_release, release_split
from unireason_lib.dataset.schema import SFT_FEATURES, Record
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.io import append_lines, locked, read_lines
from unireason_lib.training.encoding import Encoded, Encoder, check_components, conversation, cut

Images = Callable[[Record], Sequence[Image.Image]]
"""Gives the images of a record; see :func:`images_from`."""


class Records(Sequence):
    """Records of a typed table, made from its memory-mapped rows when asked for. Whole columns can
    be read from :attr:`rows` (``rows["family"]``)."""

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
    rows = zip(*batch.values(), strict=True)
    return {"record": [Record.from_row(dict(zip(batch, row, strict=True))) for row in rows]}


def training_records(
    folder: str | Path,
    records: Mapping[str, int | None] | None = None,
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
        records: Dimension -> how many of it (None: all); None takes all of both, a dimension left
            out none. More than there are means that some come again, each as often as any other.
        split: Of the data set.
        seed: Of selection and order. With the same seed, a smaller number is part of a larger one.
        form: ``"sft"`` with replies, ``"rl"`` without.
        m3d_root, volumes: For the release: the volumes that the user holds, and which row belongs
            to which (:func:`~unireason_lib.dataset.release.open_release`). Rows whose volume is
            missing are left out, with a warning that counts them.

    Raises:
        DatasetError: No such data set, or no records of a dimension that is asked for.
    """
    if is_built(folder):
        rows = load_set(folder, form, split)
    else:
        released = _released(folder, split, form, m3d_root, volumes)
        table = [one.to_row() for one in released]  # perhaps none
        rows = Dataset(pa.Table.from_pylist(table, SFT_FEATURES.arrow_schema))
    dimensions = rows["dimension"][:] if len(rows) else []
    where = {d: [k for k, one in enumerate(dimensions) if one == d] for d in ("2d", "3d")}
    wanted = dict.fromkeys(where) if records is None else dict(records)
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


def data_folder(name: str | Path) -> Path:
    """The folder of a data set: itself, or for a hub id what of it lies in the local cache.

    Raises:
        DatasetError: Neither is there.
    """
    return Path(name) if Path(name).is_dir() else _open_release(name).folder


def _open_release(name: str | Path, **more: Any) -> Any:
    """The authors' release; a path that does not exist is not advised as a hub id."""
    path = Path(name)
    local = str(name).startswith((".", "/", "~")) or str(name).count("/") != 1 or path.exists()
    if local and not path.is_dir():
        found = "a file" if path.exists() else "no such folder"
        do = "check the path; build makes a data set, and a hub id reads owner/name"
        raise DatasetError(name, "the folder of a data set", found, do)
    return open_release(name, **more)


def _released(
    folder: str | Path,
    split: str,
    form: Literal["sft", "rl"],
    m3d_root: str | Path | None,
    volumes: str | Path | None,
) -> Iterator[Record]:
    left_out = 0
    for record in _open_release(folder, m3d_root=m3d_root, volumes=volumes).records(form):
        if release_split(record) != split:
            continue
        if record.dimension == "3d" and not record.image_ids:
            left_out += 1
            continue
        yield record
    if left_out:
        warnings.warn(
            f"{folder}: {left_out:,} rows about volumes are left out: the release has no volumes; "
            "give the folder of those that you hold (m3d_root), and a table of rows and paths "
            "(volumes)",
            stacklevel=3,
        )


def images_from(
    folder: str | Path,
    roots: Mapping[str, str | Path] | None = None,
    *,
    m3d_root: str | Path | None = None,
) -> Images:
    """Gives the images of a record: from ``images/`` of a data set, else from scans of the user.

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


class Examples(Sequence):
    """Encoded records.

    With ``keep`` all are encoded now and kept: decoding images, cutting crops and tokenizing takes
    longer than a training step of a small model. At paper scale, where they do not fit into memory,
    each is encoded when it is asked for, in the loader's worker processes.

    Args:
        records: What to train on.
        images: Gives the images of a record.
        processor: Of the model.
        components: Of a reply; see :mod:`unireason_lib.training.encoding`.
        max_length: In tokens. The end of a longer reply is cut off where no image is cut; a record
            whose prompt is too long is left out.
        keep: Whether to encode all now.
        too_long: JSON lines to which both are added (``id``, ``tokens``, ``kept``) when met.
        progress: Whether to show a bar.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: Images,
        processor: Any,
        *,
        components: str = "full",
        max_length: int = 40_960,
        keep: bool = True,
        too_long: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.records, self.images, self.max_length = records, images, max_length
        self.components, self.encoder = check_components(components), Encoder(processor)
        self.vision_end = processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")
        self.too_long = too_long
        if keep and too_long and not PartialState().is_main_process:
            self.too_long = None  # all processes meet the same records
        self._listed = {line["id"] for line in read_lines(too_long)} if too_long else set()
        self.rows, self.kept = list(range(len(records))), None
        if keep:
            encode = tqdm(self.rows, "tokenizing", disable=not progress, unit=" records")
            pairs = [(k, one) for k in encode if (one := self._encode(k)) is not None]
            self.rows, self.kept = [k for k, _ in pairs], [one for _, one in pairs]
            self.lengths = [len(one) for one in self.kept]
        else:
            self.lengths = [estimated_length(record, self.encoder.frame) for record in records]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        if self.kept is not None:
            return self.kept[index]
        for step in range(len(self)):  # one that does not fit is replaced by the next that does
            if (one := self._encode((index + step) % len(self))) is not None:
                return one
        raise IndexError(index)

    def _encode(self, row: int) -> Encoded | None:
        record = self.records[row]
        images, frame = self.images(record), self.encoder.frame
        encoded = self.encoder(conversation(record, images, self.components, frame))
        if len(encoded) <= self.max_length:
            return encoded
        short = cut(encoded, self.max_length, self.vision_end)
        if self.too_long is not None and record.id not in self._listed:
            self._listed.add(record.id)
            kept = 0 if short is None else len(short)
            list_once(self.too_long, {"id": record.id, "tokens": len(encoded), "kept": kept})
        return short


def list_once(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line about a record to a file that all processes of a run write, each about records
    that it alone perhaps meets; a record that is listed (``id``) is not listed again."""
    with locked(path.with_name(f"{path.name}.lock"), str(path), wait=True):
        if line["id"] not in {one["id"] for one in read_lines(path)}:
            append_lines(path, [line])


def estimated_length(record: Record, frame: ProcessorFrame) -> int:
    """About how many tokens a record has, without reading its images or tokenizing: enough to group
    examples of similar length into batches."""
    height, width = record.image_size or (256, 256)
    tokens = len(record.image_ids) * (frame.tokens(height, width) + 2)
    for box in record.boxes:
        depth = max(1, int(box.z2 - box.z1)) if hasattr(box, "z1") else 1
        tokens += depth * (frame.tokens(max(4, int(box.height)), max(4, int(box.width))) + 2)
    # a word, a digit and a sign are about a token each
    return tokens + len(re.findall(r"\d|[^\W\d]+|[^\s\w]", record.user_text + record.reply))
