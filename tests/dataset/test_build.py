"""The build: the same rows however it is run, killed or resumed; nothing bad passes or vanishes."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Value

from tests.dataset.sources import layouts
from unireason_lib.dataset import build as building
from unireason_lib.dataset import shards
from unireason_lib.dataset.annotator import RationaleRefused
from unireason_lib.dataset.build import BuildConfig, SourceSpec, build, dry_run, phantom_set
from unireason_lib.dataset.checks import problems_of
from unireason_lib.dataset.hub import ImageTable, load_set, record_images
from unireason_lib.dataset.rationales import Point, Rationale, TemplateWriter
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.sources.base import Entry, Source
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice
from unireason_lib.errors import DatasetError, ScanError, ScanWarning
from unireason_lib.evaluation import open_benchmark
from unireason_lib.imaging import Volume, load_volume

from .conftest import FRAME

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes, kills processes")


def settings(*sources, **changes):
    """Settings of a small build; arguments replace fields."""
    usual = ("phantom:dimension=2d,count=14", "phantom:count=4,start=900")
    values = {"size": (8, 64, 64), "frame": FRAME, "prior_studies": 4, "images": "all"}
    return BuildConfig(tuple(map(SourceSpec.parse, sources or usual)), **{**values, **changes})


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """One finished build."""
    return build(settings(), tmp_path_factory.mktemp("reference") / "set")


def records_of(folder, form="sft"):
    return [Record.from_row(row) for part in load_set(folder, form).values() for row in part]


def refused_of(report):
    rows = load_set(report.folder, "refused", "train").to_list()
    assert Counter(row["reason"] for row in rows) == report.manifest["refused"]
    return rows


def same_rows(folder, report):
    """Whether two sets have the same rows: by their hash, and really."""
    names = sorted(p.relative_to(folder) for p in folder.glob("*/*.parquet"))
    assert names == sorted(p.relative_to(report.folder) for p in report.folder.glob("*/*.parquet"))
    for name in names:
        assert pq.read_table(folder / name).equals(pq.read_table(report.folder / name)), name
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["content_hash"] == report.manifest["content_hash"]


@dataclass(frozen=True)
class Listed(Source):
    """A source over studies, or over exceptions that reading them raises."""

    studies: tuple
    redistributable: bool = True
    path: str | None = None
    name = registered = spec = "listed"
    license, modality = "none", "CT"

    def index(self):
        about = [(getattr(s, "patient", "?"), getattr(s, "split", None)) for s in self.studies]
        return [Entry(f"{k:03d}", *names) for k, names in enumerate(about)]

    def study(self, key):
        if isinstance(study := self.studies[int(key)], Exception):
            raise study
        return replace(study, key=key)

    def scan(self, key):
        return self.study(key).scan


@pytest.fixture
def build_from(monkeypatch, tmp_path):
    """Build from the given studies, in this process."""

    def run(*studies, out="set", source=Listed, **changes):
        monkeypatch.setattr(shards, "open_source", lambda *_, **__: source(studies))
        changes = {"prior_studies": 0, "images": "licensed", **changes}
        return build(settings("listed", **changes), tmp_path / out)

    return run


# --- what comes out ----------------------------------------------------------------------------


def test_a_set_for_a_model_that_writes_thousandths(build_from):
    """Boxes of texts, options and evidence, lengths in rationales and the words for the unit; boxes
    lie where they lie in the set for a model that writes pixels."""
    studies, sets = (phantom_slice(0), phantom(900), phantom_slice(1)), []
    for scale, unit, other in ((None, "pixels", "thousandths"), (1000, "thousandths", "pixels")):
        made = build_from(*studies, out=unit, frame=replace(FRAME, scale=scale), per_family=2)
        card = (made.folder / "README.md").read_text(encoding="utf-8")
        assert unit in card and other not in card and not made.manifest["refused"]
        sets.append({one.id: one for one in records_of(made.folder)})
        text = " ".join(f"{one.user_text} {one.reply}" for one in sets[-1].values())
        assert f"in {unit}" in text and other not in text
    pairs = [(sets[0].get(name), record) for name, record in sets[1].items()]
    # two centres on one pixel are apart in thousandths, so some questions differ
    same = [(a, b) for a, b in pairs if a and (a.kind, a.names) == (b.kind, b.names)]
    assert len(same) > 0.7 * len(pairs) and {b.frame.scale for _, b in pairs} == {1000}
    for first, second in same:
        assert first.answer == second.answer
        for pixels, box in zip(first.boxes, second.boxes, strict=True):
            back = second.frame.pixels(box, *second.image_size)
            assert np.abs(np.subtract(back.as_tuple(), pixels.as_tuple())).max() <= 1


def test_records_find_their_images_and_the_manifest_says_what_is_there(reference):
    records, table = records_of(reference.folder), ImageTable(reference.folder)
    manifest = reference.manifest
    for record in records:
        assert problems_of(record) == []
        user, assistant = record.load(record_images(record, table))
        crops = [part["image"] for part in assistant["content"] if part["type"] == "image"]
        assert len(crops) >= len(record.boxes) and all(min(crop.size) >= 4 for crop in crops)
        assert len(user["content"]) == len(record.image_ids) + 1
    for name in ("split", "source", "dimension", "family", "kind", "answer"):
        assert manifest["counts"][name] == Counter(getattr(r, name) for r in records), name
    assert manifest["studies"]["read"] == 18 and manifest["records"] == len(records) > 30
    assert len(records_of(reference.folder, "rl")) == len(records)


# --- the same rows -----------------------------------------------------------------------------


COMMAND = """
import pickle, resource, sys
from unireason_lib.dataset.build import build
config, folder, limit, how = pickle.loads(bytes.fromhex(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
build(config, folder, **how)
"""


@pytest.fixture
def start(tmp_path):
    """Start the reference build in a process of its own, which writes no larger files."""

    def begin(limit=-1, **how):
        words = pickle.dumps((settings(), tmp_path / "set", limit, how)).hex()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", COMMAND, words], **pipes)

    return begin


ENDS = {
    "killed": (signal.SIGKILL, -signal.SIGKILL, ""),
    "interrupted": (signal.SIGINT, 1, "run the same command again"),
    "worker killed": (signal.SIGKILL, 1, "one that was killed"),
}


@linux
@pytest.mark.parametrize("end", ENDS)
def test_stopped_in_any_way_the_same_command_ends_with_the_same_rows(
    reference, start, tmp_path, end
):
    folder, (sent, code, words) = tmp_path / "set", ENDS[end]
    process = start(workers=2)
    until = time.monotonic() + 200
    while len([*folder.glob(".build/shards/*/*[0-9a-f]")]) < 3 and time.monotonic() < until:
        time.sleep(0.002)
    relatives = psutil.Process(process.pid).children(recursive=True)
    workers = [one.pid for one in relatives if not one.children()]  # not their server
    os.kill(max(workers) if end == "worker killed" else process.pid, sent)
    complaint = process.communicate(timeout=200)[1]
    assert process.returncode == code and words in complaint
    assert not psutil.wait_procs(relatives, timeout=10)[1], "workers live on"
    assert build(settings(), folder).built < 18 and same_rows(folder, reference)
    assert not list(folder.rglob("*.partial"))


def test_rows_are_written_in_order(tmp_path):
    """A fault on busy machines: one thread alone does not keep the order of the tables."""
    tables = [pa.table({"id": pa.array([f"{k:04d}"])}) for k in range(1000)]
    for k in range(3):
        building._write(tmp_path / str(k), Features({"id": Value("string")}), iter(tables))
        ids = pq.read_table(tmp_path / f"{k}/part-0.parquet")["id"].to_pylist()
        assert ids == sorted(ids) and len(ids) == 1000


def test_killed_before_the_manifest_the_same_command_ends_with_the_same_rows(tmp_path, monkeypatch):
    config = settings("phantom:dimension=2d,count=3", prior_studies=0)
    whole = build(config, tmp_path / "whole")
    for name in ("write_whole", "_write", "finalise"):
        folder = tmp_path / name
        with monkeypatch.context() as patch, pytest.raises(TypeError, match="not callable"):
            patch.setattr(building, name, None)  # ends there
            build(config, folder)
        assert not (folder / "manifest.json").exists()
        assert build(config, folder).built == 0 and same_rows(folder, whole)


@linux
def test_a_full_disk_stops_it_with_a_message(reference, start, tmp_path):
    folder = tmp_path / "set"
    _, complaint = start(limit=40_000).communicate(timeout=200)
    assert "space on the disk" in complaint and "run the same command again" in complaint
    assert not list(folder.rglob("*.partial")) and not (folder / "manifest.json").exists()
    build(settings(), folder)
    assert same_rows(folder, reference)


def test_ray_writes_the_same_rows(reference, start, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where none is: "local" must not look there
    process = start(workers=2, ray="local")
    _, complaint = process.communicate(timeout=200)
    assert process.returncode == 0, complaint
    assert same_rows(tmp_path / "set", reference)


# --- what is refused ---------------------------------------------------------------------------


def test_unreadable_studies_are_counted_named_and_skipped(build_from, tmp_path):
    root = tmp_path / "data"
    scans = partial(load_volume, root / "missing.nii.gz"), Volume(np.zeros((8, 64, 64)), LPS)
    missing, flat = (
        replace(phantom(2), id=name, scan_source=scan, window="percentile")
        for name, scan in zip(("no-file", "flat"), scans, strict=True)
    )
    studies = (phantom(1), missing, OSError("bad sector"), ScanError("torn"), flat)
    report = build_from(*studies, source=partial(Listed, path=str(root)))
    assert report.unreadable == 4 and report.manifest["studies"]["read"] == 1
    details = {row["study"]: row["detail"] for row in refused_of(report)}
    assert set(details) == {"no-file", "listed[002]", "listed[003]", "flat"}
    assert details["no-file"].startswith("missing.nii.gz: ")  # and no path of this machine
    assert "bad sector" in details["listed[002]"] and str(root) not in str(details)
    assert {record.study for record in records_of(report.folder)} == {"phantom-000001"}


def test_a_scan_that_breaks_while_it_is_read_costs_one_study_report_1(tmp_path):
    """With an answer prior, too, which reads scans before records are made."""
    root = layouts.make_folder(tmp_path / "scans")
    torn, holed = (root / f"images/{case}.nii.gz" for case in ("anna-visit1", "ben-visit1"))
    torn.write_bytes(torn.read_bytes()[:-200])
    values = layouts.ramp(*layouts.SHAPE).astype(np.float32)
    values[0, 0, 0] = np.nan
    layouts.save_nifti(holed, values)
    report = build(settings(f"folder:{root}", prior_studies=10), tmp_path / "set")
    assert report.unreadable == 2 and report.manifest["studies"]["read"] == 1
    details = {row["study"]: row["detail"] for row in refused_of(report)}
    assert "NaN" in details["scans-ben-visit1"] and len(details) == 2


def test_a_split_that_stays_empty_is_warned_of(tmp_path):
    config = settings("phantom:dimension=2d,count=3", fractions={"train": 0.98, "test": 0.02})
    with pytest.warns(match="none of 3 patients was drawn for the split test: choose other"):
        folder = build(config, tmp_path / "set").folder
    with pytest.raises(DatasetError, match="none in 'test'"):
        open_benchmark(str(folder))


def test_second_ids_are_refused_look_alikes_and_own_splits_kept_and_warnings_told(build_from):
    def loud():
        warnings.warn("loud: left and right are uncertain", ScanWarning, stacklevel=1)
        return study.scan

    study = phantom(1)
    look_alikes = [replace(study, id=k, patient=k, scan_source=loud) for k in ("anna", "dora")]
    other_id = replace(phantom(3), id=study.id, patient="other")
    report = build_from(*look_alikes, study, replace(other_id), replace(phantom(2), split="val"))
    assert [row["reason"] for row in refused_of(report)] == ["duplicate id"]
    assert report.manifest["images"] == 4 * 8
    splits = {record.study: record.split for record in records_of(report.folder)}
    assert splits.pop("phantom-000002") == "val"
    assert len(splits) == 3 and len({*splits.values()}) == 1
    assert report.manifest["studies"]["near_duplicates"] == 2
    assert report.manifest["warnings"]["listed"]["anna"] == ["loud: left and right are uncertain"]
    assert set(load_set(report.folder)) == {*splits.values(), "val"}


def test_nearly_empty_scans_under_two_names_get_one_split_report_17(build_from):
    """Their perceptual hashes are all zeros; those of their voxels differ unless they are equal."""
    scans = np.zeros((3, 8, 64, 64), np.int16)
    scans[:, 4, 30:34, 30:34] = np.reshape([100, 101, 100], (3, 1, 1))
    scans = *scans[:2], scans[2].astype(np.float32)  # whatever their number type
    studies = [
        replace(phantom(1), id=name, patient=name, scan_source=Volume(scan, LPS))
        for name, scan in zip(("anna", "ben", "dora"), scans, strict=True)
    ]
    report = build_from(*studies)
    assert report.manifest["studies"]["read"] == 3
    assert report.manifest["studies"]["near_duplicates"] == 1


def test_images_that_may_not_be_passed_on_are_not_stored(build_from):
    closed = partial(Listed, redistributable=False)
    report = build_from(phantom(1), source=closed)
    assert report.manifest["images"] == 0 and not (report.folder / "images").exists()
    for row in load_set(report.folder, split=next(iter(load_set(report.folder)))):
        assert row["image_ids"] == [] and "<image>" not in row["messages"][0]["content"]
        assert row["scan"] == {"spec": "listed", "key": "000"}
        assert len(Record.from_row(row).image_ids) == 8
    mine = build_from(phantom(1), source=closed, images="all", out="mine")
    assert mine.manifest["images"] == 8


class Liar(TemplateWriter):
    """Moves the boxes of one family, and does not write about another."""

    def write(self, question, view):
        if question.family == "size comparison":
            raise RationaleRefused(question.id, "a usable rationale", "none", "leave it out")
        parts = [*super().write(question, view).parts]
        for k, part in enumerate(parts):
            if isinstance(part, Point) and question.family == "lesion analysis":
                parts[k] = replace(part, box=part.box.scale(1, 0.5).round(True))
        return Rationale(tuple(parts))


def test_records_that_fail_a_check_are_kept_apart_with_the_reason(build_from, monkeypatch):
    monkeypatch.setattr(shards, "TemplateWriter", Liar)
    report = build_from(*map(phantom_slice, range(12)))
    rows = refused_of(report)
    lies = [row for row in rows if row["reason"] == "untrue box"]
    assert len(lies) >= 4 and all("lesion-analysis" in r["record"] and r["text"] for r in lies)
    assert {row["reason"] for row in rows} == {"untrue box", "unwritable"}
    assert not {"lesion analysis", "size comparison"} & set(report.manifest["counts"]["family"])


# --- going on, or not --------------------------------------------------------------------------


def test_b17_other_settings_are_refused_unless_overridden(tmp_path, monkeypatch):
    source, usual = "phantom:count=2", {"prior_studies": 0}
    usual["families"] = ("existence verification",)
    first = build(settings(source, **usual), tmp_path / "set")
    assert build(settings(source, **usual), tmp_path / "set").built == 0  # a finished one is left
    with monkeypatch.context() as patch, pytest.raises(DatasetError, match="version was"):
        patch.setattr(building, "__version__", "99")  # fault B17: any comment of the source did so
        build(settings(source, **usual), tmp_path / "set")
    with pytest.raises(DatasetError, match="indexes was"):
        build(settings("phantom:count=3", **usual), tmp_path / "set")
    for changes in ({"seed": 1}, {"size": (8, 32, 32)}):
        config, (name,) = settings(source, **usual, **changes), changes
        with pytest.raises(DatasetError, match=f"{name} was"):
            build(config, tmp_path / "set")
        with pytest.raises(DatasetError, match=r"undo the change, or build elsewhere\.$"):
            build(config, tmp_path / "set", override=True)  # nothing is done to a finished one
    assert json.loads((tmp_path / "set/manifest.json").read_text()) == first.manifest
    for wrong in ({"limit": 0}, {"fractions": {"train": 0.3}}, {"families": ("poetry",)}):
        with pytest.raises(DatasetError):
            settings(**wrong)
    (tmp_path / "set/manifest.json").unlink()  # as if it had not been finished
    again = build(config, tmp_path / "set", override=True).manifest
    assert "size was" in again["overridden"][0] and again["settings"] == config.public()


@pytest.mark.filterwarnings("ignore::unireason_lib.errors.ScanWarning")
@pytest.mark.parametrize(
    "name, make, file",
    [
        ("folder", layouts.make_folder, "names.json"),
        ("decathlon", layouts.make_decathlon, "dataset.json"),
        ("totalsegmentator", layouts.make_multilabel, "labels.json"),
    ],
)
def test_other_names_of_the_labels_are_noticed_report_2(tmp_path, name, make, file):
    root = make(tmp_path / "data")
    names = f",names={file}" if name == "totalsegmentator" else ""
    config = settings(f"{name}:{root}{names}", prior_studies=0, images="none")
    build(config, tmp_path / "set")
    text = (root / file).read_text()
    (root / file).write_text(text.replace("liver", "heart").replace("Liver", "Heart"))
    with pytest.raises(DatasetError, match="indexes was"):
        build(config, tmp_path / "set")


@pytest.mark.filterwarnings("ignore::unireason_lib.errors.ScanWarning")
@pytest.mark.parametrize(
    "name, make", [("folder", layouts.make_folder), ("decathlon", layouts.make_decathlon)]
)
def test_b15_two_folders_of_one_name_have_two_names_and_nothing_is_written_into_a_source(
    tmp_path, name, make
):
    """Fault B15: they shared ids, and the second was refused."""
    folders = [make(tmp_path / k / "scans") for k in "ab"]
    config = settings(*(f"{name}:{folder}" for folder in folders), prior_studies=0, images="none")
    build(config, tmp_path / "set")
    records, own = records_of(tmp_path / "set"), "scans" if name == "folder" else name
    assert {r.source for r in records} == {own, f"{own}-2"}
    again = record_images(records[-1], {}, {own: folders[0], f"{own}-2": folders[1]})
    assert again and not json.loads((tmp_path / "set/manifest.json").read_text())["refused"]
    with pytest.raises(DatasetError, match="outside of the source"):
        build(config, folders[0] / "set")
    with pytest.raises(DatasetError, match="other files"):
        build(config, tmp_path)


def test_tasks_of_the_decathlon_share_its_name(tmp_path):
    tasks = [layouts.make_decathlon(tmp_path / task, task) for task in ("Task03", "Task07")]
    report = build(settings(*(f"decathlon:{task}" for task in tasks)), tmp_path / "set")
    assert [source["name"] for source in report.manifest["sources"]] == ["decathlon"] * 2
    assert report.manifest["studies"]["read"] == 4 and not report.manifest["refused"]


# --- before and beside -------------------------------------------------------------------------


def test_a_dry_run_comes_near_and_writes_nothing(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = reference.manifest["records"]
    guess = dry_run(settings(), sample=18)
    assert tuple(guess) == (18, 18, whole, None)
    part = dry_run(settings(), sample=9)
    assert part.sampled == 9 and 0.5 < part.records / whole < 2 and not [*tmp_path.iterdir()]


def test_the_laptop_set_is_built_once_and_nobody_is_both_a_slice_and_a_volume(tmp_path):
    profile = SimpleNamespace(shape=(8, 64, 64), per_family=1, prior_studies=10)
    made = phantom_set(tmp_path / "set", 18, 18, FRAME, profile)
    assert made.built == 36 and phantom_set(tmp_path / "set", 18, 18, FRAME, profile).built == 0
    records = records_of(tmp_path / "set")
    patients = {d: {r.patient for r in records if r.dimension == d} for d in ("2d", "3d")}
    assert patients["2d"] and not patients["2d"] & patients["3d"] and building.FIRST_3D > 18
    for split in ("val", "test"):
        assert {r.dimension for r in records if r.split == split} == {"2d", "3d"}
