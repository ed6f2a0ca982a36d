"""Public benchmarks, each on a fixture in its own form, with the rows that go wrong in it."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from unireason_lib.errors import DatasetError, ScanError
from unireason_lib.evaluation import open_benchmark, public
from unireason_lib.imaging import Serialization


def scan(path: Path) -> None:
    """A small image, or a volume in the form of M3D."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.linspace(0, 1, 6 * 16 * 16, dtype=np.float32).reshape(1, 6, 16, 16))
    else:
        Image.new("RGB", (40, 32), (90,) * 3).save(path)


def table(path: Path, rows: list) -> Path:
    """A table of questions as CSV or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def by_row(benchmark) -> dict[int, object]:
    """The items, and why a row is none, by the number of the row."""
    reasons = {int(row.name.rpartition(" ")[2]): row.reason for row in benchmark.skipped}
    return {int(item.id.rpartition("/")[2]): item for item in benchmark} | reasons


BENCHMARKS = yaml.safe_load(Path(__file__).with_name("public.yaml").read_text(encoding="utf-8"))
M3D, SLAKE, CHINESE = (
    BENCHMARKS[name]["rows"][k]["row"] for name, k in (("m3d-vqa", 0), ("slake", 0), ("slake", 1))
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_is_read_as_it_is_handed_out(tmp_path, name):
    image, rows = tmp_path / BENCHMARKS[name]["scan"], BENCHMARKS[name]["rows"]
    scan(image)
    path = table(tmp_path / BENCHMARKS[name]["table"], [one["row"] for one in rows])
    found = by_row(open_benchmark(name, path.parent, size=(4, 32, 32)))
    for number, one in enumerate(rows, 1):
        if asked := one.get("asked"):
            item = found.pop(number)
            assert {name: getattr(item, name) for name in asked} == asked
            assert item.id == f"{name}/{path.stem}/{number}"
            volume = item.dimension == "3d"
            assert [i.size for i in item.load()] == ([(32, 32)] * 4 if volume else [(40, 32)])
        elif "skipped" in one:
            assert one["skipped"] in found.pop(number)
    assert not found
    image.unlink()  # a scan that is not there fails when it is asked
    with pytest.raises(ScanError, match=image.name):
        open_benchmark(name, path).items[0].load()


def test_the_window_of_volumes_is_not_put_on_x_rays(tmp_path):
    """A 12-bit radiograph in a range of HU was white."""
    image = tmp_path / BENCHMARKS["vqa-rad"]["scan"]
    scan(image)
    ramp = np.linspace(300, 4000, 40 * 32).reshape(32, 40).astype(np.uint16)
    Image.fromarray(ramp).save(image, "PNG")
    row = BENCHMARKS["vqa-rad"]["rows"][0]["row"]
    path = table(tmp_path / BENCHMARKS["vqa-rad"]["table"], [row])
    trained = Serialization((4, 32, 32), (-150, 250), (32, 32))
    (shown,) = open_benchmark("vqa-rad", path, serialization=trained).items[0].load()
    assert shown.size == (32, 26) and len(np.unique(np.asarray(shown))) > 100


def test_a_table_without_the_column_that_chooses_rows_is_taken_whole(tmp_path):
    """VQA-RAD as Parquet of image, question, answer had no question."""
    Image.new("RGB", (40, 32)).save(buffer := io.BytesIO(), "PNG")
    row = {"image": {"bytes": buffer.getvalue()}, "question": "Is it?", "answer": "yes"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test.parquet")
    assert len(open_benchmark("vqa-rad", tmp_path / "test.parquet")) == 1
    assert len(open_benchmark("slake", tmp_path, split="te(st")) == 1  # a name, no pattern


def test_splits_languages_and_folders(tmp_path):
    table(tmp_path / "slake" / "train.json", [])
    table(tmp_path / "slake" / "test.json", [SLAKE, CHINESE])
    found = open_benchmark("slake", tmp_path / "slake")
    assert len(found) == 1
    every = open_benchmark("slake", tmp_path / "slake" / "test.json", split="all")
    assert [item.answer for item in every] == ["B", "没有"]
    # else the lines of another folder would go into the results of the first one
    table(tmp_path / "other" / "test.json", [SLAKE, CHINESE])
    other = open_benchmark("slake", tmp_path / "other")
    assert found.identity["tables"] == other.identity["tables"]
    assert found.identity != other.identity


@pytest.fixture
def m3d(tmp_path) -> Path:
    """Two questions about one volume, beside which the table lies, and one whose volume is gone."""
    scan(tmp_path / "M3D_Cap_npy" / "ct_quizze" / "0001" / "Axial.npy")
    missing = M3D | {"Image Path": "M3D_Cap_npy/ct_quizze/0002/Axial.npy"}
    return table(tmp_path / "M3D_VQA" / "M3D_VQA_test.csv", [M3D, M3D, missing])


def test_a_scan_is_read_once_for_all_its_questions(m3d, monkeypatch):
    read, paths = public.read_scan, []
    monkeypatch.setattr(public, "read_scan", lambda *a: paths.append(a[0]) or read(*a))
    volumes = m3d.parents[1] / "M3D_Cap_npy"  # a root that the rows' paths name themselves
    for how in ({}, {"root": volumes}):
        items = by_row(open_benchmark("m3d-vqa", m3d, size=(4, 32, 32), **how))
        assert items[1].load() is items[2].load() and len(paths) == 1
        for _ in range(2):  # what fails is tried again
            with pytest.raises(ScanError, match="0002"):
                items[3].load()
        assert len(paths) == 3
        paths.clear()


def test_limit_and_identity(m3d):
    short, long = open_benchmark("m3d-vqa", m3d, limit=1), open_benchmark("m3d-vqa", m3d)
    assert len(short) == 1 and short.identity == long.identity
    assert open_benchmark("m3d-vqa", m3d, size=(4, 32, 32)).identity != long.identity
    m3d.write_text(m3d.read_text(encoding="utf-8").replace("Which", "What"), encoding="utf-8")
    assert open_benchmark("m3d-vqa", m3d).identity != long.identity


def test_pathvqa_with_images_in_parquet(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (24, 20), (200, 20, 90)).save(stream, "JPEG")
    image = {"bytes": stream.getvalue(), "path": None}
    asked = [("Is it benign?", "no"), ("What is it?", "gland"), ("And?", "no"), (None, "no")]
    rows = [{"image": image, "question": question, "answer": answer} for question, answer in asked]
    rows[2]["image"] = image | {"bytes": b"no image"}
    path = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = open_benchmark("pathvqa", tmp_path)
    items = by_row(found)
    assert [(i.answer, i.family) for i in found][:2] == [("B", "closed"), ("gland", "open")]
    assert items[1].load()[0].size == (24, 20) and items[2].patient == items[1].patient
    with pytest.raises(ScanError, match="expected an image"):
        items[3].load()
    assert [row.name for row in found.skipped] == [f"{path.name}, row 4"]
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(DatasetError, match="a whole Parquet file"):
        open_benchmark("pathvqa", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m4d", {}, "found 'm4d'"),
        ("slake", {}, "found no path"),
        ("phantom:/x", {}, "expected no path"),
        ("m3d-vqa", {"path": "t.csv", "opn": True}, "opn"),
        ("m3d-vqa", {"path": "t.csv", "limit": 0}, "1 or more"),
        ("pmc-vqa", {"path": "t.csv"}, "expected text under image"),
    ],
)
def test_what_is_no_benchmark_says_so(tmp_path, monkeypatch, name, options, message):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "t.csv", [{"a": 1, "b": 2}])
    with pytest.raises(DatasetError, match=message):
        open_benchmark(name, **options)
