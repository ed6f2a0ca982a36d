"""The build: the same bytes however it is run, killed or resumed; nothing bad passes, nothing vanishes silently."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from unireason_lib.dataset import build as building
from unireason_lib.dataset.build import BuildConfig, BuildStopped, SourceSpec, build, dry_run, study_records
from unireason_lib.dataset.checks import check_record
from unireason_lib.dataset.ledger import source_state
from unireason_lib.dataset.parquet import (
    ImageStore,
    changed_files,
    pictures_of,
    read_manifest,
    read_records,
    rows,
)
from unireason_lib.dataset.plan import UNIT, plan_units
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice
from unireason_lib.dataset.study import Study
from unireason_lib.errors import DatasetError, ScanError, UniReasonError
from unireason_lib.imaging import Volume

ROOT = Path(building.__file__).parents[2]


@pytest.fixture(scope="session")
def settings(frame):
    """Settings of a small build; arguments replace fields."""

    def make(*sources, **changes):
        specs = tuple(
            map(SourceSpec.parse, sources or ("phantom:dimension=2d,count=14", "phantom:count=4,start=900"))
        )
        values = {"size": (8, 64, 64), "frame": frame, "census": 4, "pictures": "all"}
        return BuildConfig(specs, **{**values, **changes})

    return make


@pytest.fixture(scope="session")
def reference(settings, tmp_path_factory):
    """One finished build, and the bytes of its files."""
    folder = tmp_path_factory.mktemp("reference") / "set"
    return build(settings(), folder), contents(folder)


def contents(folder):
    """Relative path -> bytes of everything but the log of times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "log.jsonl"
    }


@dataclass(frozen=True)
class Listed:
    """A source over studies, or over exceptions that reading them raises."""

    studies: tuple
    name: str = "listed"
    license: str = "none"
    modality: str = "CT"
    redistributable: bool = True

    def __len__(self):
        return len(self.studies)

    def __getitem__(self, k):
        if isinstance(self.studies[k], Exception):
            raise self.studies[k]
        return self.studies[k]

    def __iter__(self):
        return iter(self.studies)


@pytest.fixture
def build_from(monkeypatch, settings, tmp_path):
    """Build from the given studies, in this process."""

    def run(*studies, out="set", source=Listed, **changes):
        monkeypatch.setattr(
            "unireason_lib.dataset.sources.open_source", lambda name, path, **options: source(studies)
        )
        changes = {"census": 0, "pictures": "licensed", **changes}
        return build(settings("listed", **changes), tmp_path / out)

    return run


# --- what comes out -------------------------------------------------------------------------------------------------


def test_every_record_passes_its_checks_and_finds_its_pictures(reference):
    report, _ = reference
    records, store = list(read_records(report.folder)), ImageStore(report.folder)
    assert len(records) == report.manifest["records"] > 50
    for record in records:
        assert check_record(record) is None
        user, assistant = record.load(pictures_of(record, store))
        crops = [part["image"] for part in assistant["content"] if part["type"] == "image"]
        assert len(crops) >= len(record.boxes) and all(min(crop.size) >= 4 for crop in crops)
        assert len(user["content"]) == len(record.image_ids) + 1


def test_pictures_are_those_of_the_scan(reference, view_of):
    report, _ = reference
    store = ImageStore(report.folder)
    for record in read_records(report.folder):
        if record.study in ("phantom-000003-z003", "phantom-000901"):
            break
    study = phantom(901) if record.dimension == "3d" else phantom_slice(3)
    expected = [picture.tobytes() for picture in view_of(study).images()]
    assert [picture.tobytes() for picture in pictures_of(record, store)] == expected


def test_the_manifest_says_what_is_there(reference):
    report, _ = reference
    manifest = read_manifest(report.folder)
    records = list(read_records(report.folder))
    assert manifest == json.loads(json.dumps(report.manifest))
    for name in ("split", "source", "dimension", "family", "answer"):
        assert manifest["counts"][name] == Counter(getattr(record, name) for record in records), name
    assert manifest["pictures"] == len(ImageStore(report.folder)) == 14 + 4 * 8
    assert manifest["studies"]["read"] == 18 and manifest["seed"] == 0
    assert changed_files(report.folder) == []
    assert sum(manifest["counts"]["answer"].values()) == len(records) == len(list(rows(report.folder, "rl")))
    text = (report.folder / "README.md").read_text()
    assert f"{len(records):,} multiple-choice questions" in text and "sft/train-*.parquet" in text


