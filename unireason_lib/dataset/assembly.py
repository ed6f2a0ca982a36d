"""The end of a build: from the parts of all units to the final files.

Here is done what needs to know all studies: duplicate ids, the split by patient, counts. One process does it,
in the order of the studies, so the result does not depend on who made which unit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unireason_lib.dataset.card import card_text
from unireason_lib.dataset.checks import Refusal
from unireason_lib.dataset.crew import progress_bar
from unireason_lib.dataset.ledger import code_state, public_settings, versions
from unireason_lib.dataset.parquet import (
    SCHEMAS,
    entry_of_file,
    file_entry,
    manifest_text,
    whole_file,
    with_split,
    write_shards,
    write_table,
    write_text,
)
from unireason_lib.dataset.plan import BuildConfig, Unit, done_path, part_path, studies_of
from unireason_lib.dataset.splits import FINGERPRINT_BYTES, SPLITS, assign_splits, patient_key

LARGEST_LIST = 100
"""How many pairs a manifest lists before it only counts."""


def assemble(
    config: BuildConfig,
    folder: Path,
    units: Sequence[Unit],
    sources: Sequence[Any],
    states: Sequence[Mapping[str, Any]],
    total: int,
    progress: bool,
) -> dict[str, Any]:
    """From the parts of all units to the final files; ``states`` are those of the sources in the ledger."""

    work = folder / ".build"
    keep, splits, about = _split_studies(config, work, units, total)
    with progress_bar(progress, "units", (len(SPLITS) + 1) * len(units)) as bar:
        text_files, counts = _write_rows(config, folder, units, keep, splits, bar)
        image_files, pictures = _write_images(config, folder, units, keep, bar)
    refused, notices = _write_lists(folder, units, keep)
    manifest = {
        "format": 1,
        "seed": config.seed,
        "settings": public_settings(config),
        "versions": versions(),
        "code": code_state(),
        "sources": [
            {**{k: v for k, v in state.items() if k != "state"}, "used": studies_of(source, config.limit)}
            for state, source in zip(states, sources, strict=True)
        ],
        "records": sum(counts["split"].values()),
        "pictures": pictures,
        "studies": {"read": int(keep.sum()), "offered": total, **about},
        "counts": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "refused": dict(sorted(refused.items())),
        "notices": notices,
        "files": text_files + image_files,
    }
    write_text(folder / "README.md", card_text(manifest))
    write_text(folder / "manifest.json", manifest_text(manifest))
    return manifest


def _split_studies(
    config: BuildConfig, work: Path, units: Sequence[Unit], total: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Which studies stay, and the split of each. Memory: about 200 bytes a study."""
    patients, ids = np.zeros(total, np.uint64), np.zeros(total, np.uint64)
    prints = np.zeros((total, FINGERPRINT_BYTES), np.uint8)
    own = np.full(total, -1, np.int8)
    keep = np.zeros(total, bool)
    for unit in units:
        for note in notes_of(work, unit):
            if (study := note["study"]) is None:
                continue
            number = note["number"]
            keep[number] = True
            ids[number] = patient_key(study["id"])
            patients[number] = patient_key(study["patient"], str(config.seed))
            own[number] = SPLITS.index(study["split"]) if study["split"] in SPLITS else -1
            if study["print"]:
                prints[number] = np.frombuffer(bytes.fromhex(study["print"]), np.uint8)
    rows = np.flatnonzero(keep)
    _, first = np.unique(ids[rows], return_index=True)
    again = np.setdiff1d(np.arange(len(rows)), first)
    keep[rows[again]] = False
    rows = np.flatnonzero(keep)
    assignment = assign_splits(patients[rows], prints[rows], own[rows], config.fractions)
    splits = np.zeros(total, np.uint8)
    splits[rows] = assignment.splits
    about = {
        "patients": len(np.unique(patients[rows])),
        "groups": assignment.groups,
        "look_alikes": len(assignment.look_alikes),
        "look_alike_pairs": rows[assignment.look_alikes[:LARGEST_LIST]].tolist(),
        "patients_by_split": {
            name: len(np.unique(patients[rows][assignment.splits == i])) for i, name in enumerate(SPLITS)
        },
    }
    return keep, splits, about


