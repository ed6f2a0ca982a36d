"""Benchmarks from Parquet: a data set of our build, or the authors' release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.dataset.hub import ImageTable, record_images
from unireason_lib.dataset.release import Release, open_release, release_split
from unireason_lib.dataset.schema import Record, box_of
from unireason_lib.errors import DatasetError, UniReasonError
from unireason_lib.evaluation.items import Benchmark, Item, Skipped, check_words
from unireason_lib.evaluation.studies import most_likely_answers
from unireason_lib.imaging import QWEN_FRAME, ProcessorFrame
from unireason_lib.io import sha256_of

if TYPE_CHECKING:
    from PIL import Image

_TRAINING = 20_000  # questions from which is learnt what is most often right


def parquet_benchmark(
    path: str | Path | None,
    *,
    split: str = "test",
    limit: int | None = None,
    frame: ProcessorFrame = QWEN_FRAME,
    size: Sequence[int] | None = None,
    window: Any = None,
    form: str | None = None,
    roots: Mapping[str, str] | str | None = None,
    m3d_root: str | None = None,
    volumes: str | None = None,
    dimension: str | None = None,
) -> Benchmark:
    """The questions of a data set.

    Args:
        path: Folder with ``sft/`` or ``rl/``, and ``images/``.
        split: Rows of that split; ``"all"`` takes every row. Released rows name none: theirs is the one that training
            gives them (:func:`~unireason_lib.dataset.release.release_split`).
        limit: At most so many.
        frame: Of the model; rows whose *words* hold boxes of another frame fail when they are asked, the true boxes of
            all others are converted.
        size, window: Refused: rows say themselves how their volumes are laid out.
        form: ``"sft"`` or ``"rl"``; None takes ``sft`` where it is (its replies hold true boxes).
        roots: Folder of the scans of rows without pictures, or source -> folder.
        m3d_root, volumes: See :func:`unireason_lib.dataset.release.open_release`.
        dimension: Only ``"2d"`` or ``"3d"``.

    Raises:
        DatasetError: No such folder, form or split.
    """
    if path is None or not Path(path).is_dir():
        raise DatasetError(str(path), "the folder of a data set", "none", "give it: parquet:FOLDER")
    if size is not None or window is not None:
        raise DatasetError(
            str(path),
            "no size or window",
            "some",
            "build the data set again to lay volumes out differently",
        )
    folder = Path(path)
    form = form or ("sft" if any((folder / "sft").glob("*.parquet")) else "rl")
    if form not in ("sft", "rl"):
        raise DatasetError("form", "sft or rl", repr(form), "choose one")
    data = open_release(folder, m3d_root=m3d_root, volumes=volumes)
    known = {"": roots} if isinstance(roots, str) else dict(roots or {})
    if m3d_root:
        known["release"] = data
    images = partial(record_images, table=ImageTable(folder), roots=known)
    skipped: list[Skipped] = []
    wanted = (
        i for i in _items(data, form, split, images, skipped) if dimension in (None, i.dimension)
    )
    items = tuple(islice(wanted, limit))
    if split != "train" and any((folder / form).glob("train-*.parquet")):
        items = most_likely_answers(
            items, islice(_items(data, form, "train", images, []), _TRAINING)
        )
    identity = {
        "benchmark": "parquet",
        "content": _content(folder, form),
        "form": form,
        "split": split,
        "dimension": dimension,
        "frame": asdict(frame),
    }
    return Benchmark(f"{folder.resolve().name} {split}", items, identity, tuple(skipped))


def record_item(record: Record, images: Any) -> Item:
    """A record as an item.

    Args:
        record: Ours or of the release.
        images: Record -> its images.

    Raises:
        RequestError: Its words cannot be asked.
    """
    if not record.asked:
        check_words(record.question, record.options)
    frame = record.frame if record.serialization.get("frame") else QWEN_FRAME
    return Item(
        id=record.id,
        patient=record.patient or record.study or record.id,
        dimension=record.dimension,
        family=record.family or "all",
        question=record.question,
        options=dict(record.options),
        answer=record.answer or None,
        load=lambda: _loaded(record, images),
        kind=record.kind,
        source=record.source,
        truth_boxes=tuple((name, box_of(box)) for name, box in record.evidence),
        frame=frame,
        asked=record.asked,
        about={"names": list(record.names)} if record.names else {},
    )


def _loaded(record: Record, images: Any) -> list[Image.Image]:
    if record.dimension == "3d" and not record.image_ids and record.scan is None:
        raise DatasetError(
            record.id,
            "a volume",
            "a row without pictures or path",
            "name its volume (--option volumes=TABLE --option m3d_root=FOLDER)",
        )
    return images(record)


def _items(
    data: Release, form: str, split: str, images: Any, skipped: list[Skipped]
) -> Iterator[Item]:
    """The rows of a split that can be asked; the others are noted. Files named after the split are enough."""
    for name, row in data.rows(form, split):
        try:
            record = data.record(name, row)
            if split in ("all", release_split(record)):
                yield record_item(record, images)
        except UniReasonError as error:
            skipped.append(Skipped(name, str(error)))


def _content(folder: Path, form: str) -> str:
    """What tells the data from others: the manifest's digest, else those of the files."""
    manifest = folder / "manifest.json"
    if manifest.is_file():
        return sha256_of(manifest)
    return " ".join(sha256_of(path)[:16] for path in sorted((folder / form).glob("*.parquet")))
