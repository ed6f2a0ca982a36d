"""Benchmarks from Parquet: a data set of our build, or the authors' release."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.dataset.hub import ImageTable, record_images
from unireason_lib.dataset.release import open_release, release_split
from unireason_lib.dataset.schema import Record, box_of
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.items import Benchmark, Item, items_of, most_likely_answers
from unireason_lib.imaging import QWEN_FRAME, ProcessorFrame
from unireason_lib.io import sha256_of
from unireason_lib.prompts import question_text

if TYPE_CHECKING:
    from PIL import Image

Images = Callable[[Record], list["Image.Image"]]

_TRAINING = 20_000  # questions from which is learnt what is most often right


def parquet_benchmark(
    name: str,
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
    """The questions of a data set; arguments as for :func:`~.benchmarks.open_benchmark`, and

    Args:
        path: Folder with ``sft/`` or ``rl/``, and ``images/``.
        split: ``"all"`` takes every row. Released rows name none: theirs is the one of
            :func:`~unireason_lib.dataset.release.release_split`, as in training.
        size, window: Refused: rows say themselves how their volumes are laid out.
        form: ``"sft"`` or ``"rl"``; None takes ``sft`` where it is (its replies hold true boxes).
        roots: Folder of the scans of rows without images, or source -> folder.
        m3d_root, volumes: See :func:`unireason_lib.dataset.release.open_release`.
        dimension: Only ``"2d"`` or ``"3d"``.

    Raises:
        DatasetError: No such folder, form or split.
    """
    if path is None or not Path(path).is_dir():
        raise DatasetError(path, "the folder of a data set", "none", "give it: parquet:FOLDER")
    if size is not None or window is not None:
        do = "build the data set again to lay volumes out differently"
        raise DatasetError(path, "no size or window", "some", do)
    folder = Path(path)
    form = form or ("sft" if any((folder / "sft").glob("*.parquet")) else "rl")
    if form not in ("sft", "rl"):
        raise DatasetError("form", "sft or rl", repr(form), "choose one")
    data = open_release(folder, m3d_root=m3d_root, volumes=volumes)
    known = {"": roots} if isinstance(roots, str) else dict(roots or {})
    known |= {"release": data} if m3d_root else {}
    images = partial(record_images, table=ImageTable(folder), roots=known)

    def items_of_split(split: str, skipped: list) -> Iterator[Item]:
        def make(row: tuple[str, Any]) -> Iterator[Item]:
            if split in ("all", release_split(record := data.record(*row))):
                yield record_item(record, images)

        rows = ((name, (name, row)) for name, row in data.rows(form, split))
        return items_of(rows, make, skipped)

    skipped: list = []
    asked = (i for i in items_of_split(split, skipped) if dimension in (None, i.dimension))
    items = tuple(islice(asked, limit))
    if split != "train" and any((folder / form).glob("train-*.parquet")):
        items = most_likely_answers(items, islice(items_of_split("train", []), _TRAINING))
    manifest = folder / "manifest.json"
    files = [manifest] if manifest.is_file() else sorted((folder / form).glob("*.parquet"))
    identity = {
        "benchmark": "parquet",
        "content": " ".join(sha256_of(file) for file in files),
        "form": form,
        "split": split,
        "dimension": dimension,
        "frame": asdict(frame),
    }
    return Benchmark(f"{folder.resolve().name} {split}", items, identity, tuple(skipped))


def record_item(record: Record, images: Images) -> Item:
    """A record, ours or of the release, as an item; a ``RequestError`` when its words cannot be
    asked. ``images`` gives the images of a record."""
    if not record.asked:
        question_text(record.question, record.options)
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
        frame=record.frame if record.serialization.get("frame") else QWEN_FRAME,
        asked=record.asked,
        about={"names": list(record.names)} if record.names else {},
    )


def _loaded(record: Record, images: Images) -> list[Image.Image]:
    if record.dimension == "3d" and not record.image_ids and record.scan is None:
        do = "name its volume (--option volumes=TABLE --option m3d_root=FOLDER)"
        raise DatasetError(record.id, "a volume", "a row without images or path", do)
    return images(record)
