"""The whole construction: sources -> studies -> questions -> reasoning -> checks -> Parquet.

Shards (:mod:`unireason_lib.dataset.shards`) are made by any number of processes in any order, and a
build that is killed at any moment continues with those that are missing. What needs to know *all*
studies comes last, in one process and in their order, so that the rows do not depend on who made
which shard (:func:`finalise`): ids that occur twice, the split by patient, the final files::

    out/.build/                    settings, answer priors and shards
    out/sft/ rl/ images/ refused/  the configurations: load_dataset(out, "sft")
    out/README.md manifest.json    the card, and last the manifest: a set that has one is finished
"""

import hashlib
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from datasets import Features
from tqdm import tqdm

from unireason_lib import __version__
from unireason_lib.dataset import schema, shards, splits
from unireason_lib.dataset.hub import CONFIGS, dataset_card
from unireason_lib.dataset.questions import FAMILIES, AnswerPrior
from unireason_lib.dataset.shards import Run
from unireason_lib.dataset.sources.base import Entry, SourceSpec
from unireason_lib.dataset.splits import FRACTIONS, SPLITS
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import QWEN_FRAME, ProcessorFrame, Window
from unireason_lib.io import differences, disk_error, locked, read_json, write_json, write_whole

MOST_LISTED = 100
"""How many studies with warnings a manifest lists; beyond, it only counts."""


