"""The authors' own data, ``IQuestLab/UniReason-Med-Data``, as records.

The release has the three folders of :mod:`unireason_lib.dataset.parquet`, without its extra columns: a
conversation and image ids (``sft/``), or a prompt and the truth (``rl/``), and the 2D pictures. What a row
does not say (study, patient, family, who wrote it) stays empty. The user's words are kept as they are
(:attr:`Record.asked`), because the released replies answer to those; question and options are read out of
them besides.

Volumes are not in the release: they come from M3D, and who wants them must obtain them there. A 3D row is
text only, has no image ids, and may or may not name its volume. With ``m3d_root`` the volumes a user holds
are attached: by the path that the row names, or by a table that the user gives. A path that leads out of the
folder is refused, one that is missing is counted.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unireason_lib.answers import extract_choice
from unireason_lib.boxes import Box3D, parse_boxes
from unireason_lib.dataset.parquet import (
    ABILITY,
    AGENT_NAME,
    PLACEHOLDER,
    ImageStore,
    ScanRoots,
    inside,
    picture_row,
    pictures_of,
    read_records,
    record_of,
    rows,
)
from unireason_lib.dataset.records import Record
from unireason_lib.errors import DatasetError, explain

if TYPE_CHECKING:
    from PIL import Image

REPOSITORY = "IQuestLab/UniReason-Med-Data"
PAPER_SERIALIZATION: Mapping[str, Any] = {"size": [32, 256, 256], "window": "percentile"}

HELD_OUT = 50
"""One of so many studies is kept apart for validation, and another for a test: the release names no splits."""

_OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s*(\S.*?)\s*$")
_VOLUME_SUFFIXES = (".npy", ".npz", ".nii", ".nii.gz")
_VOLUME_KEYS = ("volume", "volume_path", "image_path", "image", "path", "images", "volumes")


@dataclass
class OfficialData:
    """The released data set, streamed.

    Args:
        folder: Folder that contains ``sft/``, ``rl/``, ``images/``. See :func:`open_official` for a hub id.
        m3d_root: Folder with the M3D volumes that the user holds; None leaves 3D rows without pictures.
        volumes: Row id -> path under ``m3d_root``, for rows that name no volume. The id of a row is
            ``sft-00000012``: the folder and the row's number over all its files in the order of their names.
    """

    folder: Path
    m3d_root: Path | None = None
    volumes: Mapping[str, str] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter, init=False)
    """What was seen while reading: ``"2d"``, ``"3d"``, ``"volume attached"``, ``"volume missing"``,
    ``"volume refused"``."""

    def records(self, form: Literal["sft", "rl"] = "sft") -> Iterator[Record]:
        """All rows of one folder as records; an ``rl`` row has an empty reply.

        Raises:
            DatasetError: A folder or column is missing, or ``reward_model``/``extra_info`` is neither a
                dictionary nor JSON.
        """
        for number, row in enumerate(rows(self.folder, form)):
            yield self.record(f"{form}-{number:08d}", row)

    def record(self, row_id: str, row: Mapping[str, Any]) -> Record:
        """One row as a record, its volume attached.

        Args:
            row_id: Its name, see :attr:`volumes`.
            row: Of ``sft/`` or ``rl/``.

        Raises:
            DatasetError: As :meth:`records`.
        """
        record = self._record(row_id, row)
        self.counts[record.dimension] += 1
        return record if record.dimension == "2d" else self._attach(record)

    def pictures(self, record: Record, store: Mapping[str, Image.Image] | None = None) -> list[Image.Image]:
        """The pictures of a record: from ``images/``, or the slices of its attached volume (32 of 256 x 256, as in the
        paper).

        Raises:
            DatasetError: A 3D record without an attached volume, or pictures are missing.
        """
        store = ImageStore(self.folder) if store is None else store
        return pictures_of(record, store, ScanRoots({"": self.m3d_root}) if self.m3d_root else None)

    def _record(self, row_id: str, row: Mapping[str, Any]) -> Record:
        info = as_dict(row.get("extra_info"), row_id, "extra_info")
        if "record" in info:
            return record_of({**row, "extra_info": info})
        truth = as_dict(row.get("reward_model"), row_id, "reward_model").get("ground_truth", "")
        turns = row.get("messages") or row.get("prompt")
        if not turns:
            raise DatasetError(
                explain(
                    row_id,
                    expected="a column messages or prompt with turns",
                    found=f"columns {', '.join(row)}",
                    do="check that this is the released data set",
                )
            )
        image_ids = tuple(row.get("image_ids") or ())
        said = {turn["role"]: turn["content"] for turn in turns}
        reply, stored_crops = _without_placeholders(said.get("assistant", ""))
        shown = image_ids[: len(image_ids) - stored_crops]
        asked = said.get("user", "").replace(PLACEHOLDER, "").strip()
        question, options = question_and_options(asked)
        source = row.get("data_source") or row.get("source_dataset") or info.get("data_source") or ""
        volume = _volume_path(info, image_ids)
        return Record(
            id=row_id,
            study=str(info.get("study") or info.get("case_id") or shown[:1] or volume or row_id),
            patient=str(info.get("patient") or info.get("patient_id") or ""),
            source=str(source) or "unireason-med",
            modality=str(info.get("modality") or ""),
            dimension=_dimension(reply, shown, source, info, volume),
            family=str(info.get("family") or info.get("question_type") or row.get("ability") or ""),
            question=question,
            options=options,
            answer=letter_of(str(truth), options) or extract_choice(reply, options or None) or "",
            reply=reply,
            image_ids=() if volume in shown else shown,
            evidence=tuple(("", tuple(box.as_tuple())) for box in parse_boxes(reply)),
            license="see the release and its sources",
            writer="release",
            split=str(info.get("split") or ""),
            lookup=volume,
            asked=asked,
        )

    def _attach(self, record: Record) -> Record:
        lookup = self.volumes.get(record.id, record.lookup)
        record = replace(
            record, lookup=lookup, serialization=record.serialization or dict(PAPER_SERIALIZATION)
        )
        if self.m3d_root is None or not lookup:
            self.counts["volume missing"] += 1
            return record
        try:
            path = inside(self.m3d_root, lookup)
        except DatasetError:
            self.counts["volume refused"] += 1
            return replace(record, lookup="")
        if not path.exists():
            self.counts["volume missing"] += 1
            return record
        self.counts["volume attached"] += 1
        names = tuple(f"{record.id}-{z:03d}" for z in range(record.serialization["size"][0]))
        return replace(record, image_ids=names)


def open_official(
    where: str | Path = REPOSITORY,
    *,
    m3d_root: str | Path | None = None,
    volumes: str | Path | None = None,
    download: bool = False,
    revision: str = "main",
) -> OfficialData:
    """Open the released data.

    Args:
        where: A local folder, or the id of a repository on the hub.
        m3d_root: Folder with M3D volumes.
        volumes: Table that names the volume of rows: CSV with the columns ``id`` and ``volume``, or JSON
            ``{id: path}``.
        download: Whether a hub id may be downloaded; without it only what is already in the local cache is
            used.
        revision: Branch, tag or commit on the hub.

    Raises:
        DatasetError: No such folder, or not in the cache and ``download`` not given.
    """
    root = None if m3d_root is None else Path(m3d_root)
    if root is not None and not root.is_dir():
        raise DatasetError(
            explain(
                root, expected="the folder of the M3D volumes", found="no folder", do="correct --m3d-root"
            )
        )
    folder = Path(where)
    if not folder.is_dir():
        folder = _snapshot(str(where), download, revision)
    return OfficialData(folder, root, _table(volumes) if volumes else {})


def split_of(record: Record) -> str:
    """The split of a released record: the one it names, else one that follows from its patient, volume or pictures.
    Rows about one picture are never in two; two pictures of one patient may be, where rows name no patients."""
    if record.split:
        return record.split
    whose = record.patient or record.lookup or "/".join(record.image_ids) or record.study
    number = int.from_bytes(hashlib.blake2b(whose.encode(), digest_size=4).digest()) % HELD_OUT
    return {0: "val", 1: "test"}.get(number, "train")


def _snapshot(repository: str, download: bool, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            local_files_only=not download,
            allow_patterns=["sft/*.parquet", "rl/*.parquet", "images/*.parquet"],
        )
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise DatasetError(
            explain(
                repository,
                expected="a local folder, or a data set that the hub gives"
                if download
                else "a local folder, or a data set in the local hub cache",
                found=" ".join(str(error).split())[:200] if download else "neither",
                do="check the name and the connection"
                if download
                else f"give the folder, or download it first: hf download --repo-type dataset {repository}",
            )
        ) from error
    return Path(found)


def question_and_options(text: str) -> tuple[str, dict[str, str]]:
    """Question and options out of a user's turn whose options stand on lines of their own (``A. liver``,
    ``(B) spleen``).

    Returns:
        The text before the first option, and letter -> option; the whole text and nothing when there are no
        options.
    """
    lines = text.splitlines()
    found = [(i, match) for i, line in enumerate(lines) if (match := _OPTION.match(line))]
    if [match[1] for _, match in found] != list("ABCDEFGH"[: len(found)]) or len(found) < 2:
        return text.strip(), {}
    return "\n".join(lines[: found[0][0]]).strip(), {match[1]: match[2] for _, match in found}


def letter_of(truth: str, options: Mapping[str, str]) -> str:
    """The letter that a truth means: a letter, ``B. text``, or the text of one option; empty when none."""
    return extract_choice(truth, options or None) or ""


def as_dict(value: Any, row_id: str, name: str) -> dict[str, Any]:
    """A field that is a dictionary in some files and JSON in others.

    Raises:
        DatasetError: It is neither.
    """
    if value is None or value == "":
        return {}
    with suppress(ValueError):
        value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise DatasetError(
            explain(
                f"{name} of {row_id}",
                expected="a dictionary or JSON of one",
                found=repr(value)[:60],
                do="check the file, or leave the column out",
            )
        )
    return dict(value)


def _without_placeholders(reply: str) -> tuple[str, int]:
    """A reply without ``<image>``, and how many there were: crops that are stored, which we cut ourselves."""
    return reply.replace(PLACEHOLDER, ""), reply.count(PLACEHOLDER)


def _volume_path(info: Mapping[str, Any], image_ids: tuple[str, ...]) -> str:
    """The path of a volume that a row names somewhere; empty when it names none."""
    candidates = [info.get(key) for key in _VOLUME_KEYS] + list(image_ids)
    for value in candidates:
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(first, str) and first.lower().endswith(_VOLUME_SUFFIXES):
            return first
    return ""


def _dimension(reply, image_ids, source, info, volume) -> Literal["2d", "3d"]:
    """Told by the row, by its boxes, or by the absence of pictures: only 3D rows of the release have none."""
    told = str(info.get("dimension") or info.get("modality_type") or "").lower()
    if told in ("2d", "3d"):
        return told
    boxes = parse_boxes(reply)
    if boxes:
        return "3d" if isinstance(boxes[0], Box3D) else "2d"
    return "3d" if volume or not image_ids or len(image_ids) > 1 or "m3d" in str(source).lower() else "2d"


def _table(path: str | Path) -> dict[str, str]:
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return {str(key): str(value) for key, value in json.loads(text).items()}
        return {row["id"]: row["volume"] for row in csv.DictReader(text.splitlines())}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DatasetError(
            explain(
                path,
                expected="CSV with the columns id and volume, or JSON {id: path}",
                found=f"{type(error).__name__}: {error}",
                do="correct the table",
            )
        ) from error


def write_release(folder: str | Path, out: str | Path, m3d_root: str | Path) -> Path:
    """Write a data set of ours in the exact form of the release, for trying what reads it where the release is not.

    Rows keep their conversation and image ids and nothing else that the release does not have. 3D rows lose their
    pictures: the slices of each volume go to ``m3d_root`` as an M3D array, ``(1, slices, height, width)`` float32 in
    [0, 1], and the row names its path.

    Args:
        folder: A data set that this package wrote, with its pictures.
        out: Folder for ``sft/``, ``rl/``, ``images/``; must be new.
        m3d_root: Folder for the volumes; must be new too.

    Returns:
        ``out``.

    Raises:
        DatasetError: One of the folders is there already.
    """
    out, root, store = Path(out), Path(m3d_root), ImageStore(folder)
    for made in (out, root):
        if made.exists():
            raise DatasetError(
                explain(made, expected="no such folder", found="one", do="choose another name")
            )
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    sft: list[dict[str, Any]] = []
    rl: list[dict[str, Any]] = []
    flat: dict[str, Image.Image] = {}
    volumes: dict[tuple[str, ...], str] = {}
    for record in read_records(folder):
        info: dict[str, Any] = {"index": len(sft)}
        shown = list(record.image_ids) if record.dimension == "2d" else []
        if record.dimension == "3d":
            path = volumes.get(record.image_ids)
            if path is None:
                path = volumes[record.image_ids] = f"ct/{len(volumes):06d}/volume.npy"
                slices = np.stack([np.asarray(store[name].convert("L")) for name in record.image_ids])
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                np.save(root / path, slices[None].astype(np.float32) / 255)
            info["volume"] = path
        flat |= {name: store[name] for name in shown}
        asked = {"role": "user", "content": PLACEHOLDER * len(shown) + record.user_text}
        told = json.dumps(info)
        sft.append(
            {
                "messages": [asked, {"role": "assistant", "content": record.reply}],
                "image_ids": shown,
                "extra_info": told,
            }
        )
        rl.append(
            {
                "prompt": [asked],
                "image_ids": shown,
                "data_source": record.source,
                "agent_name": AGENT_NAME,
                "ability": ABILITY,
                "reward_model": json.dumps({"style": "rule", "ground_truth": record.answer}),
                "extra_info": told,
            }
        )
    pictures = [picture_row(name, picture) for name, picture in flat.items()]
    for name, found in (("sft", sft), ("rl", rl), ("images", pictures)):
        (temporary / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(found), temporary / name / "part-00000.parquet")
    return temporary.rename(out)
