"""Public benchmarks as they are handed out: a table of questions and a folder of scans.

==============  ================================================================================
``m3d-vqa``     CSV: Image Path, Question Type (1 plane, 2 phase, 3 organ, 4 abnormality,
                5 location), Question, Choice A-D ("NA": none), Answer, Answer Choice
``3d-rad``      CSV: VolumeName, Question, Answer, QuestionType, AnswerChoice, Choice A-D ("-":
                none)
``vqa-rad``     JSON: image_name, question, answer, answer_type, question_type, phrase_type
                ("test_...": test part)
``slake``       JSON: img_name (below ``imgs/``), question, answer, q_lang, answer_type,
                content_type
``pathvqa``     JSON, CSV or Parquet: image, question, answer
``pmc-vqa``     CSV: Figure_path, Question, Choice A-D (" A: liver"), Answer_label
``omnimedvqa``  JSON: image_path, question, gt_answer (text), option_A-D (perhaps fewer),
                modality_type
==============  ================================================================================

The path is the table, or a folder of tables. Scans are looked for below ``root`` and never outside
it; by default that is the folder of the table, or the one up to two above it that holds the
benchmark's folder of scans. A question that is answered by yes or no gets these two as options; any
other without options is open. A row that cannot be a question is skipped and named; a scan that
cannot be read fails when it is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.evaluation.items import Benchmark, Item, Skipped
from unireason_lib.imaging import PAPER_SIZE, QWEN_FRAME, ProcessorFrame, load_image
from unireason_lib.inference import Reading, read_scan, scan_below
from unireason_lib.inference.samples import MISSING, TRUTH_LETTERS, read_rows, sample_of
from unireason_lib.io import sha256_of
from unireason_lib.prompts import LETTERS

Row = Mapping[str, Any]

M3D_TYPES = {"1": "plane", "2": "phase", "3": "organ", "4": "abnormality", "5": "location"}
"""``Question Type`` of M3D-VQA."""

YES_NO = {"A": "Yes", "B": "No"}

_LABEL = re.compile(r"^\s*([A-H])\s*[:.)]\s*(\S.*)$", re.DOTALL)
_OPTION = re.compile(r"(choice|option)_?[a-h]?$")
_CT_RATE = re.compile(r"((?:train|valid)_\d+)(_[a-z])(_\d+)(\.nii\.gz|\.npy|\.npz)?")
_SUFFIXES = (".csv", ".json", ".jsonl", ".tsv", ".parquet")


@dataclass(frozen=True)
class Layout:
    """What is particular about a benchmark."""

    dimension: str
    family: Sequence[str] = ()  # columns, the first that is filled; none: "closed" or "open"
    kind: Sequence[str] = ()
    options: bool = False  # whether rows have any
    inside: str = ""  # folder of the scans that the rows' paths do not name
    beside: str = ""  # folder of the scans that they do, which may lie beside one of the table
    path: Callable[[Path, str], str] = lambda root, name: name  # root and row's path -> below root
    patient: Callable[[str], str] = lambda name: name  # the row's path -> who was scanned


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
    """A public benchmark.

    Args:
        name: Which, see the module.
        path: Its table, or a folder of them, of which those named after the split are taken.
        split: ``"test"`` and so on, where rows or file names say.
        limit: At most so many questions.
        frame: Of the model; nothing here is written in its pixels.
        size: Slices, rows and columns that volumes are resampled to; None is the paper's.
        window, image_size: See :class:`unireason_lib.inference.Reading`.
        root: Folder of the scans.
        open: Ask multiple-choice questions without their options; answers are compared in words.
        language: Of SLAKE's questions (``q_lang``); None takes all.

    Raises:
        DatasetError: No table there, or no row of it can be asked.
    """
    layout = LAYOUTS[name]
    tables = _tables(name, path, split)
    root = Path(root) if root is not None else _home(tables[0].parent, layout.beside)
    root = root / layout.inside if (root / layout.inside).is_dir() else root
    reading = Reading(PAPER_SIZE if size is None else tuple(size), window, image_size)

    @lru_cache(maxsize=4)  # questions about one scan come together
    def read(where: str) -> Sequence[Any]:
        return read_scan(scan_below(root, where), layout.dimension, reading).images

    items: list[Item] = []
    skipped: list[Skipped] = []
    rows = ((table, number, row) for table in tables for number, row in enumerate(_rows(table), 1))
    for table, number, row in rows:
        if limit is not None and len(items) >= limit:
            break
        try:
            if isinstance(row, Exception):
                raise row
            if _wanted(row, split, language):
                row_id = f"{name}/{table.stem}/{number}"
                items.append(_item(row_id, row, layout, root, read, open))
        except (RequestError, DatasetError) as error:
            skipped.append(Skipped(f"{table.name}, row {number}", str(error)))
    identity = {
        "benchmark": name,
        "tables": {table.name: sha256_of(table) for table in tables},
        "root": str(root.resolve()),
        "split": split,
        "open": open,
        "language": language,
        "reading": json.loads(json.dumps(asdict(reading))),
    }
    return Benchmark(name, tuple(items), identity, tuple(skipped))


def _home(folder: Path, scans: str) -> Path:
    """The folder of a table, or one of two above it: the nearest that holds that of the scans."""
    places = (folder, *folder.resolve().parents[:2]) if scans else ()
    return next((place for place in places if (place / scans).is_dir()), folder)


def _tables(name: str, path: str | Path | None, split: str) -> list[Path]:
    """The files behind a path; in a folder those named after the split, if any are."""
    if path is not None and Path(path).is_file():
        return [Path(path)]
    folder = Path(path) if path is not None and Path(path).is_dir() else None
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES) if folder else []
    named = [p for p in files if re.search(rf"(?<![a-z]){re.escape(split)}", p.stem.lower())]
    if not files:
        expected = f"its table ({', '.join(_SUFFIXES)}), or a folder of them"
        found = "no path" if path is None else f"{path}, which has none"
        raise DatasetError(f"benchmark {name}", expected, found, f"give it: {name}:FILE")
    return named or files


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


def _wanted(row: Row, split: str, language: str | None) -> bool:
    """Whether the row is of the split (VQA-RAD) and language (SLAKE), as far as it says."""
    phrase = str(row.get("phrase_type") or "")
    if phrase and split in ("train", "test") and phrase.startswith("test") != (split == "test"):
        return False
    return language is None or str(row.get("q_lang") or language) == language


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
        sample = replace(sample, options=YES_NO, truth="A" if words == "yes" else "B")
    if without_options and sample.options:
        sample = replace(sample, options={}, truth=sample.truth and sample.options[sample.truth])
    scan = sample.scan.replace("\\", "/").removeprefix("./")
    where = layout.path(root, scan)
    if embedded is None:
        scan_below(root, where)  # refuses paths that lead out of the folder
    patient = str(row.get("patient") or "") or layout.patient(scan)
    family = _first(row, layout.family) or ("closed" if sample.options else "open")
    return Item(
        id=name,
        patient=hashlib.sha256(embedded).hexdigest()[:16] if embedded else patient,
        dimension=layout.dimension,
        family=M3D_TYPES.get(family, family),
        question=sample.question,
        options=dict(sample.options),
        answer=sample.truth,
        load=(lambda: [load_image(embedded, name=name)]) if embedded else partial(read, where),
        kind=_first(row, layout.kind),
        source=name.split("/")[0],
        about={"scan": sample.scan},
    )


def _with_plain_options(row: Row, layout: Layout) -> Row:
    """A row whose options are A, B, C without gaps: missing ones are closed up, labels ("A: liver")
    taken off, and the letter of the truth moves along."""
    rest = {key: value for key, value in row.items() if not _OPTION.match(key)}
    if not layout.options:
        return rest
    texts = {}
    for letter in LETTERS:
        keys = (f"choice_{letter}".lower(), f"option_{letter}".lower())
        text = next((str(row[key]).strip() for key in keys if row.get(key) is not None), "")
        label = _LABEL.match(text)
        text = label[2].strip() if label and label[1] == letter else text
        if text not in MISSING:
            texts[letter] = text
    moved = dict(zip(texts, LETTERS, strict=False))
    letters = [str(rest.pop(key, None) or "").strip().upper() for key in TRUTH_LETTERS]
    letter = next((letter for letter in letters if len(letter) == 1 and letter in LETTERS), None)
    if letter is not None and letter not in moved:
        raise RequestError("truth", "an option that is there", letter, "correct the row")
    truth = {} if letter is None else {"answer_letter": moved[letter]}
    return {**rest, **truth, "options": list(texts.values())}


def _first(row: Row, names: Sequence[str]) -> str:
    """The first of some columns that is filled; VQA-RAD writes "CLOSED" and "OPEN "."""
    text = next((str(row[name]).strip() for name in names if row.get(name)), "")
    return text.lower() if text in ("CLOSED", "OPEN") else text.removesuffix(".0")


def _m3d_path(root: Path, name: str) -> str:
    """Paths in M3D's tables begin with ``M3D_Cap_npy/``, which may be the root itself."""
    first, _, inner = name.partition("/")
    return inner if inner and first == root.name and not (root / first).exists() else name


