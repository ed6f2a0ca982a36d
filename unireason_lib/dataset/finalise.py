"""The end of a build: from the tables of all shards to the finished set.

Here is done what needs to know all studies: ids that occur twice, the split by patient and
near-duplicate, counts. One process does it in the order of the studies, so the rows do not depend
on who made which shard.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from datasets import Features

from unireason_lib import __version__
from unireason_lib.dataset import schema
from unireason_lib.dataset.hub import CONFIGS, dataset_card
from unireason_lib.dataset.shards import Run, open_run
from unireason_lib.dataset.splits import HASH_BYTES, SPLITS, assign_splits, patient_key
from unireason_lib.io import disk_error, write_json, write_whole

MOST_LISTED = 100
"""How many studies with warnings a manifest lists; beyond, it only counts."""


def finalise(run: Run, folder: Path, overridden: Sequence[str] = ()) -> None:
    """Write the configurations, the card and last the manifest of a run whose shards are all there;
    ``overridden`` are differences in settings that were accepted."""
    final, folders = run.work / "final", [shard.folder for shard in run.shards()]
    shutil.rmtree(final, ignore_errors=True)
    parts = [pq.read_table(part / "studies.parquet").to_pandas() for part in folders]
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    studies = pd.concat(parts, ignore_index=True)
    about = _assign(studies, run)

    def tables(name: str, split: str | None = None) -> Iterator[pa.Table]:
        """The tables of all shards, with the splits filled in: rows of one split, or of all."""
        for part, start in zip(folders, starts, strict=True):
            table = pq.read_table(part / f"{name}.parquet")
            splits = studies["split"].to_numpy()[table["study_number"].to_numpy() + start]
            if split is not None:
                place = table.column_names.index("split")
                table = table.set_column(place, "split", pa.array(splits, pa.string()))
            yield table.filter(pa.array(splits == split if split else splits != ""))

    def refused() -> Iterator[pa.Table]:
        """What shards refused, and the studies whose id an earlier one has."""
        yield from (pq.read_table(part / "refused.parquet") for part in folders)
        again = studies[studies["split"] == ""]
        details = [f"{number} records" for number in again["records"]]
        known = {"reason": "duplicate id", "detail": details, "record": "", "text": ""}
        rows = again.assign(study=again["id"], **known)[list(schema.REFUSED_FEATURES)]
        yield pa.Table.from_pandas(rows, preserve_index=False)

    try:
        for split in SPLITS:
            _write(final / "sft", split, schema.SFT_FEATURES, tables("records", split))
            rl = map(schema.rl_table, tables("records", split))
            _write(final / "rl", split, schema.RL_FEATURES, rl)
        _write(final / "images", "part", schema.IMAGE_FEATURES, tables("images"), 5_000)
        _write(final / "refused", "part", schema.REFUSED_FEATURES, refused())
    except OSError as error:
        raise disk_error(folder, error) from error
    columns = ["split", "source", "dimension", "family", "kind", "answer"]
    rows = _columns(final / "sft", schema.SFT_FEATURES, columns)
    rows["family and dimension"] = rows["family"] + ", " + rows["dimension"]
    refusals = _columns(final / "refused", schema.REFUSED_FEATURES, ["reason"])
    images = _columns(final / "images", schema.IMAGE_FEATURES, ["image_id"])
    manifest = {
        **{"format": 2, "version": __version__, "overridden": list(overridden)},
        **{"seed": run.config.seed, "settings": run.config.public()},
        **{"records": len(rows), "images": len(images)},
        "refused": refusals["reason"].value_counts().sort_index().to_dict(),
        "counts": {name: rows[name].value_counts().sort_index().to_dict() for name in rows},
        "sources": [
            {name: getattr(source, name) for name in ("name", "spec", "license", "modality")}
            | {"studies": len(source), "used": len(index)}
            for source, index in zip(open_run(run)[0], run.indexes(), strict=True)
        ],
        **about,
    }
    for name in CONFIGS:
        shutil.rmtree(folder / name, ignore_errors=True)
        if (final / name).is_dir():  # it has rows
            (final / name).rename(folder / name)
    write_whole(folder / "README.md", dataset_card(manifest))
    write_json(folder / "manifest.json", manifest)


def _assign(studies: pd.DataFrame, run: Run) -> dict[str, Any]:
    """Decide the split of each study, ``""`` for one whose id an earlier one has; returns what the
    manifest says about studies, and the hash of all rows."""
    kept = ~studies["id"].duplicated().to_numpy()
    keys = [patient_key(name, str(run.config.seed)) for name in studies["patient"]]
    keys = np.array(keys, np.uint64)
    own = np.array([SPLITS.index(s) if s in SPLITS else -1 for s in studies["split"]], np.int8)
    perceptual = np.frombuffer(b"".join(studies["perceptual_hash"]), np.uint8)
    perceptual = perceptual.reshape(-1, HASH_BYTES)[kept]
    voxels = np.frombuffer(b"".join(studies["voxel_hash"]), np.uint64)[::2][kept]
    assigned = assign_splits(keys[kept], perceptual, voxels, own[kept], run.config.fractions)
    studies["split"] = ""
    studies.loc[kept, "split"] = np.array(SPLITS, object)[assigned.splits]
    patients = {s: len(np.unique(keys[(studies["split"] == s).to_numpy()])) for s in SPLITS}
    warned = studies[studies["warnings"].map(len) > 0][["id", "warnings"]]
    rows = zip(studies["split"][kept], studies["digest"][kept], strict=True)
    content = b"".join(sorted(split.encode() + digest for split, digest in rows))
    return {
        "content_hash": hashlib.blake2b(content, digest_size=16).hexdigest(),
        "studies": {
            **{"read": int(kept.sum()), "patients": sum(patients.values())},
            **{"patients_by_split": patients},
            "near_duplicates": sum(patients.values()) - assigned.groups,
        },
        "warnings": {
            "studies": len(warned),
            "listed": {study: list(texts) for study, texts in warned[:MOST_LISTED].to_numpy()},
        },
    }


def _columns(folder: Path, features: Features, names: list[str]) -> pd.DataFrame:
    """Columns of what was written there, which may be nothing."""
    paths = sorted(map(str, folder.glob("*.parquet")))
    return pads.dataset(paths, features.arrow_schema, format="parquet").to_table(names).to_pandas()


def _write(
    folder: Path, name: str, features: Features, tables: Iterable[pa.Table], most: int = 50_000
) -> None:
    """Write tables as ``name-0.parquet`` ... of at most so many rows; none for no rows."""
    schema = features.arrow_schema
    chosen = (table.select(schema.names).cast(schema) for table in tables)
    pads.write_dataset(
        (batch for table in chosen for batch in table.to_batches() if len(batch)),
        folder,
        basename_template=f"{name}-{{i}}.parquet",
        schema=schema,
        format="parquet",
        file_options=pads.ParquetFileFormat().make_write_options(compression="zstd"),
        use_threads=False,  # in order
        max_rows_per_file=most,
        **{"min_rows_per_group": most // 50, "max_rows_per_group": most // 50},
        existing_data_behavior="overwrite_or_ignore",
    )
