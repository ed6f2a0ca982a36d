"""Public benchmarks as they are handed out: a table of questions and a folder of scans.

The path is the table (``public.yaml`` has what is particular about each), or a folder of tables.
Scans are looked for below ``root`` and never outside it; by default that is the folder of the
table, or the one up to two above it that holds the benchmark's folder of scans. A question that is
answered by yes or no gets these two as options; any other without options is open. A row that
cannot be a question is skipped and named; a scan that cannot be read fails when it is asked.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import yaml

from unireason_lib.errors import DatasetError, RequestError, raising
from unireason_lib.evaluation.items import Item, items_of
from unireason_lib.imaging import PAPER_SIZE, load_image
from unireason_lib.inference import Reading, read_scan, scan_below
from unireason_lib.inference.samples import MISSING, TRUTH_LETTERS, Sample, read_rows, sample_of
from unireason_lib.io import sha256_of
from unireason_lib.prompts import LETTERS

Row = Mapping[str, Any]

_KNOWN = yaml.safe_load(Path(__file__).with_name("public.yaml").read_text(encoding="utf-8"))
_USUAL = _KNOWN.pop("usual")
LAYOUTS = {name: SimpleNamespace(**_USUAL | own) for name, own in _KNOWN.items()}


def public_items(
    name: str,
    path: str | Path | None,
    split: str,
    shown: Mapping[str, Any],
    skipped: list,
    *,
    image_size: Sequence[int] | None = None,
    root: str | Path | None = None,
) -> tuple[Iterator[Item], dict[str, Any]]:
    """The questions of a table, or of those tables in a folder that are named after the split (of
    their rows a split other than ``"test"`` takes all). ``root``: folder of the scans;
    ``image_size`` as for ``inference.Reading``."""
    layout, tables = LAYOUTS[name], _tables(name, path, split)
    folder = tables[0].parent.resolve()
    above = (one for one in (folder, *folder.parents[:2]) if (one / layout.folder).is_dir())
    root = Path(root or next(above, folder))
    reading = Reading(shown["size"] or PAPER_SIZE, shown["window"], image_size)

    @lru_cache(maxsize=4)  # questions about one scan come together
    def read(where: str) -> Sequence[Any]:
        return read_scan(scan_below(root, where), layout.dimension, reading).images

    def make(row_id: str, row: Row | Exception) -> Iterator[Item]:
        if isinstance(row, Exception):
            raise row
        wanted = layout.rows.items() if split == "test" else ()
        if all(re.match(form, str(row.get(column) or "")) for column, form in wanted):
            yield _item(row_id, row, layout, root, read)

    rows = (
        (f"{table.name}, row {number}", partial(make, f"{name}/{table.stem}/{number}", row))
        for table in tables
        for number, row in enumerate(_rows(table), 1)
    )
    return items_of(rows, skipped), {"tables": {one.name: sha256_of(one) for one in tables}}


def _tables(name: str, path: str | Path | None, split: str) -> list[Path]:
    """The files behind a path; in a folder those named after the split, if any are."""
    if path and Path(path).is_file():
        return [Path(path)]
    known = (".csv", ".json", ".jsonl", ".tsv", ".parquet")
    files = [p for p in sorted(Path(path).glob("*.*") if path else ()) if p.suffix in known]
    if not files:
        expected, found = f"a table ({', '.join(known)}) or a folder of them", path or "no path"
        raise DatasetError(f"benchmark {name}", expected, found, f"give it: {name}:FILE")
    named = re.compile(rf"(?<![a-z]){re.escape(split)}")
    return [p for p in files if named.search(p.stem.lower())] or files


def _rows(table: Path) -> Iterator[Row | Exception]:
    if table.suffix != ".parquet":
        return read_rows(table)
    with raising(DatasetError, table, "a whole Parquet file", "download it again"):
        return iter(pd.read_parquet(table).rename(columns=str.lower).to_dict("records"))


def _item(name: str, row: Row, layout: SimpleNamespace, root: Path, read: Callable) -> Item:
    image = row.get("image") or row.get("img_name")
    stored = image if isinstance(image, Mapping) else {}  # in Parquet, with its bytes
    image = str(stored.get("path") or name) if stored else image
    sample = _sample({**row, "image": image} if image else row, layout.dimension)
    scan = sample.scan.replace("\\", "/").removeprefix("./")
    parts = re.fullmatch(layout.path, scan)
    patient = row.get("patient") or (parts["patient"] if parts else scan)
    if content := stored.get("bytes"):
        digest = hashlib.sha256(content).hexdigest()[:16]
        patient, load = digest, lambda: [load_image(content, name=name)]
    else:  # paths that lead out of the folder are refused here
        places = [parts.expand(place) for place in layout.places] if parts else [scan]
        found = (place for place in places if scan_below(root, place).exists())
        load = partial(read, next(found, places[0]))
    family = _first(row, layout.family) or ("closed" if sample.options else "open")
    return Item(
        id=name,
        patient=str(patient),
        dimension=layout.dimension,
        family=layout.families.get(family, family),
        question=sample.question,
        options=dict(sample.options),
        answer=sample.truth,
        load=load,
        kind=_first(row, layout.kind),
        source=name.split("/")[0],
        about={"scan": sample.scan},
    )


def _sample(row: Row, dimension: str) -> Sample:
    """A row as ``inference.samples`` reads it. Gaps between options are closed first, labels ("A:
    liver") taken off, and the letter of the truth moves along."""
    texts = {}
    for letter in LETTERS:
        text = row.get(f"choice_{letter}".lower()) or row.get(f"option_{letter}".lower()) or ""
        text = re.sub(rf"^\s*{letter}\s*[:.)]\s*(?=\S)", "", str(text)).strip()
        texts |= {} if text in MISSING else {letter: text}
    rest = {k: v for k, v in row.items() if not re.match(r"(choice|option)_?[a-h]?$", k)}
    letters = [str(rest.pop(key, None) or "").strip().upper() for key in TRUTH_LETTERS]
    if letter := next((one for one in letters if len(one) == 1 and one in LETTERS), None):
        if letter not in texts:
            raise RequestError("truth", "an option that is there", letter, "correct the row")
        rest["answer_letter"] = LETTERS[[*texts].index(letter)]
    sample = sample_of({**rest, "options": list(texts.values())}, 0, dimension)
    if sample.problem is not None:
        raise sample.problem
    truth = (sample.truth or "").strip(" .").casefold()
    if not sample.options and truth in ("yes", "no"):
        return replace(sample, options={"A": "Yes", "B": "No"}, truth="AB"[truth == "no"])
    return sample


def _first(row: Row, columns: Sequence[str]) -> str:
    """The first of some columns that is filled; VQA-RAD writes "CLOSED" and "OPEN "."""
    text = next((str(row[name]).strip() for name in columns if row.get(name)), "")
    return text.lower() if text in ("CLOSED", "OPEN") else text.removesuffix(".0")
