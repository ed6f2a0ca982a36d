"""The exchange format: three folders of Parquet files in the form in which UniMed-CoT was released.

============  ==========================================================================================
``images/``   ``image_id, path, bytes``: every picture once, as PNG
``sft/``      ``messages`` (role and text; ``<image>`` stands for each picture of the user's turn),
              ``image_ids``
``rl/``       ``prompt`` (the user's turn), ``image_ids``, ``data_source``, ``agent_name``, ``ability``,
              ``reward_model`` (``ground_truth`` is the letter)
============  ==========================================================================================

``sft`` and ``rl`` have one column more, ``extra_info``: what one filters by (split, family, source, ...) as
plain fields, and everything else that makes up a :class:`~unireason_lib.dataset.records.Record` as JSON, so
that reading gives back exactly what was written. Crops are not stored: the text has the boxes, and the loader
cuts them. Rows whose pictures may not be passed on have no ``image_ids`` and no ``<image>``, like the 3D rows
of the release, and say where the scan is found.

Files are named by split (``sft/train-00000.parquet``), compressed with zstd, hold no time and no machine's
name, and are written under a temporary name until they are whole.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unireason_lib.dataset.records import Record
from unireason_lib.errors import DatasetError, ScanError, explain

if TYPE_CHECKING:
    from PIL import Image

FOLDERS = ("sft", "rl", "images")
MANIFEST = "manifest.json"
PLACEHOLDER = "<image>"
AGENT_NAME = "urm_single_assistant"
"""Name of the agent loop in the authors' fork of verl, so that the rows run there unchanged."""
ABILITY = "medical_vqa"

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_INFO_FIELDS = ("id", "study", "patient", "source", "dimension", "family", "record")
_INFO = pa.struct([("split", pa.string()), *((name, pa.string()) for name in _INFO_FIELDS)])

SCHEMAS: Mapping[str, pa.Schema] = {
    "images": pa.schema([("image_id", pa.string()), ("path", pa.string()), ("bytes", pa.binary())]),
    "sft": pa.schema([("messages", _MESSAGES), ("image_ids", pa.list_(pa.string())), ("extra_info", _INFO)]),
    "rl": pa.schema(
        [
            ("prompt", _MESSAGES),
            ("image_ids", pa.list_(pa.string())),
            ("data_source", pa.string()),
            ("agent_name", pa.string()),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", _INFO),
        ]
    ),
}
"""The columns of each folder. The authors' scripts read ``messages``/``prompt`` and ``image_ids`` by name."""

_INFO_ONLY = ("id", "study", "patient", "source", "dimension", "family", "split", "reply")
_SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,119}")


# --- rows ------------------------------------------------------------------------------------------------------------


def sft_row(record: Record) -> dict[str, Any]:
    """A record as a row of ``sft/``."""
    values = record.to_dict()
    if not record.lookup:
        del values["image_ids"]
    rest = {name: value for name, value in values.items() if name not in _INFO_ONLY}
    info = {name: values[name] for name in ("split", *_INFO_FIELDS) if name != "record"}
    info["record"] = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
    shown = () if record.lookup else record.image_ids
    prompt = PLACEHOLDER * len(shown) + record.user_text
    return {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": record.reply}],
        "image_ids": list(shown),
        "extra_info": info,
    }


def rl_table(sft: pa.Table, letters: Sequence[str] | pa.ChunkedArray) -> pa.Table:
    """Rows of ``sft/`` as rows of ``rl/``: the same questions without the reply, with the letter to find."""
    info = sft["extra_info"].combine_chunks()
    n = len(sft)
    letters = letters.combine_chunks() if isinstance(letters, pa.ChunkedArray) else pa.array(letters)
    truth = pa.StructArray.from_arrays([pa.array(["rule"] * n), letters], ["style", "ground_truth"])
    columns = {
        "prompt": pc.list_slice(sft["messages"], 0, 1),
        "image_ids": sft["image_ids"],
        "data_source": pc.struct_field(info, "source"),
        "agent_name": pa.array([AGENT_NAME] * n, pa.string()),
        "ability": pa.array([ABILITY] * n, pa.string()),
        "reward_model": truth,
        "extra_info": info,
    }
    return pa.table([columns[name] for name in SCHEMAS["rl"].names], schema=SCHEMAS["rl"])