def _write_rows(
    config: BuildConfig, folder: Path, units: Sequence[Unit], keep: np.ndarray, splits: np.ndarray, bar: Any
) -> tuple[list[dict[str, Any]], dict[str, Counter]]:
    """The files of ``sft/`` and ``rl/``, one split after the other. Begun anew when interrupted: they come
    out the same.

    Returns:
        Their entries in the manifest, and counts.
    """
    names = ("split", "source", "dimension", "family", "answer", "family and dimension")
    counts: dict[str, Counter] = {name: Counter() for name in names}
    entries: list[dict[str, Any]] = []

    def tables(split: str) -> Iterator[pa.Table]:
        for unit in units:
            bar.update(1)
            here = slice(unit.first, unit.first + unit.stop - unit.start)
            mine = keep[here] & (splits[here] == SPLITS.index(split))
            path = part_path(folder / ".build", unit, "rows")
            if not mine.any() or not path.exists():
                continue
            table = pq.read_table(path)
            table = table.filter(pa.array(mine[table["_study"].to_numpy() - unit.first]))
            answers = table["_answer"]
            table = with_split(table.select(SCHEMAS["sft"].names), [split] * len(table))
            _count(counts, table, answers)
            yield table.append_column("_answer", answers)

    for split in SPLITS:
        entries += write_shards(folder, split, tables(split), config.rows_per_file)
    return sorted(entries, key=lambda entry: entry["path"]), counts


def _count(counts: dict[str, Counter], table: pa.Table, answers: pa.ChunkedArray) -> None:
    info = table["extra_info"].combine_chunks()
    columns = {
        name: pc.struct_field(info, name).to_pylist() for name in ("split", "source", "dimension", "family")
    }
    for name, values in {**columns, "answer": answers.to_pylist()}.items():
        counts[name].update(values)
    counts["family and dimension"].update(
        f"{family}, {dimension}"
        for family, dimension in zip(columns["family"], columns["dimension"], strict=True)
    )


def _write_images(
    config: BuildConfig, folder: Path, units: Sequence[Unit], keep: np.ndarray, bar: Any
) -> tuple[list[dict[str, Any]], int]:
    """The files of ``images/``. Which units go into which file follows from the sizes of their parts, so
    that a file that is there already is taken as it is, and parts can be removed as soon as their file is
    whole."""

    work = folder / ".build"
    schema = SCHEMAS["images"]
    entries: list[dict[str, Any]] = []
    total = 0

    def tables(group: Sequence[Unit]) -> Iterator[pa.Table]:
        for unit in group:
            with pq.ParquetFile(part_path(work, unit, "images")) as file:
                for batch in file.iter_batches(batch_size=64):
                    table = pa.Table.from_batches([batch])
                    stays = keep[table["_study"].to_numpy()]
                    yield table.filter(pa.array(stays)).select(schema.names)

    for number, group in enumerate(_image_groups(work, units, config.file_megabytes << 20)):
        path = folder / "images" / f"part-{number:05d}.parquet"
        if path.exists():
            entry = entry_of_file(path)
        else:
            file = write_table(path, (t for t in tables(group) if len(t)), schema, 64)
            entry = file_entry(path, pq.read_metadata(path).num_rows, file)
        for unit in group:
            part_path(work, unit, "images").unlink(missing_ok=True)
        entries.append(entry)
        total += entry["rows"]
        bar.update(len(group))
    bar.update(bar.total - bar.n if bar.total else 0)  # units without pictures
    return entries, total


def _image_groups(work: Path, units: Sequence[Unit], most: int) -> Iterator[list[Unit]]:
    """Neighbouring units whose pictures together have about ``most`` bytes."""
    group, size = [], 0
    for unit in units:
        part = json.loads(done_path(work, unit).read_text(encoding="utf-8"))["parts"].get("images")
        if part is None:
            continue
        if group and size + part["bytes"] > most:
            yield group
            group, size = [], 0
        group.append(unit)
        size += part["bytes"]
    if group:
        yield group


def _write_lists(folder: Path, units: Sequence[Unit], keep: np.ndarray) -> tuple[Counter, int]:
    """``refused.jsonl`` and ``notices.jsonl``.

    Returns:
        Refusals by reason, and the number of notices.
    """

    counts: Counter = Counter()
    notices = 0
    with whole_file(folder / "refused.jsonl") as refused, whole_file(folder / "notices.jsonl") as odd:
        for unit in units:
            for note in notes_of(folder / ".build", unit):
                found = note["refused"]
                if note["study"] is not None and not keep[note["number"]]:
                    study = note["study"]["id"]
                    detail = f"an earlier study has it; {note['records']} records left out"
                    found = [*found, Refusal("duplicate id", detail, study).to_dict()]
                for refusal in found:
                    counts[refusal["reason"]] += 1
                    refused.write((json.dumps(refusal, ensure_ascii=False) + "\n").encode())
                for notice in note["notices"]:
                    notices += 1
                    odd.write((json.dumps(notice, ensure_ascii=False) + "\n").encode())
    return counts, notices


def notes_of(work: Path, unit: Unit) -> list[dict[str, Any]]:
    return json.loads(done_path(work, unit).read_text(encoding="utf-8"))["studies"]