def test_no_patient_is_in_two_splits(reference):
    splits = {}
    for record in read_records(reference[0].folder):
        splits.setdefault(record.patient, set()).add(record.split)
    assert len(splits) == 18 and all(len(found) == 1 for found in splits.values())


def test_a_study_gives_the_same_records_alone_and_in_a_set(settings, tmp_path):
    config = settings("phantom:dimension=2d,count=70", census=0)
    build(config, tmp_path / "set")
    together = {record.id: replace(record, split="") for record in read_records(tmp_path / "set")}
    for seed in (0, 33, 69):
        alone = study_records(config, phantom_slice(seed)).records
        assert alone and all(together[record.id] == record for record in alone)


def test_families_and_numbers_are_as_asked(build_from):
    one = build_from(*map(phantom_slice, range(6)), families=("existence verification",), per_family=2)
    assert set(one.manifest["counts"]["family"]) == {"existence verification"}
    assert 6 < one.manifest["records"] <= 12


# --- the same bytes -------------------------------------------------------------------------------------------------


def test_two_workers_write_the_same_bytes(reference, settings, tmp_path):
    build(settings(), tmp_path / "set", workers=2)
    assert contents(tmp_path / "set") == reference[1]


def test_a_finished_build_is_left_alone(reference, settings):
    report = build(settings(), reference[0].folder)
    assert report.built == 0 and report.manifest == reference[0].manifest
    assert contents(reference[0].folder) == reference[1]


class Killed(BaseException):
    """Ends a build as a kill would: nothing of ours catches it."""


