"""The authors' own data, ``IQuestLab/UniReason-Med-Data``, as records.

The release has ``sft/``, ``rl/`` and ``images/`` without our typed columns. The user's words are
kept (:attr:`Record.asked`); question and options are read out of them. Volumes are not in it: they
belong to M3D, and a 3D row is text only. With ``m3d_root`` the volumes that a user holds are
attached, by the path that a row names or by a table of the user's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from unireason_lib.answers import extract_choice
from unireason_lib.boxes import Box3D, parse_boxes
from unireason_lib.dataset.hub import ImageTable, load_set
from unireason_lib.dataset.schema import PLACEHOLDER, Record, ScanReference
from unireason_lib.dataset.shards import whole_folder
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import PAPER_SIZE, Volume, load_volume
from unireason_lib.io import safe_path

REPOSITORY = "IQuestLab/UniReason-Med-Data"
HELD_OUT = 50
"""One of so many is kept apart for validation, another for a test: the release names no splits."""

_OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s*(\S.*?)\s*$")
_VOLUME_SUFFIXES = (".npy", ".npz", ".nii", ".nii.gz")
_VOLUME_KEYS = ("volume", "volume_path", "image_path", "image", "path", "images", "volumes")


@dataclass
class Release:
    """The released data set, streamed."""

    folder: Path  # with sft/, rl/, images/
    m3d_root: Path | None = None  # folder of the M3D volumes that the user holds
    volumes: Mapping[str, str] = field(default_factory=dict)  # id of a row -> path below m3d_root
    counts: Counter[str] = field(default_factory=Counter, init=False)  # what was read, and attached

    def records(self, form: Literal["sft", "rl"] = "sft") -> Iterator[Record]:
        """All rows of one folder as records; an ``rl`` row has an empty reply."""
        for row_id, row in self.rows(form):
            yield self.record(row_id, row)

    def rows(
        self, form: Literal["sft", "rl"], split: str = "all"
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Ids and columns of one folder; of a split only where files are named after it. The id
        is ``sft-00000012``: the row's number over all files in the order of their names."""
        number, paths = 0, sorted((self.folder / form).glob("*.parquet"))
        for path in [p for p in paths if p.name.startswith(f"{split}-")] or paths:
            try:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(256):
                        for row in batch.to_pylist():
                            yield f"{form}-{number:08d}", row
                            number += 1
            except (pa.ArrowException, OSError) as error:
                raise DatasetError(path, "a Parquet file", error, "download it again") from error
        if not number:
            do = "give the folder with sft/, rl/ and images/"
            raise DatasetError(self.folder / form, "Parquet files", "none", do)

    def record(self, row_id: str, row: Mapping[str, Any]) -> Record:
        """One row as a record, its volume attached; a row of ours as it is."""
        if "serialization" in row:
            return Record.from_row(row)
        info = _as_dict(row.get("extra_info"), row_id, "extra_info")
        truth = _as_dict(row.get("reward_model"), row_id, "reward_model").get("ground_truth", "")
        turns = row.get("messages") or row.get("prompt")
        if not turns:
            found, do = f"columns {', '.join(row)}", "check that this is the released data set"
            raise DatasetError(row_id, "a column messages or prompt with turns", found, do)
        content = {turn["role"]: turn["content"] for turn in turns}
        user, reply = content.get("user", ""), content.get("assistant", "")
        image_ids = _of_the_user(tuple(row.get("image_ids") or ()), user, reply)
        reply, asked = (text.replace(PLACEHOLDER, "").strip() for text in (reply, user))
        question, options = _question_and_options(asked)
        letters = (extract_choice(text, options or None) for text in (str(truth), reply))
        source = row.get("data_source") or row.get("source_dataset") or info.get("data_source")
        volume = self.volumes.get(row_id) or _volume_path(info, image_ids)

        def stated(*names: str, usual: Any = "") -> str:
            return str(next(filter(None, map(info.get, names)), usual) or "")

        image_ids = () if volume in image_ids else image_ids
        boxes = parse_boxes(reply)  # only 3D rows of the release have no images
        deep = isinstance(boxes[0], Box3D) if boxes else volume or len(image_ids) != 1
        shown = (image_ids and image_ids[0]) or volume or row_id
        dimension = stated("dimension").lower()
        record = Record(
            id=row_id,
            study=stated("study", "case_id", usual=shown),
            patient=stated("patient", "patient_id"),
            source=str(source or "unireason-med"),
            modality=stated("modality", "modality_type"),
            dimension=dimension if dimension in ("2d", "3d") else "3d" if deep else "2d",
            family=stated("family", "question_type", usual=row.get("ability")),
            question=question,
            options=options,
            answer=next(filter(None, letters), ""),
            reply=reply,
            image_ids=image_ids,
            stored=bool(image_ids),
            evidence=tuple(("", tuple(box.as_tuple())) for box in boxes),
            license="see the release and its sources",
            writer="release",
            split=stated("split"),
            asked=asked,
        )
        self.counts[record.dimension] += 1
        return record if record.dimension == "2d" else self._with_volume(record, volume)

    def _with_volume(self, record: Record, volume: str) -> Record:
        state = "volume missing"
        if self.m3d_root is not None and volume:
            try:
                if safe_path(self.m3d_root, volume, record.id).exists():
                    state = "volume attached"
            except DatasetError:
                state, volume = "volume refused", ""
        self.counts[state] += 1
        slices = PAPER_SIZE[0] if state == "volume attached" else 0
        return replace(
            record,
            serialization={"size": list(PAPER_SIZE), "window": "percentile"},
            scan=ScanReference("release", volume) if volume else None,
            image_ids=tuple(f"{record.id}-{z:03d}" for z in range(slices)),
        )

    def scan(self, key: str) -> Volume:
        """The volume at a path under ``m3d_root``."""
        if self.m3d_root is None:
            raise DatasetError(key, "the folder of its volume", "none", "give it as m3d_root")
        return load_volume(safe_path(self.m3d_root, key, "volume"))