def _ct_rate_path(root: Path, name: str) -> str:
    """Volumes of CT-RATE lie flat, or in folders ``valid/valid_1/valid_1_a/``."""
    parts = _CT_RATE.fullmatch(name)
    if parts is None or (root / name).exists():
        return name
    patient, study, suffix = parts[1], parts[1] + parts[2], parts[4] or ".nii.gz"
    file, folder = f"{study}{parts[3]}{suffix}", f"{patient}/{study}"
    places = (f"{folder}/{file}", f"{patient.split('_')[0]}/{folder}/{file}")
    return next((place for place in places if (root / place).exists()), file)


def _ct_rate_patient(name: str) -> str:
    parts = _CT_RATE.fullmatch(PurePosixPath(name).name)
    return parts[1] if parts else name


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)


_TYPE = ("question_type", "questiontype")
_ANSWER = ("answer_type",)

LAYOUTS: Mapping[str, Layout] = {
    "m3d-vqa": Layout(
        "3d", _TYPE, options=True, beside="M3D_Cap_npy", path=_m3d_path, patient=_parent
    ),
    "3d-rad": Layout("3d", _TYPE, options=True, path=_ct_rate_path, patient=_ct_rate_patient),
    "vqa-rad": Layout("2d", _ANSWER, _TYPE, inside="VQA_RAD Image Folder"),
    "slake": Layout("2d", _ANSWER, ("content_type",), inside="imgs", patient=_parent),
    "pathvqa": Layout("2d"),
    "pmc-vqa": Layout("2d", options=True, inside="images"),
    "omnimedvqa": Layout("2d", ("modality_type", "modality"), _TYPE, True, beside="Images"),
}
"""Name -> what is particular about it."""