def with_split(table: pa.Table, splits: Sequence[str]) -> pa.Table:
    """A table of ``sft/`` rows with their splits filled in."""
    info = table["extra_info"].combine_chunks()
    filled = pa.StructArray.from_arrays(
        [pa.array(splits, pa.string()), *(pc.struct_field(info, name) for name in _INFO_FIELDS)],
        fields=list(_INFO),
    )
    return table.set_column(
        table.schema.get_field_index("extra_info"), table.schema.field("extra_info"), filled
    )


def record_of(row: Mapping[str, Any]) -> Record:
    """A row of ``sft/`` or ``rl/``, as this module writes it, as a record; an ``rl`` row has an empty reply.

    Raises:
        DatasetError: The row was written by somebody else (then see :mod:`unireason_lib.dataset.official`).
    """
    info = row.get("extra_info")
    if not isinstance(info, Mapping) or "record" not in info:
        raise DatasetError(
            explain(
                "row",
                expected="extra_info.record, as this package writes it",
                found=f"the columns {', '.join(row)}",
                do="read the authors' release with unireason_lib.dataset.official",
            )
        )
    turns = row.get("messages") or row["prompt"]
    values = {
        **json.loads(info["record"]),
        **{name: info[name] for name in _INFO_ONLY if name != "reply"},
        "reply": turns[1]["content"] if len(turns) > 1 else "",
    }
    values.setdefault("image_ids", row["image_ids"])
    return Record.from_dict(values)


# --- writing ---------------------------------------------------------------------------------------------------------


class HashedFile(io.RawIOBase):
    """A file being written that knows the SHA-256 of what went through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.bytes = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of everything written so far."""
        return self._hash.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[HashedFile]:
    """Write a file that is there completely or not at all: under a temporary name, then renamed.

    Raises:
        DatasetError: The disk, or the user's share of it, is full. Nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield HashedFile(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT, EFBIG):
            raise
        raise DatasetError(
            explain(
                path.name,
                expected="room for this file",
                found=f"a full disk ({error.strerror})",
                do="free some space and run the same command again; what is finished is kept",
            )
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, row_group: int) -> HashedFile:
    """Write tables one after the other into one Parquet file, whole.

    Returns:
        The closed file, for its size and hash.
    """
    with whole_file(path) as file, _writer(file, schema) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=row_group)
    return file


def write_shards(
    folder: Path, split: str, tables: Iterable[pa.Table], rows: int = 50_000, row_group: int = 1000
) -> list[dict[str, Any]]:
    """Write the rows of one split into numbered files of ``sft/`` and ``rl/``, a few at a time in memory.

    Args:
        folder: The data set.
        split: Name of the split.
        tables: Rows of ``sft/`` with their letters in a column ``_answer``; how they are cut into tables does
            not matter.
        rows: Rows a file.
        row_group: Rows that are compressed, and read, together.

    Returns:
        ``{"path", "rows", "bytes", "sha256"}`` of every file.
    """
    entries = []
    groups = _regrouped(tables, min(rows, row_group))
    for number in itertools.count():
        if (first := next(groups, None)) is None:
            return entries
        paths = {form: folder / form / f"{split}-{number:05d}.parquet" for form in ("sft", "rl")}
        count = 0
        with (
            whole_file(paths["sft"]) as sft_file,
            whole_file(paths["rl"]) as rl_file,
            _writer(sft_file, SCHEMAS["sft"]) as sft,
            _writer(rl_file, SCHEMAS["rl"]) as rl,
        ):
            for table in itertools.chain([first], itertools.islice(groups, max(1, rows // row_group) - 1)):
                plain_rows = table.select(SCHEMAS["sft"].names)
                sft.write_table(plain_rows, row_group_size=row_group)
                rl.write_table(rl_table(plain_rows, table["_answer"]), row_group_size=row_group)
                count += len(table)
        entries += [file_entry(paths["sft"], count, sft_file), file_entry(paths["rl"], count, rl_file)]


def _writer(file: HashedFile, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, compression="zstd", write_statistics=False)


def _regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``size`` rows, but for the last."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= size:
            everything = pa.concat_tables(waiting)
            yield everything.slice(0, size).combine_chunks()
            waiting = [everything.slice(size)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting).combine_chunks()


def file_entry(path: Path, rows: int, file: HashedFile) -> dict[str, Any]:
    """What the manifest says about a file."""
    name = f"{path.parent.name}/{path.name}"
    return {"path": name, "rows": rows, "bytes": file.bytes, "sha256": file.sha256}


def entry_of_file(path: Path) -> dict[str, Any]:
    """The same of a file that is there already."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size, rows = path.stat().st_size, pq.read_metadata(path).num_rows
    return {"path": f"{path.parent.name}/{path.name}", "rows": rows, "bytes": size, "sha256": digest}


