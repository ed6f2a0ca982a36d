"""Public benchmarks as they are handed out: a table of questions and a folder of scans.

==============  ======================================================================================================
``m3d-vqa``     CSV: Image Path, Question Type (1 plane, 2 phase, 3 organ, 4 abnormality, 5 location), Question,
                Choice A-D ("NA": none), Answer, Answer Choice
``3d-rad``      CSV: VolumeName, Question, Answer, QuestionType, AnswerChoice, Choice A-D ("-": none)
``vqa-rad``     JSON: image_name, question, answer, answer_type, question_type, phrase_type ("test_...": test part)
``slake``       JSON: img_name (below ``imgs/``), question, answer, q_lang, answer_type, content_type
``pathvqa``     JSON, CSV or Parquet: image, question, answer
``pmc-vqa``     CSV: Figure_path, Question, Choice A-D (" A: liver"), Answer_label
``omnimedvqa``  JSON: image_path, question, gt_answer (text), option_A-D (perhaps fewer), modality_type
==============  ======================================================================================================

The path is the table, or a folder with tables of one kind. Scans are looked for below ``root``, and never outside it;
by default that is the folder of the table, or the one up to two above it that holds the folder of scans, where a
benchmark is handed out like that (``M3D_Cap_npy``, ``Images``). A question that is answered by yes or no gets these two
as options; any other without options is open, and its answer is compared word for word. A row that cannot be a question
is skipped and named; a scan that cannot be read fails when it is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.evaluation.items import Benchmark, Item, Skipped
from unireason_lib.imaging import PAPER_SIZE, QWEN_FRAME, ProcessorFrame, load_image
from unireason_lib.inference import Reading, read_scan, scan_below
from unireason_lib.inference.samples import MISSING, TRUTH_LETTERS, read_rows, sample_of
from unireason_lib.io import sha256_of
from unireason_lib.prompts import LETTERS

if TYPE_CHECKING:
    from PIL import Image

Row = Mapping[str, Any]

M3D_TYPES = {"1": "plane", "2": "phase", "3": "organ", "4": "abnormality", "5": "location"}
"""``Question Type`` of M3D-VQA."""

YES_NO = {"A": "Yes", "B": "No"}

_LABEL = re.compile(r"^\s*([A-H])\s*[:.)]\s*(\S.*)$", re.DOTALL)
_CT_RATE = re.compile(r"((?:train|valid)_\d+)(_[a-z])(_\d+)(\.nii\.gz|\.npy|\.npz)?")
_SUFFIXES = (".csv", ".json", ".jsonl", ".tsv", ".parquet")


@dataclass(frozen=True)
class Layout:
    """What is particular about a benchmark.

    Args:
        dimension: Of its scans.
        family: Row -> family of the question.
        kind: Row -> kind of the question.
        folder: Folder of the scans below the root, when there is one of that name.
        options: Whether rows have options.
        beside: Folder of the scans that rows name, which may lie beside a folder of the table.
        wanted: Row and split -> whether the row belongs to it.
        place: Root and the row's path -> the path below the root.
        patient: The row's path -> who was scanned.
    """

    dimension: str
    family: Callable[[Row], str]
    kind: Callable[[Row], str] = lambda row: ""
    folder: str = ""
    options: bool = False
    beside: str = ""
    wanted: Callable[[Row, str], bool] = lambda row, split: True
    place: Callable[[Path, str], str] = lambda root, name: name
    patient: Callable[[str], str] = lambda name: name


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
        path: Its table, or a folder of them. A folder may hold tables of several splits, named after them.
        split: ``"test"`` and so on, where rows or file names say.
        limit: At most so many questions.
        frame: Of the model (boxes of replies are in its pixels; these benchmarks have no true boxes).
        size: Slices, rows and columns that volumes are resampled to; None is the paper's.
        window, image_size: See :class:`unireason_lib.inference.Reading`.
        root: Folder of the scans.
        open: Ask multiple-choice questions without their options (M3D-VQA's open form); the answer is then compared in
            words.
        language: Of SLAKE's questions (``q_lang``); None takes all.

    Raises:
        DatasetError: No table there, or no row of it can be asked.
    """
    layout = LAYOUTS[name]
    tables = _tables(name, path, split)
    root = Path(root) if root is not None else _home(tables[0].parent, layout.beside)
    if layout.folder and (root / layout.folder).is_dir():
        root = root / layout.folder
    reading = Reading(PAPER_SIZE if size is None else tuple(size), window, image_size)

    @lru_cache(maxsize=4)  # questions about one scan come together
    def read(where: str) -> Sequence[Image.Image]:
        return tuple(read_scan(scan_below(root, where), layout.dimension, reading).images)

    items: list[Item] = []
    skipped: list[Skipped] = []
    for table in tables:
        for number, row in enumerate(_rows(table), start=1):
            if limit is not None and len(items) >= limit:
                break
            if isinstance(row, Mapping) and not (
                layout.wanted(row, split) and _spoken(row, language)
            ):
                continue
            try:
                items.append(_item(f"{name}/{table.stem}/{number}", row, layout, root, read, open))
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