def open_release(
    where: str | Path = REPOSITORY,
    *,
    m3d_root: str | Path | None = None,
    volumes: str | Path | None = None,
    download: bool = False,
    revision: str = "main",
) -> Release:
    """Open the released data: a folder, or the id of a repository on the hub, which is downloaded
    only with ``download``. ``m3d_root`` is a folder with M3D volumes, ``volumes`` a table of those
    of the rows: CSV with the columns ``id`` and ``volume``."""
    from huggingface_hub import snapshot_download

    if m3d_root is not None and not Path(m3d_root).is_dir():
        raise DatasetError(m3d_root, "the folder of M3D", "no folder", "correct --m3d-root")
    if not Path(where).is_dir():
        patterns = [f"{name}/*.parquet" for name in ("sft", "rl", "images")]
        options = {"revision": revision, "allow_patterns": patterns, "repo_type": "dataset"}
        try:
            where = snapshot_download(str(where), local_files_only=not download, **options)
        except (OSError, ValueError) as error:  # of the hub: no such id, no connection, no cache
            do = f"check the name, or download it: hf download --repo-type dataset {where}"
            raise DatasetError(where, "a folder, or a cached data set", "neither", do) from error
    table: Mapping[str, str] = {}
    if volumes:
        try:
            table = pd.read_csv(volumes, dtype=str).set_index("id")["volume"].to_dict()
        except (OSError, ValueError, KeyError) as error:
            expected = "CSV with the columns id and volume"
            raise DatasetError(volumes, expected, repr(error), "correct the table") from error
    return Release(Path(where), Path(m3d_root) if m3d_root else None, table)


def release_split(record: Record) -> str:
    """The split of a released record: the one it names, else one that follows from its patient,
    volume or images. Questions about one image share a split; images of one patient may not."""
    scan = record.scan.key if record.scan else ""
    whose = record.patient or scan or "/".join(record.image_ids) or record.study
    number = int.from_bytes(hashlib.blake2b(whose.encode(), digest_size=4).digest()) % HELD_OUT
    return record.split or {0: "val", 1: "test"}.get(number, "train")