def write_dataset(
    folder: str | Path, records: Iterable[Record], pictures: Mapping[str, Image.Image] | None = None
) -> None:
    """Write records that are already made, and their pictures; for building from sources see
    :mod:`unireason_lib.dataset.build`.

    Args:
        folder: Where; must be empty or new.
        records: Records whose split is decided.
        pictures: Image id -> picture.

    Raises:
        DatasetError: The folder holds something, or a record has no split.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise DatasetError(
            explain(folder, expected="an empty or new folder", found="files in it", do="choose another one")
        )
    by_split: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if not record.split:
            raise DatasetError(
                explain(record.id, expected="a split", found="none", do="assign splits by patient first")
            )
        by_split.setdefault(record.split, []).append({**sft_row(record), "_answer": record.answer})
    schema = SCHEMAS["sft"].append(pa.field("_answer", pa.string()))
    files = []
    for split, found in by_split.items():
        files += write_shards(folder, split, [pa.Table.from_pylist(found, schema=schema)])
    if pictures:
        rows = [picture_row(name, picture) for name, picture in pictures.items()]
        path = folder / "images" / "part-00000.parquet"
        table = pa.Table.from_pylist(rows, schema=SCHEMAS["images"])
        files.append(file_entry(path, len(rows), write_table(path, [table], SCHEMAS["images"], 32)))
    write_text(folder / MANIFEST, manifest_text({"files": files}))


def picture_row(image_id: str, picture: Image.Image) -> dict[str, Any]:
    """A picture as a row of ``images/``: PNG, in grey when it has no colour."""
    return {"image_id": image_id, "path": f"images/{image_id}.png", "bytes": png(picture)}


def png(picture: Image.Image) -> bytes:
    """A picture as PNG; the pixels come back exactly.

    RGB pictures whose channels agree, as slices of a scan do, are stored with one channel: a third of the
    work and size.
    """
    if picture.mode == "RGB":
        red, green, blue = picture.split()
        if red.tobytes() == green.tobytes() == blue.tobytes():
            picture = red
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=4)
    return stream.getvalue()


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as JSON, the same for the same content."""
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


# --- reading ---------------------------------------------------------------------------------------------------------


def shard_paths(folder: str | Path, form: str, split: str | None = None) -> list[Path]:
    """The Parquet files of one folder of a data set, in order.

    Raises:
        DatasetError: There is none.
    """
    inside = Path(folder) / form
    paths = sorted(inside.glob(f"{split or ''}*.parquet"))
    if not paths:
        there = sorted(path.name for path in inside.glob("*.parquet")) if inside.is_dir() else []
        raise DatasetError(
            explain(
                inside,
                expected=f"{split + '-' if split else ''}*.parquet",
                found=", ".join(there[:5]) or "no Parquet file",
                do="give the folder that contains sft/, rl/ and images/, and a split that it has",
            )
        )
    return paths


def rows(
    folder: str | Path, form: str, split: str | None = None, batch: int = 256
) -> Iterator[dict[str, Any]]:
    """The rows of one folder as dictionaries, a few at a time in memory.

    Raises:
        DatasetError: No such files, or one cannot be read.
    """
    for path in shard_paths(folder, form, split):
        try:
            with pq.ParquetFile(path) as file:
                for part in file.iter_batches(batch_size=batch):
                    yield from part.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                explain(
                    path,
                    expected="a whole Parquet file",
                    found=str(error).splitlines()[0],
                    do="download or build it again",
                )
            ) from error


def read_records(
    folder: str | Path, split: str | None = None, form: Literal["sft", "rl"] = "sft"
) -> Iterator[Record]:
    """Stream the records of a data set that this package wrote.

    Args:
        folder: The folder with ``sft/``, ``rl/``, ``images/``.
        split: Only that split.
        form: ``"sft"`` with replies, ``"rl"`` without.

    Raises:
        DatasetError: See :func:`rows` and :func:`record_of`.
    """
    return (record_of(row) for row in rows(folder, form, split))