def _home(folder: Path, beside: str) -> Path:
    """The folder of a table, or one of the two above it: the nearest that holds the folder of scans."""
    above = (folder, *folder.resolve().parents[:2]) if beside else ()
    return next((place for place in above if (place / beside).is_dir()), folder)


def _tables(name: str, path: str | Path | None, split: str) -> list[Path]:
    """The files behind a path; in a folder those named after the split, if any are."""
    if path is not None and Path(path).is_file():
        return [Path(path)]
    found = []
    if path is not None and Path(path).is_dir():
        found = sorted(p for p in Path(path).iterdir() if p.suffix.lower() in _SUFFIXES)
        found = [p for p in found if re.search(rf"(?<![a-z]){split}", p.stem.lower())] or found
    if not found:
        raise DatasetError(
            f"benchmark {name}",
            f"its table ({', '.join(_SUFFIXES)}), or a folder of them",
            "no path" if path is None else f"{path}, which has none",
            f"give it: {name}:FILE",
        )
    return found


def _rows(table: Path) -> Iterator[Row | Exception]:
    if table.suffix.lower() != ".parquet":
        yield from read_rows(table)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield {
                        re.sub(r"[^a-z0-9]+", "_", key.lower()): value for key, value in row.items()
                    }
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            table, "a whole Parquet file", str(error)[:200], "download it again"
        ) from error


def _item(
    name: str, row: Row | Exception, layout: Layout, root: Path, read: Callable, ask_open: bool
) -> Item:
    if isinstance(row, Exception):
        raise row
    image = row.get("image")
    embedded = image.get("bytes") if isinstance(image, Mapping) else None
    if isinstance(image, Mapping):
        row = {**row, "image": str(image.get("path") or name)}
    elif "img_name" in row:
        row = {**row, "image": row["img_name"]}
    sample = sample_of(_with_plain_options(row, layout), 0, layout.dimension)
    if sample.problem is not None:
        raise sample.problem
    spoken = (sample.truth or "").strip(" .").casefold()
    if not sample.options and spoken in ("yes", "no"):
        sample = replace(sample, options=YES_NO, truth="A" if spoken == "yes" else "B")
    if ask_open and sample.options:
        sample = replace(sample, options={}, truth=sample.truth and sample.options[sample.truth])
    where = layout.place(root, _relative(sample.scan))
    if embedded is None:
        scan_below(root, where)
    patient = str(row.get("patient") or "") or layout.patient(sample.scan)
    return Item(
        id=name,
        patient=hashlib.sha256(embedded).hexdigest()[:16] if embedded else patient,
        dimension=layout.dimension,
        family=layout.family(row) or ("closed" if sample.options else "open"),
        question=sample.question,
        options=dict(sample.options),
        answer=sample.truth,
        load=_embedded(name, embedded) if embedded else partial(read, where),
        kind=layout.kind(row),
        source=name.split("/")[0],
        about={"scan": sample.scan},
    )