def test_killed_before_any_file_gets_its_name_it_comes_to_the_same_end(monkeypatch, settings, tmp_path):
    config = settings("phantom:dimension=2d,count=3", "phantom:count=1", census=1, rows_per_file=5)
    build(config, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    rename, survived = os.replace, 0
    for moment in range(1000):
        left = moment

        def dying(source, target):
            nonlocal left
            left -= 1
            if left < 0:
                # A killed process leaves its temporary file behind.
                Path(f"{source}.copy.partial").write_bytes(Path(source).read_bytes())
                raise Killed
            rename(source, target)

        folder = tmp_path / f"killed-{moment}"
        monkeypatch.setattr(os, "replace", dying)
        try:
            build(config, folder)
            survived = moment
        except Killed:
            monkeypatch.setattr(os, "replace", rename)
            build(config, folder)
            assert contents(folder) == expected, moment
        if survived:
            break
    assert survived > 20  # so many files were renamed, and it was killed at each of them


COMMAND = """
import sys
from unireason_lib.dataset.build import BuildConfig, build
import json, resource
if __name__ == "__main__":
    config, folder, workers, limit, ray = json.loads(sys.argv[1])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    build(BuildConfig.from_dict(config), folder, workers=workers, ray=ray)
"""


@pytest.fixture
def start(tmp_path):
    """Start a build in a process of its own."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

    def begin(config, folder, workers=1, limit=0, ray=None):
        arguments = json.dumps([config.to_dict(), str(folder), workers, limit, ray])
        return subprocess.Popen(
            [sys.executable, str(script), arguments],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def wait_until(happened, process, seconds=60.0):
    end = time.monotonic() + seconds
    while not happened() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    return found


def done_units(folder):
    return len(list(folder.glob(".build/units/*/*.json")))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    "moment",
    [
        lambda folder: (folder / ".build/ledger.json").exists(),
        lambda folder: done_units(folder) >= 1,
        lambda folder: done_units(folder) >= 9,
        lambda folder: any(folder.glob("images/*")),
    ],
    ids=["at the start", "after one unit", "in the middle", "at the end"],
)
def test_killed_for_real_and_begun_again_it_comes_to_the_same_bytes(
    reference, settings, start, tmp_path, moment
):
    folder = tmp_path / "set"
    process = start(settings(), folder, workers=2)
    wait_until(lambda: moment(folder), process)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "manifest.json").exists(), "it was finished before it could be killed"
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers outlived their parent"
    build(settings(), folder)
    assert contents(folder) == reference[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT")
def test_interrupted_it_stops_soon_and_goes_on(reference, settings, start, tmp_path):
    folder = tmp_path / "set"
    process = start(settings(), folder, workers=2)
    wait_until(lambda: done_units(folder) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1 and "run the same command again" in complaint
    assert 2 <= done_units(folder) < 18 and not list(folder.rglob("*.partial"))
    build(settings(), folder)
    assert contents(folder) == reference[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes")
def test_a_full_disk_stops_it_with_a_message_and_nothing_torn(reference, settings, start, tmp_path):
    folder = tmp_path / "set"
    process = start(settings(), folder, limit=16_000)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "full disk" in complaint and "run the same command again" in complaint
    assert not list(folder.rglob("*.partial")) and not (folder / "manifest.json").exists()
    build(settings(), folder)
    assert contents(folder) == reference[1]


@pytest.fixture
def quiet_ray(monkeypatch):
    """Ray as a test wants it: it finds our code, reports to nobody, and joins no cluster that happens to run."""
    ray = pytest.importorskip("ray", reason="the optional package ray is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where none is: "local" must not look there
    return ray


@pytest.fixture
def ray_cluster(quiet_ray):
    """The address of a cluster of two workers."""
    context = quiet_ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 << 20,
        _node_ip_address="127.0.0.1",
    )
    yield context.address_info["gcs_address"]
    quiet_ray.shutdown()


def test_a_ray_cluster_writes_the_same_bytes(reference, settings, ray_cluster, start, tmp_path):
    _, complaint = start(settings(), tmp_path / "set", workers=2, ray=ray_cluster).communicate(timeout=300)
    assert contents(tmp_path / "set") == reference[1], complaint


def test_a_ray_of_its_own_joins_no_other(reference, settings, quiet_ray, start, tmp_path):
    _, complaint = start(settings(), tmp_path / "set", workers=2, ray="local").communicate(timeout=300)
    assert contents(tmp_path / "set") == reference[1], complaint


# --- what is refused ------------------------------------------------------------------------------------------------


def test_unreadable_studies_are_counted_named_and_skipped(build_from, tmp_path):
    missing = replace(phantom(2), id="no-such-file", scan_source=tmp_path / "missing.nii.gz")
    broken = replace(phantom(3), id="broken", scan_source=partial(np.load, tmp_path / "nothing.npy"))
    flat = replace(
        phantom(4), id="flat", window="percentile", scan_source=Volume(np.zeros((8, 64, 64)), np.eye(4))
    )
    report = build_from(
        phantom(1), missing, OSError("bad sector"), broken, ScanError("case_9: torn"), flat, phantom(5)
    )
    assert report.unreadable == 5 and report.manifest["studies"]["read"] == 2
    lines = [json.loads(line) for line in (report.folder / "refused.jsonl").read_text().splitlines()]
    unreadable = {line["study"]: line["detail"] for line in lines if line["reason"] == "unreadable"}
    assert set(unreadable) == {"no-such-file", "listed[2]", "broken", "listed[4]", "flat"}
    assert "missing.nii.gz" in unreadable["no-such-file"] and "bad sector" in unreadable["listed[2]"]
    assert {record.study for record in read_records(report.folder)} == {"phantom-000001", "phantom-000005"}


def test_a_few_unreadable_files_among_many_cost_only_themselves(build_from):
    good = [replace(phantom_slice(1), id=f"s{k}", patient=f"p{k}") for k in range(200)]
    mixed = [OSError(f"torn {k}") if k in (0, 77, 199) else study for k, study in enumerate(good)]
    options = {"families": ("existence verification",), "near_duplicates": False, "pictures": "none"}
    report, whole = build_from(*mixed, **options), build_from(*good, **options, out="whole")
    assert report.unreadable == 3 and report.manifest["studies"]["read"] == 197
    said = [json.loads(line)["detail"] for line in (report.folder / "refused.jsonl").read_text().splitlines()]
    assert [detail.rpartition(" ")[2] for detail in said] == ["0", "77", "199"]
    readable = [record for record in read_records(whole.folder) if record.study not in ("s0", "s77", "s199")]
    assert list(read_records(report.folder)) == readable


@pytest.fixture
def own_scans(tmp_path):
    """Makes a folder of scans, from (Z, Y, X) label maps by the names of the cases."""
    import nibabel as nib

    def make(cases, names):
        root = tmp_path / "mine"
        for case, labels in cases.items():
            noise = np.random.default_rng(len(case)).normal(0, 20, (8, 32, 32))
            for kind, array in (("images", noise.astype(np.int16)), ("labels", labels)):
                (root / kind).mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(array.T, np.diag([-2, -2, 5, 1])), root / kind / f"{case}.nii.gz")
        (root / "names.json").write_text(json.dumps(names))
        return root

    return make


def test_odd_masks_give_true_records_or_a_reason(own_scans, command, tmp_path):
    def drawn(boxes, shape=(8, 32, 32)):
        labels = np.zeros(shape, np.uint8)
        for value, (x1, y1, z1, x2, y2, z2) in boxes.items():
            labels[z1:z2, y1:y2, x1:x2] = value
        return labels

    liver, spleen, voxel = (3, 4, 1, 16, 20, 6), (20, 6, 2, 29, 18, 7), (8, 10, 3, 9, 11, 4)
    cases = {
        "whole": drawn({1: liver, 2: spleen}),
        "one-voxel": drawn({1: liver, 2: spleen, 3: voxel}),
        "border": drawn({1: (0, 0, 0, 15, 32, 8), 2: (18, 0, 0, 32, 32, 8)}),
        "empty": drawn({}),
        "unknown": drawn({1: liver, 9: spleen}),
        "other-size": drawn({1: liver}, shape=(8, 30, 32)),
        "torn": drawn({1: liver}),
        "unlabelled": drawn({1: liver}),
    }
    names = {"1": "liver", "2": "spleen", "3": "liver tumour"}
    root = own_scans(cases, {"names": names, "redistributable": True})
    os.truncate(root / "labels/torn.nii.gz", 60)
    (root / "labels/unlabelled.nii.gz").unlink()
    folder = tmp_path / "set"
    found = command("--source", f"folder:{root}", "--out", folder, *SMALL, "--per-family", 4)

    refused = [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]
    details = [refusal["detail"] for refusal in refused if refusal["reason"] == "unreadable"]
    reasons = {
        "unknown": "9",
        "other-size": "(8, 30, 32)",
        "torn": "torn.nii.gz",
        "unlabelled": "one label map",
    }
    assert len(details) == len(reasons)
    for case, reason in reasons.items():
        assert any(case in detail and reason in detail for detail in details), (case, details)
    assert found.exit_code == 1 and found.output.count("could not be read") == len(reasons)
    assert str(root) not in found.output

    records, store = list(read_records(folder)), ImageStore(folder)
    for record in records:
        assert check_record(record) is None
        assert record.load(pictures_of(record, store))
    assert {record.study for record in records} - {"mine-empty"} == {
        "mine-whole",
        "mine-one-voxel",
        "mine-border",
    }
    tiny = [record for record in records if record.study == "mine-one-voxel"]
    assert {name for record in tiny for name, _ in record.evidence} == {"liver", "spleen"}
    edges = {box for record in records if record.study == "mine-border" for _, box in record.evidence}
    assert edges == {(0, 0, 0, 30, 64, 8), (36, 0, 0, 64, 64, 8)}  # the frame has twice the pixels


def test_a_second_study_of_one_id_is_refused_with_its_pictures(build_from):
    twin = replace(phantom(2), id="phantom-000001")
    report = build_from(phantom(1), twin, phantom(3))
    alone = build_from(phantom(1), phantom(3), out="alone")
    assert report.manifest["refused"]["duplicate id"] == 1
    assert list(read_records(report.folder)) == list(read_records(alone.folder))
    assert report.manifest["pictures"] == 16 and changed_files(report.folder) == []


def test_one_scan_under_many_names_is_in_one_split(build_from):
    scans = [phantom_slice(seed) for seed in range(12)]
    again = [
        replace(
            study,
            id=f"copy-{k}",
            patient=f"somebody-{k}",
            scan_source=(study.scan * 2.0 + 5).astype(np.float32),
        )
        for k, study in enumerate(scans)
    ]
    fractions = {"train": 0.5, "val": 0.0, "test": 0.5}
    report = build_from(*scans, *again, fractions=fractions)
    split = {record.study: record.split for record in read_records(report.folder)}
    pairs = [(split.get(scan.id), split.get(f"copy-{k}")) for k, scan in enumerate(scans)]
    assert all(one == other for one, other in pairs if one and other) and len(set(pairs)) == 2
    assert report.manifest["studies"]["look_alikes"] == 12 and report.manifest["studies"]["groups"] == 12
    apart = build_from(*scans, *again, fractions=fractions, near_duplicates=False, out="apart")
    split = {record.study: record.split for record in read_records(apart.folder)}
    assert any(split.get(scan.id) != split.get(f"copy-{k}") for k, scan in enumerate(scans))


def test_a_split_of_the_source_is_kept(build_from):
    report = build_from(*(replace(phantom_slice(k), split=("test", "val")[k % 2]) for k in range(8)))
    assert {record.split for record in read_records(report.folder)} == {"test", "val"}


def test_pictures_that_may_not_be_passed_on_are_not_stored(build_from):
    closed = partial(Listed, redistributable=False)
    study = replace(phantom(1), details={"scan": "cases/1/ct.nii.gz"})
    report = build_from(study, source=closed)
    assert report.manifest["pictures"] == 0 and not (report.folder / "images").exists()
    for row in rows(report.folder, "sft"):
        assert row["image_ids"] == [] and "<image>" not in row["messages"][0]["content"]
    for record in read_records(report.folder):
        assert record.lookup == "cases/1/ct.nii.gz" and len(record.image_ids) == 8
    mine = build_from(study, source=closed, pictures="all", out="mine")
    assert mine.manifest["pictures"] == 8
    assert build_from(study, pictures="none", out="none").manifest["pictures"] == 0


def test_shuffled_and_repeated_slices_are_noticed(build_from):
    study = phantom(1, (16, 64, 64))
    order = np.random.default_rng(1).permutation(16)
    shuffled = replace(
        study, id="shuffled", scan_source=Volume(study.scan.array[order], study.scan.affine, "shuffled")
    )
    repeated = replace(
        study, id="repeated", scan_source=Volume(study.scan.array[[0, *range(15)]], study.scan.affine, "r")
    )
    report = build_from(study, shuffled, repeated)
    notices = [json.loads(line) for line in (report.folder / "notices.jsonl").read_text().splitlines()]
    assert [notice["study"] for notice in notices] == ["shuffled", "repeated"]
    assert "shuffled" in notices[0]["detail"] and "repeat" in notices[1]["detail"]
    assert report.manifest["notices"] == 2


def test_records_that_fail_a_check_go_to_a_file(build_from, monkeypatch):
    from unireason_lib.dataset.rationales import Rationale, TemplateWriter

    class Liar(TemplateWriter):
        def write(self, question, view):
            honest = super().write(question, view)
            parts = [
                replace(p, box=p.box.scale(1, 0.5).round(True)) if not isinstance(p, str) else p
                for p in honest.parts
            ]
            return Rationale(tuple(parts)) if question.family == "size comparison" else honest

    monkeypatch.setattr("unireason_lib.dataset.rationales.TemplateWriter", Liar)
    report = build_from(*map(phantom_slice, range(8)))
    refused = [json.loads(line) for line in (report.folder / "refused.jsonl").read_text().splitlines()]
    lies = [line for line in refused if line["reason"] == "untrue box"]
    assert len(lies) == report.manifest["refused"]["untrue box"] >= 4
    assert all("size-comparison" in line["record"] and line["text"] for line in lies)
    assert "size comparison" not in report.manifest["counts"]["family"]


def test_an_error_in_our_own_code_is_not_taken_for_an_unreadable_file(build_from, monkeypatch):
    def broken(*_, **__):
        raise TypeError("a mistake")

    monkeypatch.setattr("unireason_lib.dataset.questions.ask", broken)
    with pytest.raises(TypeError, match="a mistake"):
        build_from(phantom(1))


# --- going on, or not -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"per_family": 2}, "per_family"),
        ({"size": (8, 32, 32)}, "size"),
    ],
)
def test_other_settings_are_refused(settings, tmp_path, changes, said):
    folder = tmp_path / "set"
    build(settings("phantom:count=2", census=0), folder)
    before = contents(folder)
    with pytest.raises(DatasetError, match=said):
        build(settings("phantom:count=2", census=0, **changes), folder)
    assert contents(folder) == before


def test_a_source_that_changed_is_refused(monkeypatch, settings, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.npy").write_bytes(b"1234")
    monkeypatch.setattr(
        "unireason_lib.dataset.sources.open_source", lambda name, path, **options: Listed((phantom(1),))
    )
    config = BuildConfig(
        (SourceSpec("listed", str(data)),), census=0, size=(8, 64, 64), frame=settings().frame
    )
    build(config, tmp_path / "set")
    assert build(config, tmp_path / "set").built == 0
    os.utime(data / "a.npy", ns=(1, 1))
    with pytest.raises(DatasetError, match="source listed has changed"):
        build(config, tmp_path / "set")


def test_another_version_of_the_code_is_refused(monkeypatch, settings, tmp_path):
    build(settings("phantom:count=1", census=0), tmp_path / "set")
    monkeypatch.setattr("unireason_lib.dataset.ledger.code_state", lambda: "other")
    with pytest.raises(DatasetError, match="another version of the code"):
        build(settings("phantom:count=1", census=0), tmp_path / "set")


def test_the_state_of_a_source_sees_every_change(tmp_path):
    (tmp_path / "b/c").mkdir(parents=True)
    for name in ("a", "b/x", "b/c/y"):
        (tmp_path / name).write_text(name)
    spec, source = SourceSpec("listed", str(tmp_path)), Listed(())
    states = [source_state(spec, source)]
    for change in (
        lambda: (tmp_path / "b/x").write_text("longer"),
        lambda: os.utime(tmp_path / "a", ns=(5, 5)),
        lambda: (tmp_path / "b/c/y").rename(tmp_path / "b/c/z"),
        lambda: (tmp_path / "new").write_text(""),
    ):
        change()
        states.append(source_state(spec, source))
    assert len({state["state"] for state in states}) == 5
    assert len({state["files"] for state in states}) == 4  # times are not in what the manifest tells
    assert source_state(spec, source) == states[-1]


def test_other_folders_are_not_written_into(settings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="other files"):
        build(settings(), tmp_path)
    with pytest.raises(DatasetError, match="outside of the source"):
        build(BuildConfig((SourceSpec("phantom", str(tmp_path)),)), tmp_path / "set")
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="folder"):
        build(settings(), tmp_path / "file")


@pytest.mark.skipif(sys.platform == "win32", reason="no lock")
def test_two_builds_in_one_folder_do_not_run_at_once(settings, tmp_path, monkeypatch):
    import unireason_lib.dataset.assembly as assembly

    assemble = assembly.assemble

    def meanwhile(config, folder, *rest):
        with pytest.raises(DatasetError, match="one that is running"):
            build(config, folder)
        return assemble(config, folder, *rest)

    monkeypatch.setattr(assembly, "assemble", meanwhile)
    assert build(settings("phantom:count=1", census=0), tmp_path / "set").built == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no lock")
def test_a_build_that_waits_takes_what_the_other_made(settings, tmp_path, monkeypatch):
    import unireason_lib.dataset.assembly as assembly

    assemble = assembly.assemble
    config, folder = settings("phantom:count=1", census=0), tmp_path / "set"
    with ThreadPoolExecutor(1) as second:

        def meanwhile(*given):
            waiting.append(second.submit(build, config, folder, wait=True))
            with pytest.raises(TimeoutError):
                waiting[0].result(timeout=0.5)
            return assemble(*given)

        waiting = []
        monkeypatch.setattr(assembly, "assemble", meanwhile)
        made = build(config, folder)
        assert waiting[0].result().manifest == made.manifest and waiting[0].result().built == 0 < made.built


# --- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("phantom", SourceSpec("phantom")),
        ("phantom:dimension=2d,count=5", SourceSpec("phantom", None, {"count": 5, "dimension": "2d"})),
        ("folder:/a,b/c", SourceSpec("folder", "/a,b/c")),
        ("folder:C:\\scans,strict=true", SourceSpec("folder", "C:\\scans", {"strict": True})),
    ],
)
def test_sources_are_read_from_words(text, expected):
    assert SourceSpec.parse(text) == expected


@pytest.mark.parametrize("counts", [[0], [1], [40], [300, 0, 7], [100_000, 3]], ids=str)
def test_units_cover_every_study_once(counts):
    units = plan_units(counts)
    found = [(u.source, k) for u in units for k in range(u.start, u.stop)]
    assert found == [(source, k) for source, count in enumerate(counts) for k in range(count)]
    assert [n for u in units for n in range(u.first, u.first + u.stop - u.start)] == list(range(sum(counts)))
    assert all(0 < u.stop - u.start <= UNIT for u in units) and len(units) >= min(sum(counts), 40)


def test_settings_survive_the_way_to_a_worker(settings):
    config = settings(families=("lesion analysis",), window=(-200.0, 300.0), writer_options={"a": 1}, limit=3)
    assert BuildConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "changes",
    [{"limit": 0}, {"per_family": -1}, {"pictures": "some"}, {"fractions": {"train": 0.3}}],
    ids=str,
)
def test_impossible_settings_are_refused(settings, changes):
    with pytest.raises(DatasetError):
        settings(**changes)
    with pytest.raises(DatasetError, match="--source"):
        BuildConfig(())


def test_secrets_do_not_reach_the_ledger(settings, tmp_path, monkeypatch):
    from unireason_lib.dataset.ledger import public_settings

    config = settings(writer_options={"api_key": "sk-secret", "model": "m", "cache": "/caches/mine"})
    assert public_settings(config)["writer_options"] == {"model": "m"}
    assert "/data" not in json.dumps(public_settings(settings("folder:/data")))


# --- before and beside ----------------------------------------------------------------------------------------------


def test_a_dry_run_comes_near_and_writes_nothing(reference, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = dry_run(settings(census=0), sample=18)
    size = sum(entry["bytes"] for entry in reference[0].manifest["files"]) / 1e6
    whole = build(settings(census=0), tmp_path / "whole").manifest
    assert found.studies == 18 and found.records == whole["records"] and found.pictures == 14 + 32
    assert size / 2 < found.megabytes < size * 2 and found.seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    part = dry_run(settings(census=0), sample=8, workers=2)
    assert part.looked_at == 8 and 0.6 < part.records / whole["records"] < 1.6


@dataclass(frozen=True)
class Endless:
    """As many studies as one likes, made of the same few pixels."""

    study: Study
    count: int
    name: str = "endless"
    license: str = "none"
    modality: str = "CT"
    redistributable: bool = True

    def __len__(self):
        return self.count

    def __getitem__(self, k):
        return replace(self.study, id=f"study-{k}", patient=f"patient-{k}")

    def __iter__(self):
        return map(self.__getitem__, range(self.count))


def test_memory_does_not_grow_with_the_number_of_studies(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("unireason_lib.dataset.plan.UNIT", 4)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    study, peaks = phantom_slice(1), {}
    # The first only fills caches. Twice each: Python's table of interned strings doubles now and then, in 8 MB steps.
    for turn, count in enumerate((16, 32, 32, 160, 160)):
        source = Endless(study, count)
        monkeypatch.setattr(
            "unireason_lib.dataset.sources.open_source", lambda name, path, source=source, **options: source
        )
        config = settings("endless", census=0, families=("size comparison",), rows_per_file=50)
        tracemalloc.start()
        build(config, tmp_path / str(turn))
        peak = tracemalloc.get_traced_memory()[1]
        peaks[count] = min(peak, peaks.get(count, peak))
        tracemalloc.stop()
    # all scans look alike, the worst case of the split: 1 KB a study; the pictures of the 160 would be 2 MB
    assert peaks[160] < 1.2 * peaks[32] + 1500 * (160 - 32)


def test_importing_the_room_is_quick_and_leaves_torch_alone():
    code = (
        "import sys, time; t = time.perf_counter(); import unireason_lib.dataset.build, unireason_lib.cli.build; "
        "print('torch' in sys.modules, 'pyarrow' in sys.modules, 'transformers' in sys.modules)"
    )
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.stdout.split() == ["False"] * 3, found.stderr


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command():
    import typer
    from typer.testing import CliRunner

    from unireason_lib.cli.build import build as build_command

    app = typer.Typer()
    app.command()(build_command)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


SMALL = ("--size", "8,64,64", "--frame", "8,2,1024,262144", "--census", "0", "--quiet")


def test_the_command_builds_reports_and_goes_on(command, tmp_path):
    found = command(
        "--source", "phantom", "--out", tmp_path / "set", "--limit", 4, *SMALL, "--pictures", "all"
    )
    assert found.exit_code == 0, found.output
    assert "4 studies of 4 patients" in found.output and "4 studies worked off now" in found.output
    again = command(
        "--source", "phantom", "--out", tmp_path / "set", "--limit", 4, *SMALL, "--pictures", "all"
    )
    assert again.exit_code == 0 and "was finished already" in again.output


def test_the_command_says_so_when_a_study_could_not_be_read(command, tmp_path, monkeypatch):
    listed = Listed((phantom(1), OSError("torn file")))
    monkeypatch.setattr("unireason_lib.dataset.sources.open_source", lambda name, path, **options: listed)
    found = command("--source", "listed", "--out", tmp_path / "set", *SMALL)
    assert found.exit_code == 1
    assert "could not be read: listed[1]" in found.output and "torn file" in found.output


def test_the_command_estimates_without_writing(command, tmp_path):
    found = command(
        "--source", "phantom:count=5000", "--out", tmp_path / "set", *SMALL, "--dry-run", "--workers", 2
    )
    assert found.exit_code == 0 and "5,000 studies" in found.output and "nothing was written" in found.output
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--size", "8,64"), "--size"),
        (("--fractions", "0.5,0.5,0.5"), "add up to 1"),
        (("--writer", "oracle"), "template or llm"),
        (("--families", "poetry"), "poetry"),
        (("--writer-option", "x"), "name=value"),
        (("--frame", "8,2"), "--frame"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_the_command_explains_what_is_wrong(command, tmp_path, arguments, said):
    found = command("--source", "phantom:count=1", "--out", tmp_path / "set", *SMALL, *arguments)
    assert isinstance(found.exception, UniReasonError) and said in str(found.exception)


def test_stopping_is_an_error_that_says_how_to_go_on(monkeypatch, settings, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unireason_lib.dataset.crew.build_unit", interrupted)
    with pytest.raises(BuildStopped, match="run the same command again"):
        build(settings("phantom:count=2", census=0), tmp_path / "set")


def test_what_is_said_about_a_broken_file_holds_no_path_of_this_machine(settings, tmp_path):
    scans, masks = tmp_path / "data/imagesTr", tmp_path / "data/labelsTr"
    for folder in (scans, masks):
        folder.mkdir(parents=True)
    about = {
        "name": "Task",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    }
    (tmp_path / "data/dataset.json").write_text(json.dumps(about))
    (scans / "a.nii.gz").write_bytes(b"torn")
    (masks / "a.nii.gz").write_bytes(b"torn")
    report = build(settings(f"decathlon:{tmp_path / 'data'}", census=0), tmp_path / "set")
    assert report.unreadable == 1
    said = (tmp_path / "set/refused.jsonl").read_text()
    assert "a.nii.gz" in said and str(tmp_path) not in said


def test_a_source_of_millions_says_what_stands_for_its_files(tmp_path):
    listed = tmp_path / "list.json"
    listed.write_text("{}")
    (tmp_path / "images").mkdir()
    source = Listed(())
    object.__setattr__(source, "path", tmp_path)
    object.__setattr__(source, "state_files", lambda: [listed, tmp_path / "images"])
    spec = SourceSpec("listed", str(tmp_path))
    first = source_state(spec, source)
    (tmp_path / "unlisted").write_text("not looked at")
    assert source_state(spec, source) == first
    (tmp_path / "images" / "new.png").write_bytes(b"")
    second = source_state(spec, source)
    assert second["state"] != first["state"] and second["files"] == first["files"]
    listed.write_text('{"a": 1}')
    assert source_state(spec, source)["files"] != first["files"]


def test_a_build_never_needs_torch(tmp_path):
    code = (
        "import sys; from unireason_lib.dataset.build import BuildConfig, SourceSpec, build; "
        "from unireason_lib.bench.dataset import SMALL; "
        "build(BuildConfig((SourceSpec('phantom', None, {'count': 2}),), census=0, **SMALL), sys.argv[1]); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert found.stdout.split() == ["False", "False"], found.stderr
    assert read_manifest(tmp_path / "set")["pictures"] == 16  # phantoms are ours to pass on