class RecordTable:
    """Records by number, for training in any order without holding them in memory.

    Reads groups of rows as they are asked for and keeps the last few. Orders that stay within groups for a while (see
    :mod:`unireason_lib.dataset.mixture`) are cheap, wild ones cost the decoding of a group each.

    Args:
        folder: A data set that this package wrote.
        split: Only that split.
        form: As for :func:`read_records`.
        keep: Groups of rows to keep.
    """

    def __init__(
        self, folder: str | Path, split: str | None = None, form: Literal["sft", "rl"] = "sft", keep: int = 16
    ) -> None:
        self._groups = _RowGroups(shard_paths(folder, form, split), keep)

    def __len__(self) -> int:
        return self._groups.rows

    def __getitem__(self, k: int) -> Record:
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        table, row = self._groups.at(k % len(self))
        return record_of(table.slice(row, 1).to_pylist()[0])


class ImageStore(Mapping):
    """The pictures of a data set by image id, read when asked for.

    Only a hash and a position of every id is kept, 16 bytes a picture.

    Args:
        folder: The folder with ``images/``; an absent folder is an empty store.
        keep: Groups of rows to keep in memory.

    Raises:
        DatasetError: Two different pictures have one id.
    """

    def __init__(self, folder: str | Path, keep: int = 8) -> None:
        self.folder = Path(folder)
        here = any((self.folder / "images").glob("*.parquet"))
        self._groups = _RowGroups(shard_paths(folder, "images") if here else [], keep)
        keys = [_hashes(names) for names in self._groups.column("image_id")]
        keys = np.concatenate([np.empty(0, np.uint64), *keys])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._check_unique()

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        for names in self._groups.column("image_id"):
            yield from names.to_pylist()

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._row(image_id) is not None

    def __getitem__(self, image_id: str) -> Image.Image:
        """The picture, RGB.

        Raises:
            KeyError: No picture of that id.
            ScanError: Its bytes are no picture.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.encoded(image_id))) as picture:
                return picture.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ScanError(
                explain(
                    f"image {image_id}",
                    expected="an encoded picture",
                    found=str(error),
                    do="download or build the images again",
                )
            ) from error

    def encoded(self, image_id: str) -> bytes:
        """The picture's bytes as they are stored."""
        if (row := self._row(image_id)) is None:
            raise KeyError(image_id)
        return row["bytes"]

    def export(self, folder: str | Path, image_ids: Iterable[str] | None = None) -> dict[str, Path]:
        """Write pictures as files, for trainers that want paths.

        A file is named after its id, never after the ``path`` in the row, so nothing can be written
        elsewhere; ids that could clash on some file system (capitals, points, slashes, great length) are
        replaced by their hash.

        Args:
            folder: Where to.
            image_ids: Which; all by default.

        Returns:
            Image id -> file.
        """
        written = {}
        for image_id in self if image_ids is None else image_ids:
            data = self.encoded(image_id)
            path = Path(folder) / f"{file_stem(image_id)}{_suffix(data)}"
            if not (path.exists() and path.read_bytes() == data):
                with whole_file(path) as file:
                    file.write(data)
            written[image_id] = path
        return written

    def _row(self, image_id: str) -> dict[str, Any] | None:
        key = _hashes(pa.array([image_id]))[0]
        first, last = np.searchsorted(self._keys, key, "left"), np.searchsorted(self._keys, key, "right")
        for place in range(int(first), int(last)):
            table, row = self._groups.at(int(self._order[place]))
            found = table.slice(row, 1).to_pylist()[0]
            if found["image_id"] == image_id:
                return found
        return None

    def _check_unique(self) -> None:
        for place in np.flatnonzero(self._keys[1:] == self._keys[:-1]):
            one, other = (
                table.slice(row, 1).to_pylist()[0]
                for table, row in map(self._groups.at, self._order[place : place + 2].tolist())
            )
            if one["image_id"] == other["image_id"] and one["bytes"] != other["bytes"]:
                raise DatasetError(
                    explain(
                        self.folder,
                        expected="one picture an image id",
                        found=f"two different ones called {one['image_id']!r}",
                        do="build the set again with unique ids",
                    )
                )


class _RowGroups:
    """Rows of several Parquet files by number; keeps the groups of rows that were used last."""

    def __init__(self, paths: Sequence[Path], keep: int) -> None:
        self._paths, self._keep = paths, keep
        self._kept: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._places: list[tuple[int, int]] = []
        starts = [0]
        for number, path in enumerate(paths):
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                self._places.append((number, group))
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
        self._starts = np.array(starts)
        self.rows = starts[-1]

    def at(self, row: int) -> tuple[pa.Table, int]:
        """The group that holds a row, and the row's number in it."""
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = self._places[index]
        if place not in self._kept:
            with pq.ParquetFile(self._paths[place[0]]) as file:
                self._kept[place] = file.read_row_group(place[1])
            if len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place], row - int(self._starts[index])

    def column(self, name: str) -> Iterator[pa.Array]:
        """One column, a batch at a time."""
        for path in self._paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=4096, columns=[name]):
                    yield batch.column(0)