def _question_and_options(text: str) -> tuple[str, dict[str, str]]:
    """Question and options of a user's turn with one option a line (``A. liver``, ``(B) spleen``);
    the whole text and nothing when there are none."""
    lines = text.splitlines()
    matches = [(i, match) for i, line in enumerate(lines) if (match := _OPTION.match(line))]
    if len(matches) < 2 or [m[1] for _, m in matches] != list("ABCDEFGH"[: len(matches)]):
        return text, {}
    return "\n".join(lines[: matches[0][0]]).strip(), {match[1]: match[2] for _, match in matches}


def _as_dict(value: Any, row_id: str, name: str) -> dict[str, Any]:
    """A field that is a dictionary in some files and JSON in others."""
    with suppress(ValueError):
        value = json.loads(value) if isinstance(value, str) and value else value or {}
    if not isinstance(value, Mapping):
        found = repr(value)[:60]
        raise DatasetError(f"{name} of {row_id}", "a dictionary or JSON", found, "check the file")
    return dict(value)


def _of_the_user(image_ids: tuple[str, ...], user: str, reply: str) -> tuple[str, ...]:
    """Ids of the images of the user's turn. Crops of the reply have placeholders too, but only some
    rows list them behind the user's images: the user's own placeholders decide."""
    if count := user.count(PLACEHOLDER):
        return image_ids[:count]
    crops = reply.count(PLACEHOLDER)
    return image_ids[: len(image_ids) - crops] if len(image_ids) > crops else image_ids


def _volume_path(info: Mapping[str, Any], image_ids: tuple[str, ...]) -> str:
    """The path of a volume that a row names somewhere; empty when it names none."""
    values = [info.get(key) for key in _VOLUME_KEYS]
    named = [value[0] if isinstance(value, list) and value else value for value in values]
    paths = (text for text in (*named, *image_ids) if isinstance(text, str))
    return next((path for path in paths if path.lower().endswith(_VOLUME_SUFFIXES)), "")


def write_release(folder: str | Path, out: str | Path, m3d_root: str | Path) -> Path:
    """Write a set of ours in the exact form of the release, to try what reads that, to ``out``.
    Volumes go to ``m3d_root`` as M3D arrays, (1, slices, rows, columns) float32 in [0, 1]."""
    out, root, table = Path(out), Path(m3d_root), ImageTable(folder)
    for new in (out, root):
        if new.exists():
            raise DatasetError(new, "no such folder", "one", "choose another name")
    sft, rl, shown, volumes = [], [], {}, {}
    for record in (Record.from_row(row) for part in load_set(folder).values() for row in part):
        info: dict[str, Any] = {"index": len(sft)}
        if record.dimension == "3d":
            info["volume"] = f"ct/{record.image_ids[0]}/volume.npy"
            volumes[info["volume"]] = record.image_ids
            record = replace(record, stored=False)
        row, rewarded = record.to_row("sft"), record.to_row("rl")
        shown |= dict.fromkeys(row["image_ids"])
        shared = {"image_ids": row["image_ids"], "extra_info": json.dumps(info)}
        sft.append({"messages": row["messages"], **shared})
        columns = ("prompt", "data_source", "agent_name", "ability")
        truth = {"reward_model": json.dumps(rewarded["reward_model"])}
        rl.append({**{name: rewarded[name] for name in columns}, **truth, **shared})
    for name, image_ids in volumes.items():
        (root / name).parent.mkdir(parents=True)
        slices = [np.asarray(table[image_id].convert("L")) for image_id in image_ids]
        np.save(root / name, np.stack(slices)[None].astype(np.float32) / 255)
    images = [
        {"image_id": name, "path": f"images/{name}.png", "bytes": table.encoded(name)}
        for name in shown
    ]
    with whole_folder(out) as temporary:
        for name, rows in {"sft": sft, "rl": rl, "images": images}.items():
            (temporary / name).mkdir()
            pq.write_table(pa.Table.from_pylist(rows), temporary / name / "part-00000.parquet")
    return out