class BuildStopped(DatasetError):
    """The build was interrupted; running the same command again resumes it."""


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides the rows of a data set."""

    sources: tuple[SourceSpec, ...]
    limit: int | None = None  # studies of each source, at most
    families: tuple[str, ...] | None = None  # of questions; None: all
    per_family: int = 1  # questions of a study and family
    # From how many studies of each source, the first ones, the answer prior is learnt; 0 keeps all
    # questions, also those that can be answered without looking.
    prior_studies: int = 2000
    size: tuple[int, int, int] | None = None  # as for a view: None is the paper's size,
    window: Window | None = None  # and each study's own window
    frame: ProcessorFrame = QWEN_FRAME  # the processor for which boxes are written
    seed: int = 0  # of questions, templates and the split
    writer: Literal["template", "llm"] = "template"
    writer_options: Mapping[str, Any] = field(default_factory=dict)  # arguments of the writer
    fractions: Mapping[str, float] = field(default_factory=lambda: dict(FRACTIONS))  # of patients
    # Whether images are stored: where the licence of the source allows; all, for my own use; never.
    images: Literal["licensed", "all", "none"] = "licensed"

    def __post_init__(self) -> None:
        splits.check_fractions(self.fractions)
        rules = {
            "sources": (len(self.sources) > 0, "at least one, as --source phantom"),
            "families": ({*(self.families or ())} <= {*FAMILIES}, f"some of {', '.join(FAMILIES)}"),
            "images": (self.images in ("licensed", "all", "none"), "licensed, all or none"),
            "limit": (self.limit is None or self.limit > 0, "1 or more"),
            "per_family": (self.per_family > 0, "1 or more"),
            "prior_studies": (self.prior_studies >= 0, "0 or more"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise DatasetError(name, expected, repr(getattr(self, name)), "correct it")

    def public(self) -> dict[str, Any]:
        """The settings in plain values, without places on this machine. Of a language model only
        what decides its answers: a budget, prices or limits may change when a build is resumed."""
        values = asdict(self) | {"frame": self.frame.to_dict()}
        values["sources"] = [str(replace(spec, path=None)) for spec in self.sources]
        options = values.pop("writer_options")
        options = shards.make_writer(self).settings() if self.writer == "llm" else options
        values |= {f"writer {name}": value for name, value in options.items()}
        return json.loads(json.dumps(values))


@dataclass(frozen=True)
class BuildReport:
    """How a build went."""

    folder: Path
    manifest: Mapping[str, Any]
    seconds: float
    built: int  # studies worked off in this run

    @property
    def unreadable(self) -> int:
        """Number of studies that could not be read."""
        return self.manifest["refused"].get("unreadable", 0)


def build(
    config: BuildConfig,
    out: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    progress: bool = False,
    wait: bool = False,
    override: bool = False,
) -> BuildReport:
    """Build a data set in ``out``, or resume one of the same settings there.

    ``workers``: processes; ``ray``: address of a cluster that has the folder, or ``"local"``; the
    rows do not depend on them, and an LLM writer works in this one. ``wait``: for another process
    that builds there. ``override``: continue although settings, sources or version differ.

    Raises:
        DatasetError: Another folder, settings, sources or version; a full disk; a killed worker.
        BuildStopped, BudgetSpent, EndpointError: Cannot continue; all that is finished is kept."""
    started, built = time.perf_counter(), 0
    folder = Path(out).resolve()
    manifest_path, run = folder / "manifest.json", Run(config, folder / ".build")
    for source in shards.open_run(run).sources:
        path = source.path and Path(source.path).resolve()
        if path and folder.is_relative_to(path):
            raise DatasetError(folder, "one outside of the source", path, "choose another --out")
    if folder.is_dir() and not run.work.is_dir() and any(folder.iterdir()):
        raise DatasetError(folder, "an empty folder or a build", "other files", "choose another")
    if config.writer == "llm":
        workers, ray = 1, None
    with locked(run.work / "lock", folder.name, wait):
        changes = _changes(run)
        finished = manifest_path.exists()
        if changes and (finished or not override):
            do = "undo the change, or build elsewhere"
            do += "" if finished else ", or continue all the same with --override"
            raise DatasetError(folder, "the settings it was begun with", "; ".join(changes), do)
        if not finished:
            for leftover in run.work.glob("shards/*/*.partial"):
                shutil.rmtree(leftover)
            try:
                built = _make_shards(run, workers, ray, progress)
                finalise(run, folder, changes)
            except KeyboardInterrupt:
                text = "stopped; run the same command again to resume"
                raise BuildStopped(text) from None
        shutil.rmtree(run.work / "shards", ignore_errors=True)
        return BuildReport(folder, read_json(manifest_path), time.perf_counter() - started, built)


def _changes(run: Run) -> list[str]:
    """Write down what a build is made from (settings, version, lists of studies), or say what
    differs from what is written there."""
    now, path = {**run.config.public(), "version": __version__}, run.work / "settings.json"
    now["indexes"] = []
    for source, index in zip(*shards.open_run(run)[:2], strict=True):
        about = repr(source.about).encode() if source.about else b""
        digest = hashlib.blake2b(about, digest_size=16)
        for entry in index:
            digest.update(repr((entry.key, entry.patient, entry.split, *entry.labels)).encode())
        now["indexes"].append(f"{len(index)} studies, {digest.hexdigest()}")
    if not path.exists():
        write_json(path, now)
    return differences(read_json(path), now)


def _make_shards(run: Run, workers: int, ray: str | None, progress: bool) -> int:
    """Learn the answer priors, then make the shards that are missing; returns how many studies."""
    indexes = shards.open_run(run).indexes
    total = sum(map(len, indexes))
    left = sum(len(shard.entries) for shard in run.shards() if not shard.folder.is_dir())
    if left:
        missing = (shard for shard in run.shards() if not shard.folder.is_dir())
        bar = tqdm(total=total, initial=total - left, disable=not progress)
        with shards.executor(min(workers, left), ray) as execute, bar:
            _learn_priors(run, indexes, execute)
            for folder in execute(shards.process_shard, missing):
                bar.update(pq.read_metadata(folder / "studies.parquet").num_rows)
    return left


def _learn_priors(run: Run, indexes: Sequence[Sequence[Entry]], execute: shards.Execute) -> None:
    for source, index in enumerate(indexes):
        first = list(islice(index, run.config.prior_studies))
        if first and not run.prior_path(source).exists():
            parts = execute(shards.learn_shard, run.shards([*[()] * source, first]))
            AnswerPrior.merged(parts).save(run.prior_path(source))


def finalise(run: Run, folder: Path, overridden: Sequence[str] = ()) -> None:
    """Write the configurations, the card and last the manifest of a run whose shards are all there;
    ``overridden`` are differences in settings that were accepted."""
    final, opened = run.work / "final", shards.open_run(run)
    folders = [shard.folder for shard in run.shards()]
    shutil.rmtree(final, ignore_errors=True)
    parts = [pq.read_table(part / "studies.parquet").to_pandas() for part in folders]
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    studies = pd.concat(parts, ignore_index=True)
    about = _assign(studies, run)

    def tables(name: str) -> Iterator[pa.Table]:
        """The tables of all shards, with the splits filled in."""
        for part, start in zip(folders, starts, strict=True):
            table = pq.read_table(part / f"{name}.parquet", use_threads=False)  # small
            split = studies["split"].to_numpy()[table["study_number"].to_numpy() + start]
            table = table.drop_columns(["split"] if "split" in table.column_names else [])
            yield table.append_column("split", pa.array(split)).filter(pa.array(split != ""))

    def refused() -> Iterator[pa.Table]:
        """What shards refused, and the studies whose id an earlier one has."""
        yield from (pq.read_table(part / "refused.parquet") for part in folders)
        again = studies[studies["split"] == ""]
        details = [f"{number} records" for number in again["records"]]
        known = {"reason": "duplicate id", "detail": details, "record": "", "text": ""}
        rows = again.assign(study=again["id"], **known)[list(schema.REFUSED_FEATURES)]
        yield pa.Table.from_pandas(rows, preserve_index=False)

    try:
        _write(final / "sft", schema.SFT_FEATURES, tables("records"), part="split")
        written = map(pq.ParquetFile, sorted((final / "sft").glob("*.parquet")))
        batches = (batch for file in written for batch in file.iter_batches(2000))
        rl = (schema.rl_table(pa.Table.from_batches([batch])) for batch in batches)
        _write(final / "rl", schema.RL_FEATURES, rl, part="split")
        _write(final / "images", schema.IMAGE_FEATURES, tables("images"), most=5_000)
        _write(final / "refused", schema.REFUSED_FEATURES, refused())
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
            for source, index in zip(opened.sources, opened.indexes, strict=True)
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
    first = studies[~studies["id"].duplicated()]
    salt = str(run.config.seed)
    keys = np.array([splits.patient_key(name, salt) for name in first["patient"]], np.uint64)
    own = np.array([SPLITS.index(s) if s in SPLITS else -1 for s in first["split"]], np.int8)
    perceptual = np.frombuffer(b"".join(first["perceptual_hash"]), np.uint8)
    voxels = np.frombuffer(b"".join(first["voxel_hash"]), np.uint64)[::2]
    hashes = perceptual.reshape(-1, splits.HASH_BYTES), voxels
    assigned = splits.assign_splits(keys, *hashes, own, run.config.fractions)
    names = np.array(SPLITS, object)[assigned.splits]
    studies["split"] = pd.Series(names, first.index).reindex(studies.index, fill_value="")
    patients = {split: len(np.unique(keys[names == split])) for split in SPLITS}
    total = sum(patients.values())
    alike = total - assigned.groups
    for split, fraction in run.config.fractions.items():
        if fraction and total and not patients[split]:
            what = f"none of {total} patients was drawn for the split {split}"
            why = f" ({alike} look like another one, and share its split)" if alike else ""
            warnings.warn(f"{what}{why}: choose other fractions or another seed", stacklevel=2)
    warned = studies[studies["warnings"].map(len) > 0][["id", "warnings"]]
    rows = zip(names, first["digest"], strict=True)
    content = b"".join(sorted(split.encode() + digest for split, digest in rows))
    return {
        "content_hash": hashlib.blake2b(content, digest_size=16).hexdigest(),
        "studies": {
            **{"read": len(first), "patients": total, "patients_by_split": patients},
            "near_duplicates": alike,
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
    folder: Path, features: Features, tables: Iterable[pa.Table], most: int = 50_000, part: str = ""
) -> None:
    """Write tables as ``part-0.parquet`` ... of at most so many rows, in order; none for no rows.
    With the name of a column the files are named after its values: ``train-0.parquet`` ..."""
    schema = features.arrow_schema
    written = schema.append(pa.field("file", pa.string()))

    def batches() -> Iterator[pa.RecordBatch]:
        for table in tables:
            names = table[part] if part else pa.repeat("part", len(table))
            chosen = table.select(schema.names).cast(schema).append_column("file", names)
            yield from (batch for batch in chosen.cast(written).to_batches() if len(batch))

    pads.write_dataset(
        batches(),
        folder,
        basename_template="{i}.parquet",
        schema=written,
        partitioning=pads.FilenamePartitioning(pa.schema([written.field("file")])),
        format="parquet",
        file_options=pads.ParquetFileFormat().make_write_options(compression="zstd"),
        use_threads=False,
        preserve_order=True,  # without it rows change places, in one thread as well
        max_rows_per_file=most,
        **{"min_rows_per_group": most // 50, "max_rows_per_group": most // 50},
        existing_data_behavior="overwrite_or_ignore",
    )
    for path in folder.glob("*_*.parquet"):
        path.rename(path.with_name(path.name.replace("_", "-")))


class Estimate(NamedTuple):
    """What a build would make, from a few studies that were asked about."""

    studies: int
    sampled: int
    records: int
    writer_cost: float | None  # the most that a language model can cost


def dry_run(config: BuildConfig, *, sample: int = 32) -> Estimate:
    """Estimate a build from about ``sample`` studies; nothing is written, no model is asked."""
    with tempfile.TemporaryDirectory() as aside:
        run = Run(config, Path(aside))
        indexes = shards.open_run(run).indexes
        total = max(1, sum(map(len, indexes)))
        few = [list(index)[:: max(1, round(total / sample))] for index in indexes]
        _learn_priors(run, few, map)
        drafts = [draft for shard in run.shards(few) for draft in shards.read_shard(shard)[0]]
    items = [(question, draft.view) for draft in drafts for question in draft.questions]
    sampled, writer = sum(map(len, few)), shards.make_writer(config)
    scale = total / max(1, sampled)
    cost = scale * writer.most_for(items) if config.writer == "llm" else None
    return Estimate(total, sampled, round(scale * len(items)), cost)


FIRST_3D = 500_000
"""First phantom patient who is shown as a volume: nobody is both a slice and a volume."""


def phantom_set(
    folder: str | Path,
    patients_2d: int,
    patients_3d: int,
    frame: ProcessorFrame,
    settings: Any,
    *,
    first: int = 0,
    workers: int = 1,
) -> BuildReport:
    """The data set of the laptop experiment; runs that want the same one at once build it once. One
    slice is shown of ``patients_2d`` patients, from ``first`` on, and the volume of ``patients_3d``
    others, 500,000 further on. ``frame`` is of the processor that will read it; ``settings`` has
    ``shape``, ``per_family`` and ``prior_studies``; the rest as for :func:`build`."""
    flat = {"dimension": "2d", "start": first, "count": patients_2d}
    deep = {"dimension": "3d", "start": FIRST_3D + first, "count": patients_3d}
    fewest = min((count for count in (patients_2d, patients_3d) if count), default=1)
    held_out = max(0.02, min(1 / 3, 6 / fewest))  # at least about six patients of either kind
    config = BuildConfig(
        sources=(SourceSpec("phantom", None, flat), SourceSpec("phantom", None, deep)),
        size=tuple(settings.shape),
        frame=frame,
        per_family=settings.per_family,
        prior_studies=settings.prior_studies,
        images="all",
        fractions={"train": 1 - 2 * held_out, "val": held_out, "test": held_out},
    )
    return build(config, folder, workers=workers, wait=True)