def pictures_of(
    record: Record, store: Mapping[str, Image.Image], scan: Callable[[Record], Any] | None = None
) -> list[Image.Image]:
    """The pictures of a record, in the order of its image ids.

    Args:
        record: Any record.
        store: Image id -> picture, for instance an :class:`ImageStore`.
        scan: Gives the scan (a Volume, or a picture) of a record whose pictures are not stored; see
            :class:`ScanRoots`.

    Raises:
        DatasetError: Pictures are missing and ``scan`` was not given.
    """
    if all(name in store for name in record.image_ids) and record.image_ids:
        return [store[name] for name in record.image_ids]
    if scan is None:
        raise DatasetError(
            explain(
                record.id,
                expected=f"{len(record.image_ids) or 'its'} pictures in images/",
                found=f"only the path of its scan, {record.lookup!r}" if record.lookup else "some missing",
                do=f"obtain the scans of {record.source or 'the source'} and say where they are (ScanRoots)",
            )
        )
    from unireason_lib.imaging import Volume, serialize

    found = scan(record)
    if not isinstance(found, Volume):
        return [found]
    size, window = record.serialization.get("size"), record.serialization.get("window", "percentile")
    window = tuple(window) if isinstance(window, list) else window
    return (
        serialize(found, tuple(size), window).images() if size else serialize(found, window=window).images()
    )


class ScanRoots:
    """Reads scans that a user holds, for records that only say where they lie.

    Args:
        roots: Name of a source -> its folder on this machine; ``""`` is for all others.
    """

    def __init__(self, roots: Mapping[str, str | Path]) -> None:
        self.roots = {name: Path(root) for name, root in roots.items()}

    def path(self, record: Record) -> Path:
        """Where the scan of a record must lie.

        Raises:
            DatasetError: No folder is known for its source, or the path leads out of it.
        """
        root = self.roots.get(record.source, self.roots.get(""))
        if root is None or not record.lookup:
            raise DatasetError(
                explain(
                    record.id,
                    expected=f"a path and the folder of the source {record.source!r}",
                    found=f"path {record.lookup!r}, folders for {', '.join(self.roots) or 'no source'}",
                    do="say where the scans are",
                )
            )
        return inside(root, record.lookup)

    def __call__(self, record: Record) -> Any:
        from unireason_lib.imaging import load_image, load_volume
        from unireason_lib.imaging.read import PICTURE_SUFFIXES

        path = self.path(record)
        return load_image(path) if path.suffix.lower() in PICTURE_SUFFIXES else load_volume(path)


def inside(root: str | Path, relative: str) -> Path:
    """A path under a folder, for names that come from a file.

    Raises:
        DatasetError: It would lie outside (absolute, ``..``, a link that leads away).
    """
    root = Path(root).resolve()
    path = None if "\0" in relative else (root / relative.replace("\\", "/")).resolve()
    if not relative or path is None or not path.is_relative_to(root):
        raise DatasetError(
            explain(
                repr(relative),
                expected=f"a path inside {root.name}/",
                found="one that leads out",
                do="correct it",
            )
        )
    return path


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a data set.

    Raises:
        DatasetError: There is none, so the set was not finished or is not ours.
    """
    path = Path(folder) / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            explain(
                path,
                expected="the manifest of a finished data set",
                found=type(error).__name__,
                do="run the build to its end, or read the set without a manifest",
            )
        ) from error


def changed_files(folder: str | Path) -> list[str]:
    """Files whose content is not what the manifest says; empty when the set is as it was written."""
    changed = []
    for entry in read_manifest(folder)["files"]:
        path = Path(folder) / entry["path"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            changed.append(entry["path"])
    return changed


def file_stem(image_id: str) -> str:
    """A file name for an image id that is safe on every file system and belongs to no other id."""
    if _SAFE_NAME.fullmatch(image_id):
        return image_id
    return "id." + hashlib.sha256(image_id.encode()).hexdigest()[:40]


def _suffix(data: bytes) -> str:
    return ".jpg" if data.startswith(b"\xff\xd8") else ".png"


def _hashes(names: pa.Array) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names.to_pylist())
    return np.frombuffer(digests, np.uint64)
