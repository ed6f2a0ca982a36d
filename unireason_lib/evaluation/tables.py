"""Public benchmarks as they are handed out: a table of questions and a folder of scans.

The path is the table (:data:`LAYOUTS` has the columns), or a folder of tables. Scans are looked for
below ``root`` and never outside it; by default that is the folder of the table, or the one up to
two above it that holds the benchmark's folder of scans. A question that is answered by yes or no
gets these two as options; any other without options is open. A row that cannot be a question is
skipped and named; a scan that cannot be read fails when it is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.evaluation.items import Benchmark, Item, items_of
from unireason_lib.imaging import PAPER_SIZE, QWEN_FRAME, ProcessorFrame, load_image
from unireason_lib.inference import Reading, read_scan, scan_below
from unireason_lib.inference.samples import MISSING, TRUTH_LETTERS, read_rows, sample_of
from unireason_lib.io import sha256_of
from unireason_lib.prompts import LETTERS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """What is particular about a benchmark; columns of questions, options and answers are those of
    :mod:`unireason_lib.inference.samples`."""

    dimension: str
    family: str = ""  # columns, the first that is filled; none: "closed" or "open"
    kind: str = ""  # columns
    options: bool = False  # in columns Choice A, Option A, ... ("NA", "-": there is none)
    folder: str = ""  # of the scans, which may lie up to two folders above the table
    path: str = "(?P<patient>.*)"  # what a row says of its scan, and of who was scanned
    places: Sequence[str] = (r"\g<0>",)  # below the root, where that scan may lie


TYPES = "question_type questiontype"
LAYOUTS: Mapping[str, Layout] = {
    "m3d-vqa": Layout(
        "3d",
        TYPES,
        options=True,
        folder="M3D_Cap_npy",
        path=r"(?P<patient>(?:M3D_Cap_npy/)?(.*))/([^/]*)",
        places=(r"\g<0>", r"\2/\3"),  # the root may be that folder itself
    ),
    "3d-rad": Layout(  # volumes of CT-RATE lie flat, or in valid/valid_1/valid_1_a/
        "3d",
        TYPES,
        options=True,
        path=r"(?P<patient>([a-z]+)_\d+)(_[a-z])_\d+\..*",
        places=(r"\g<0>", r"\1/\1\3/\g<0>", r"\2/\1/\1\3/\g<0>"),
    ),
    "vqa-rad": Layout("2d", "answer_type", TYPES, places=(r"VQA_RAD Image Folder/\g<0>", r"\g<0>")),
    "slake": Layout(
        "2d",
        "answer_type",
        "content_type",
        path=r"(?P<patient>.*)/[^/]*",
        places=(r"imgs/\g<0>", r"\g<0>"),
    ),
    "pathvqa": Layout("2d"),
    "pmc-vqa": Layout("2d", options=True, places=(r"images/\g<0>", r"\g<0>")),
    "omnimedvqa": Layout("2d", "modality_type modality", TYPES, True, "Images"),
}
M3D_TYPES = {"1": "plane", "2": "phase", "3": "organ", "4": "abnormality", "5": "location"}
SUFFIXES = (".csv", ".json", ".jsonl", ".tsv", ".parquet")


def table_benchmark(
    name: str,
    path: str | Path | None,
    *,
    split: str = "test",
    limit: int | None = None,
    frame: ProcessorFrame = QWEN_FRAME,
    size: Sequence[int] | None = None,
    window: Any = None,
    image_size: Sequence[int] | None = None,
    root: str | Path | None = None,
    open: bool = False,
    language: str | None = "en",
) -> Benchmark:
    """A public benchmark; arguments as for :func:`~.benchmarks.open_benchmark`, and

    Args:
        path: Its table, or a folder of them, of which those named after the split are taken.
        image_size: See :class:`unireason_lib.inference.Reading`.
        root: Folder of the scans.
        open: Ask multiple-choice questions without their options; answers are compared in words.
        language: Of SLAKE's questions (``q_lang``); None takes all.

    Raises:
        DatasetError: No table there, or no row of it can be asked.
    """
    layout, tables = LAYOUTS[name], _tables(name, path, split)
    folder = tables[0].parent
    above = (folder, *folder.resolve().parents[:2]) if layout.folder else ()
    found = next((place for place in above if (place / layout.folder).is_dir()), folder)
    root = Path(root or found)
    reading = Reading(PAPER_SIZE if size is None else tuple(size), window, image_size)

    @lru_cache(maxsize=4)  # questions about one scan come together
    def read(where: str) -> Sequence[Any]:
        return read_scan(scan_below(root, where), layout.dimension, reading).images

    def make(numbered: tuple[str, Row | Exception]) -> Iterator[Item]:
        row_id, row = numbered
        if isinstance(row, Exception):
            raise row
        phrase = str(row.get("phrase_type") or "")  # VQA-RAD names the split there
        other = (
            phrase and split in ("train", "test") and phrase.startswith("test") != (split == "test")
        )
        if not other and language in (None, str(row.get("q_lang") or language)):
            yield _item(row_id, row, layout, root, read, open)

    rows = (
        (f"{table.name}, row {number}", (f"{name}/{table.stem}/{number}", row))
        for table in tables
        for number, row in enumerate(_rows(table), 1)
    )
    skipped: list = []
    items = tuple(islice(items_of(rows, make, skipped), limit))
    identity = {
        "benchmark": name,
        "tables": {table.name: sha256_of(table) for table in tables},
        "root": str(root.resolve()),
        "split": split,
        "open": open,
        "language": language,
        "reading": json.loads(json.dumps(asdict(reading))),
    }
    return Benchmark(name, items, identity, tuple(skipped))


def _tables(name: str, path: str | Path | None, split: str) -> list[Path]:
    """The files behind a path; in a folder those named after the split, if any are."""
    if path is not None and Path(path).is_file():
        return [Path(path)]
    folder = Path(path) if path is not None and Path(path).is_dir() else None
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder else []
    if not files:
        expected = f"its table ({', '.join(SUFFIXES)}), or a folder of them"
        found = "no path" if path is None else f"{path}, which has none"
        raise DatasetError(f"benchmark {name}", expected, found, f"give it: {name}:FILE")
    return [p for p in files if re.search(rf"(?<![a-z]){split}", p.stem.lower())] or files


def _rows(table: Path) -> Iterator[Row | Exception]:
    if table.suffix.lower() != ".parquet":
        yield from read_rows(table)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=64):  # images are in the rows
                for row in batch.to_pylist():
                    yield {re.sub(r"[^a-z0-9]+", "_", key.lower()): row[key] for key in row}
    except (pa.ArrowException, OSError) as error:
        expected, do = "a whole Parquet file", "download it again"
        raise DatasetError(table, expected, str(error)[:200], do) from error


def _item(
    name: str, row: Row, layout: Layout, root: Path, read: Callable, without_options: bool
) -> Item:
    image = row.get("image") or row.get("img_name")
    embedded = image.get("bytes") if isinstance(image, Mapping) else None
    if isinstance(image, Mapping):
        image = str(image.get("path") or name)
    row = {**row, "image": image} if image is not None else row
    sample = sample_of(_with_plain_options(row, layout), 0, layout.dimension)
    if sample.problem is not None:
        raise sample.problem
    words = (sample.truth or "").strip(" .").casefold()
    if not sample.options and words in ("yes", "no"):
        options = {"A": "Yes", "B": "No"}
        sample = replace(sample, options=options, truth="A" if words == "yes" else "B")
    if without_options and sample.options:
        sample = replace(sample, options={}, truth=sample.truth and sample.options[sample.truth])
    scan = sample.scan.replace("\\", "/").removeprefix("./")
    parts = re.fullmatch(layout.path, scan)
    patient = hashlib.sha256(embedded).hexdigest()[:16] if embedded else row.get("patient")
    load = partial(load_image, embedded, name=name)
    if embedded is None:  # paths that lead out of the folder are refused here
        places = [parts.expand(place) for place in layout.places] if parts else [scan]
        load = partial(read, next((p for p in places if scan_below(root, p).exists()), places[0]))
    family = _first(row, layout.family) or ("closed" if sample.options else "open")
    return Item(
        id=name,
        patient=str(patient or (parts["patient"] if parts else scan)),
        dimension=layout.dimension,
        family=M3D_TYPES.get(family, family),
        question=sample.question,
        options=dict(sample.options),
        answer=sample.truth,
        load=(lambda: [load()]) if embedded else load,
        kind=_first(row, layout.kind),
        source=name.split("/")[0],
        about={"scan": sample.scan},
    )


def _with_plain_options(row: Row, layout: Layout) -> Row:
    """A row whose options are A, B, C without gaps: missing ones are closed up, labels ("A: liver")
    taken off, and the letter of the truth moves along."""
    rest = {k: v for k, v in row.items() if not re.match(r"(choice|option)_?[a-h]?$", k)}
    if not layout.options:
        return rest
    texts = {}
    for letter in LETTERS:
        text = row.get(f"choice_{letter}".lower()) or row.get(f"option_{letter}".lower()) or ""
        text = re.sub(rf"^\s*{letter}\s*[:.)]\s*(?=\S)", "", str(text)).strip()
        if text not in MISSING:
            texts[letter] = text
    moved = dict(zip(texts, LETTERS, strict=False))
    letters = [str(rest.pop(key, None) or "").strip().upper() for key in TRUTH_LETTERS]
    letter = next((letter for letter in letters if len(letter) == 1 and letter in LETTERS), None)
    if letter is not None and letter not in moved:
        raise RequestError("truth", "an option that is there", letter, "correct the row")
    truth = {} if letter is None else {"answer_letter": moved[letter]}
    return {**rest, **truth, "options": list(texts.values())}


def _first(row: Row, columns: str) -> str:
    """The first of some columns that is filled; VQA-RAD writes "CLOSED" and "OPEN "."""
    text = next((str(row[name]).strip() for name in columns.split() if row.get(name)), "")
    return text.lower() if text in ("CLOSED", "OPEN") else text.removesuffix(".0")
