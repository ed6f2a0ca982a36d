"""The authors' own data, ``IQuestLab/UniReason-Med-Data``, as records.

The release has ``sft/``, ``rl/`` and ``images/`` without our typed columns. The user's words are
kept (:attr:`Record.asked`); question and options are read out of them. Volumes are not in it: they
belong to M3D, and a 3D row is text only. With ``m3d_root`` the volumes that a user holds are
attached, by the path that a row names or by a table of the user's.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unireason_lib.answers import extract_choice
from unireason_lib.boxes import Box3D, parse_boxes
from unireason_lib.dataset.hub import ImageTable, load_set
from unireason_lib.dataset.schema import PLACEHOLDER, SFT_FEATURES, Record, ScanReference, rl_table
from unireason_lib.errors import DatasetError, raising
from unireason_lib.imaging import PAPER_SIZE, Volume, load_volume
from unireason_lib.io import safe_path, whole_folder

REPOSITORY = "IQuestLab/UniReason-Med-Data"
HELD_OUT = 50
"""One of so many is kept apart for validation, another for a test: the release names no splits."""

_OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s*(\S.*?)\s*$")
_VOLUME_SUFFIXES = (".npy", ".npz", ".nii", ".nii.gz")


@dataclass
class Release:
    """The released data set, streamed."""

    folder: Path  # with sft/, rl/, images/
    m3d_root: Path | None = None  # folder of the M3D volumes that the user holds
    volumes: Mapping[str, str] = field(default_factory=dict)  # id of a row -> path below m3d_root

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
        chosen = [p for p in paths if p.name.startswith(f"{split}-")] or paths
        for path in paths:
            with raising(DatasetError, path, "a Parquet file", "download it again"):
                file = pq.ParquetFile(path)
            if path not in chosen:
                number += file.metadata.num_rows
                continue
            for batch in file.iter_batches(256):
                for row in batch.to_pylist():
                    yield f"{form}-{number:08d}", row
                    number += 1
        if not number:
            do = "give the folder with sft/, rl/ and images/"
            raise DatasetError(self.folder / form, "Parquet files", "none", do)

    def record(self, row_id: str, row: Mapping[str, Any]) -> Record:
        """One row as a record, its volume attached; a row of ours as it is."""
        if "serialization" in row:
            return Record.from_row(row)
        info = _as_dict(row.get("extra_info"), row_id, "extra_info")
        truth = _as_dict(row.get("reward_model"), row_id, "reward_model").get("ground_truth", "")
        if not (turns := row.get("messages") or row.get("prompt")):
            found, do = f"columns {', '.join(row)}", "check that this is the released data set"
            raise DatasetError(row_id, "a column messages or prompt with turns", found, do)
        content = {turn["role"]: turn["content"] for turn in turns}
        user, reply = content.get("user", ""), content.get("assistant", "")
        image_ids = _of_the_user(tuple(row.get("image_ids") or ()), user, reply)
        reply, asked = (text.replace(PLACEHOLDER, "").strip() for text in (reply, user))
        question, options = _question_and_options(asked)
        letters = (extract_choice(text, options or None) for text in (str(truth), reply))
        source = row.get("data_source") or row.get("source_dataset")
        volume = self.volumes.get(row_id) or _volume_path(info, image_ids)
        image_ids = () if volume in image_ids else image_ids
        boxes = parse_boxes(reply)  # only 3D rows of the release have no images
        deep = isinstance(boxes[0], Box3D) if boxes else volume or len(image_ids) != 1
        record = Record(
            id=row_id,
            study=next(iter(image_ids), volume or row_id),
            patient="",
            source=str(source or "unireason-med"),
            modality="",
            dimension="3d" if deep else "2d",
            family=str(row.get("ability") or ""),
            question=question,
            options=options,
            answer=next(filter(None, letters), ""),
            reply=reply,
            image_ids=image_ids,
            stored=bool(image_ids),
            evidence=tuple(("", tuple(box.as_tuple())) for box in boxes),
            license="see the release and its sources",
            writer="release",
            split=str(info.get("split") or ""),
            asked=asked,
        )
        if record.dimension == "2d":
            return record
        there = False
        try:
            if self.m3d_root is not None and volume:
                there = safe_path(self.m3d_root, volume, record.id).exists()
        except DatasetError:  # it leads out of the folder
            volume = ""
        slices = range(PAPER_SIZE[0] if there else 0)
        return replace(
            record,
            serialization={"size": list(PAPER_SIZE), "window": "percentile"},
            scan=ScanReference("release", volume) if volume else None,
            image_ids=tuple(f"{record.id}-{z:03d}" for z in slices),
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
) -> Release:
    """Open the released data: a folder, or the id of a repository on the hub that was downloaded
    before. ``m3d_root`` is a folder with M3D volumes, ``volumes`` a table of those of the rows: CSV
    with the columns ``id`` and ``volume``."""
    from huggingface_hub import snapshot_download

    if m3d_root is not None and not Path(m3d_root).is_dir():
        raise DatasetError(m3d_root, "the folder of M3D", "no folder", "correct --m3d-root")
    if not Path(where).is_dir():
        name = str(where)
        if name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(where).exists():
            do = "check the path; build makes a data set, and a hub id reads owner/name"
            raise DatasetError(where, "the folder of a data set", "no such folder", do)
        do = f"check the name, or download it: hf download --repo-type dataset {where}"
        with raising(DatasetError, where, "a folder, or a cached data set", do):
            where = snapshot_download(str(where), repo_type="dataset", local_files_only=True)
    table: Mapping[str, str] = {}
    if volumes:
        with raising(DatasetError, volumes, "CSV with the columns id and volume", "correct it"):
            table = pd.read_csv(volumes, dtype=str).dropna().set_index("id")["volume"].to_dict()
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
    texts = (text for text in (*info.values(), *image_ids) if isinstance(text, str))
    return next((text for text in texts if text.lower().endswith(_VOLUME_SUFFIXES)), "")


def write_release(folder: str | Path, out: str | Path, m3d_root: str | Path) -> Path:
    """Write a set of ours in the form of the release, to try what reads that, to the new folder
    ``out``, and its volumes to ``m3d_root`` as M3D arrays, (1, slices, rows, columns) float32."""
    table, infos, rows = ImageTable(folder), [], []
    if Path(out).exists():
        raise DatasetError(out, "no such folder", "one", "choose another name")
    with whole_folder(out) as temporary:
        for row in (row for part in load_set(folder).values() for row in part):
            record, info = Record.from_row(row), {"index": len(rows)}
            if record.dimension == "3d":
                info["volume"] = f"ct/{record.image_ids[0]}/volume.npy"
                path = Path(m3d_root) / info["volume"]
                path.parent.mkdir(parents=True, exist_ok=True)
                slices = [np.asarray(table[name].convert("L")) for name in record.image_ids]
                np.save(path, np.stack(slices)[None].astype(np.float32) / 255)
                record = replace(record, stored=False)
            rows.append(record.to_row())
            infos.append(json.dumps(info))
        sft = pa.Table.from_pylist(rows, SFT_FEATURES.arrow_schema)
        images = load_set(folder, "images", "train").with_format("arrow")[:]
        shown = pa.array([name for row in rows for name in row["image_ids"]], pa.string())
        columns = ["prompt", "image_ids", "data_source", "agent_name", "ability", "reward_model"]
        parts = {"sft": sft.select(["messages", "image_ids"]), "rl": rl_table(sft).select(columns)}
        parts = {n: part.append_column("extra_info", pa.array(infos)) for n, part in parts.items()}
        parts["images"] = images.filter(pc.is_in(images["image_id"], shown))
        for name, part in parts.items():
            (temporary / name).mkdir()
            pq.write_table(part, temporary / name / "part-00000.parquet")
    return Path(out)