def _with_plain_options(row: Row, layout: Layout) -> Row:
    """A row whose options are A, B, C without gaps.

    Missing ones are closed up, labels ("A: liver") taken off, and the letter of the truth moves along.
    """
    if not layout.options:
        return {key: value for key, value in row.items() if not re.match(r"(choice|option)", key)}
    texts = {}
    for letter in LETTERS:
        keys = (f"choice_{letter}".lower(), f"option_{letter}".lower())
        text = next((str(row[key]).strip() for key in keys if row.get(key) is not None), "")
        label = _LABEL.match(text)
        text = label[2].strip() if label and label[1] == letter else text
        if text not in MISSING:
            texts[letter] = text
    moved = dict(zip(texts, LETTERS, strict=False))
    rest = {
        key: value for key, value in row.items() if not re.match(r"(choice|option)_?[a-h]?$", key)
    }
    said = [str(rest.pop(key, None) or "").strip().upper() for key in TRUTH_LETTERS]
    letter = next((letter for letter in said if len(letter) == 1 and letter in LETTERS), None)
    if letter is not None and letter not in moved:
        raise RequestError("truth", "an option that is there", letter, "correct the row")
    truth = {} if letter is None else {"answer_letter": moved[letter]}
    return {**rest, **truth, "options": list(texts.values())}


def _relative(scan: str) -> str:
    return scan.replace("\\", "/").removeprefix("./")


def _embedded(name: str, data: bytes) -> Callable[[], Sequence[Image.Image]]:
    return lambda: [load_image(data, name=name)]


def _spoken(row: Row, language: str | None) -> bool:
    return language is None or str(row.get("q_lang") or language) == language


def _said(*names: str) -> Callable[[Row], str]:
    """The first of some columns that says something."""

    def of(row: Row) -> str:
        return next(
            (str(row[name]).strip() for name in names if row.get(name) not in (None, "")), ""
        )

    return of


def _m3d_type(row: Row) -> str:
    said = _said("question_type")(row).removesuffix(".0")
    return M3D_TYPES.get(said, said)


def _m3d_place(root: Path, name: str) -> str:
    """Paths in M3D's tables begin with ``M3D_Cap_npy/``, which may be the root itself."""
    parts = PurePosixPath(name).parts
    inner = "/".join(parts[1:])
    return (
        inner
        if len(parts) > 1 and parts[0] == root.name and not (root / parts[0]).exists()
        else name
    )


def _ct_rate_place(root: Path, name: str) -> str:
    """Volumes of CT-RATE lie flat, or in folders ``valid/valid_1/valid_1_a/``."""
    found = _CT_RATE.fullmatch(name)
    if found is None or (root / name).exists():
        return name
    patient, study, number, suffix = found[1], found[1] + found[2], found[3], found[4] or ".nii.gz"
    file = f"{study}{number}{suffix}"
    for folder in (f"{patient}/{study}", f"{patient.split('_')[0]}/{patient}/{study}", ""):
        if (root / folder / file).exists():
            return f"{folder}/{file}".lstrip("/")
    return file


def _ct_rate_patient(name: str) -> str:
    found = _CT_RATE.fullmatch(PurePosixPath(name).name)
    return found[1] if found else name


def _vqa_rad_wanted(row: Row, split: str) -> bool:
    phrase = str(row.get("phrase_type") or "")
    return (
        not phrase
        or split not in ("train", "test")
        or phrase.startswith("test") == (split == "test")
    )


def _parent(name: str) -> str:
    return str(PurePosixPath(_relative(name)).parent)


_answer_type = _said("answer_type")


def _closed_or_open(row: Row) -> str:
    return _answer_type(row).lower()


LAYOUTS: Mapping[str, Layout] = {
    "m3d-vqa": Layout(
        "3d",
        _m3d_type,
        _m3d_type,
        options=True,
        beside="M3D_Cap_npy",
        place=_m3d_place,
        patient=_parent,
    ),
    "3d-rad": Layout(
        "3d",
        _said("questiontype", "question_type"),
        options=True,
        place=_ct_rate_place,
        patient=_ct_rate_patient,
    ),
    "vqa-rad": Layout(
        "2d",
        _closed_or_open,
        _said("question_type"),
        "VQA_RAD Image Folder",
        wanted=_vqa_rad_wanted,
    ),
    "slake": Layout("2d", _closed_or_open, _said("content_type"), "imgs", patient=_parent),
    "pathvqa": Layout("2d", lambda row: ""),
    "pmc-vqa": Layout("2d", lambda row: "closed", folder="images", options=True),
    "omnimedvqa": Layout(
        "2d",
        _said("modality_type", "modality"),
        _said("question_type"),
        options=True,
        beside="Images",
    ),
}
"""Name -> what is particular about it."""
