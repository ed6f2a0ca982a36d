"""Public benchmarks, each on a fixture in its own form, with the rows that go wrong in it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unireason_lib.errors import DatasetError, ScanError
from unireason_lib.evaluation import open_benchmark, tables
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
    return {int(item.id.rpartition("/")[2]): item for item in benchmark}


def skipped(benchmark) -> dict[int, str]:
    return {int(row.name.rpartition(" ")[2]): row.reason for row in benchmark.skipped}


@pytest.fixture
def m3d(tmp_path) -> Path:
    scan(tmp_path / "M3D_Cap_npy" / "ct_quizze" / "0001" / "Axial.npy")
    row = {
        "Image Path": "M3D_Cap_npy/ct_quizze/0001/Axial.npy",
        "Text": "report",
        "Question Type": 3,
        "Question": "Which organ?",
        "Choice A": "Liver",
        "Choice B": "Spleen",
        "Choice C": "NA",
        "Choice D": "Nierenödem – größer",
        "Answer": "Nierenödem – größer",
        "Answer Choice": "D",
    }
    missing = "M3D_Cap_npy/ct_quizze/0002/Axial.npy"
    changes = (
        {},
        {"Question Type": 1, "Choice C": "Heart", "Answer Choice": "B", "Answer": "Spleen"},
        {"Answer Choice": "C"},
        {"Image Path": "../outside.npy"},
        {"Question": ""},
        {"Image Path": missing, "Answer Choice": "A", "Answer": "Liver"},
        {"Question": "What is <|image_pad|>?"},
    )
    return table(tmp_path / "M3D_VQA_test.csv", [row | change for change in changes])


def test_m3d_vqa_closed_and_open(m3d):
    found = open_benchmark(f"m3d-vqa:{m3d}", size=(4, 32, 32))
    items = by_row(found)
    assert list(items) == [1, 2, 6]
    closed_up = {"A": "Liver", "B": "Spleen", "C": "Nierenödem – größer"}
    assert items[1].options == closed_up and items[1].answer == "C"
    assert (items[1].family, items[2].family) == ("organ", "plane")
    assert items[2].options["C"] == "Heart" and items[2].answer == "B"
    assert items[1].patient == items[2].patient != items[6].patient
    images = items[1].load()
    assert len(images) == 4 and images[0].size == (32, 32)
    with pytest.raises(ScanError, match="0002"):
        items[6].load()
    reasons = skipped(found)
    assert list(reasons) == [3, 4, 5, 7] and "found C" in reasons[3]
    assert "../outside" in reasons[4] and "image_pad" in reasons[7]
    freely = by_row(open_benchmark("m3d-vqa", m3d, open=True))
    assert freely[1].options == {} and freely[1].answer == "Nierenödem – größer"
    assert freely[2].answer == "Spleen"


def test_m3d_vqa_lies_beside_its_volumes(m3d):
    """As it is handed out: ``data/M3D_VQA/M3D_VQA_test.csv`` and ``data/M3D_Cap_npy``."""
    inner = m3d.parent / "M3D_VQA"
    inner.mkdir()
    m3d.rename(inner / m3d.name)
    found = by_row(open_benchmark(f"m3d-vqa:{inner}", size=(4, 32, 32)))
    assert len(found[1].load()) == 4
    volumes = m3d.parent / "M3D_Cap_npy"  # a root that the rows' paths name themselves
    found = open_benchmark("m3d-vqa", inner, root=volumes, size=(4, 32, 32))
    assert len(by_row(found)[1].load()) == 4


def test_a_scan_is_read_once_for_all_its_questions(m3d, monkeypatch):
    read, paths = tables.read_scan, []
    monkeypatch.setattr(tables, "read_scan", lambda *a: paths.append(a[0]) or read(*a))
    items = by_row(open_benchmark("m3d-vqa", m3d, size=(4, 32, 32)))
    assert items[1].load() is items[2].load() and len(paths) == 1
    for _ in range(2):  # what fails is tried again
        with pytest.raises(ScanError):
            items[6].load()
    assert len(paths) == 3


def test_limit_and_identity(m3d):
    short, long = open_benchmark("m3d-vqa", m3d, limit=1), open_benchmark("m3d-vqa", m3d)
    assert len(short) == 1 and short.identity == long.identity
    assert open_benchmark("m3d-vqa", m3d, size=(4, 32, 32)).identity != long.identity
    m3d.write_text(m3d.read_text(encoding="utf-8").replace("Which", "What"), encoding="utf-8")
    assert open_benchmark("m3d-vqa", m3d).identity != long.identity


def test_3d_rad(tmp_path):
    scan(tmp_path / "valid" / "valid_1" / "valid_1_a" / "valid_1_a_1.npy")
    row = {
        "VolumeName": "valid_1_a_1.npy",
        "Question": "Is there effusion?",
        "Answer": "Yes",
        "QuestionType": "existence detection",
        "AnswerChoice": "A",
        **{"Choice A": "Yes", "Choice B": "No", "Choice C": "-", "Choice D": "-"},
    }
    blank = dict.fromkeys(("AnswerChoice", "Choice A", "Choice B"), "-")
    rows = [row, row | blank | {"Answer": "3.1 cm"}, row | {"VolumeName": "valid_2_a_1.nii.gz"}]
    path = table(tmp_path / "test.csv", rows)
    items = by_row(open_benchmark("3d-rad", path, size=(2, 16, 16)))
    assert items[1].options == {"A": "Yes", "B": "No"} and items[1].answer == "A"
    assert items[1].patient == "valid_1" and items[1].family == "existence detection"
    assert len(items[1].load()) == 2
    assert items[2].options == {} and items[2].answer == "3.1 cm"
    with pytest.raises(ScanError, match="valid_2"):
        items[3].load()


def test_vqa_rad(tmp_path, monkeypatch):
    scan(tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg")
    row = {
        "phrase_type": "freeform",
        "image_name": "synpic1.jpg",
        "question": "Are the lungs clear?",
        "answer": "Yes",
        "answer_type": "CLOSED",
        "question_type": "ABN",
    }
    where = {"phrase_type": "test_para", "answer_type": "OPEN ", "question": "Where?"}
    rows = [row | {"phrase_type": "test_freeform"}, row, row | where | {"answer": "left lobe"}]
    path = table(tmp_path / "VQA_RAD.json", [*rows, row | where | {"answer": 3}, "no row"])
    found = open_benchmark("vqa-rad", path)
    items = by_row(found)
    assert list(items) == [1, 3, 4]  # the second belongs to training
    assert items[1].options == {"A": "Yes", "B": "No"} and items[1].answer == "A"
    assert items[1].family == "closed" and items[1].kind == "ABN"
    assert items[1].load()[0].size == (40, 32)
    assert items[3].options == {} and items[3].answer == "left lobe" and items[3].family == "open"
    assert items[4].answer == "3" and list(skipped(found)) == [5]
    assert 2 in by_row(open_benchmark("vqa-rad", path, split="train"))
    read, readings = tables.read_scan, []  # a window for volumes is none for X-rays
    monkeypatch.setattr(tables, "read_scan", lambda *a: readings.append(a[2]) or read(*a))
    trained = Serialization(window=(-150, 250))
    open_benchmark("vqa-rad", path, serialization=trained).items[0].load()
    assert readings[0].window is None


def test_slake(tmp_path):
    scan(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    row = {
        "img_name": "xmlab1/source.jpg",
        "question": "Does the picture contain liver?",
        "answer": "No",
        "q_lang": "en",
        "answer_type": "CLOSED",
        "content_type": "Organ",
    }
    chinese = {"q_lang": "zh", "question": "图中有肝脏吗？", "answer": "没有"}
    table(tmp_path / "train.json", [])
    table(tmp_path / "test.json", [row, row | chinese])
    (item,) = open_benchmark("slake", tmp_path)
    assert (item.answer, item.kind, item.patient) == ("B", "Organ", "xmlab1")
    assert len(item.load()) == 1
    every = open_benchmark("slake", tmp_path, language=None)
    assert [i.answer for i in every] == ["B", "没有"]


def test_pathvqa_with_images_in_parquet(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (24, 20), (200, 20, 90)).save(stream, "JPEG")
    image = {"bytes": stream.getvalue(), "path": None}
    rows = [
        {"image": image, "question": "Is it benign?", "answer": "no"},
        {"image": image, "question": "What is shown?", "answer": "gland"},
        {"image": image | {"bytes": b"no image"}, "question": "What else?", "answer": "stroma"},
        {"image": image, "question": None, "answer": "stroma"},
    ]
    path = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = open_benchmark("pathvqa", tmp_path)
    items = by_row(found)
    assert [(i.answer, i.family) for i in found][:2] == [("B", "closed"), ("gland", "open")]
    assert items[1].load()[0].size == (24, 20) and items[2].patient == items[1].patient
    with pytest.raises(ScanError, match="expected an image"):
        items[3].load()
    assert list(skipped(found)) == [4]
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(DatasetError, match="a whole Parquet file"):
        open_benchmark("pathvqa", tmp_path)


def test_pmc_vqa(tmp_path):
    scan(tmp_path / "images" / "PMC1_Fig1.jpg")
    choices = {"Choice A": " A:MRI ", "Choice B": " B:CT", "Choice C": " C:PET ", "Choice D": ""}
    row = {"Figure_path": "PMC1_Fig1.jpg", "Question": "What imaging was used?", "Answer": "CT"}
    row |= choices | {"Answer_label": "B"}
    rows = [row, row | {"Figure_path": "gone.jpg"}, row | {"Answer_label": "F"}]
    items = by_row(found := open_benchmark("pmc-vqa", table(tmp_path / "test.csv", rows)))
    assert items[1].options == {"A": "MRI", "B": "CT", "C": "PET"} and items[1].answer == "B"
    assert items[1].load()[0].size == (40, 32)
    with pytest.raises(ScanError, match=r"gone\.jpg"):
        items[2].load()
    assert list(skipped(found)) == [3]


def test_omnimedvqa(tmp_path):
    scan(tmp_path / "Images" / "a" / "1.png")
    row = {
        "question_type": "Modality Recognition",
        "question": "What is the modality?",
        "gt_answer": "ct (computed tomography)",
        "image_path": "Images/a/1.png",
        "option_A": "MRI",
        "option_B": "CT (computed tomography)",
        "modality_type": "CT",
    }
    table(tmp_path / "A.json", [row, row | {"gt_answer": "ultrasound"}])
    table(tmp_path / "B.json", [row | {"option_C": "X-ray"}])
    found = open_benchmark("omnimedvqa", tmp_path)
    first, second = found.items
    assert (first.id, second.id) == ("omnimedvqa/A/1", "omnimedvqa/B/1")
    assert first.answer == "B" and first.options == {"A": "MRI", "B": row["option_B"]}
    assert first.family == "CT" and first.kind == "Modality Recognition"
    assert list(second.options) == ["A", "B", "C"] and second.load()
    assert "ultrasound" in skipped(found)[2]
    # as it is handed out: QA_information/Open-access/A.json beside Images/
    inner = table(tmp_path / "QA_information" / "Open-access" / "A.json", [row])
    assert open_benchmark("omnimedvqa", inner).items[0].load()[0].size == (40, 32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m4d", {}, "found 'm4d'"),
        ("slake", {}, "found no path"),
        ("phantom:/x", {}, "expected no path"),
        ("m3d-vqa", {"path": "t.csv", "opn": True}, "opn"),
        ("m3d-vqa", {"path": "t.csv", "limit": 0}, "1 or more"),
        ("pmc-vqa", {"path": "t.csv"}, "expected text under image"),
        ("slake", {"path": "empty.json"}, "found none"),
    ],
)
def test_what_is_no_benchmark_says_so(tmp_path, monkeypatch, name, options, message):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "t.csv", [{"a": 1, "b": 2}])
    table(tmp_path / "empty.json", [])
    with pytest.raises(DatasetError, match=message):
        open_benchmark(name, **options)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    inner, outer = tmp_path / "data", tmp_path / "secret.png"
    scan(outer)
    inner.mkdir()
    (inner / "x.png").symlink_to(outer)
    row = {"image": "x.png", "question": "What?", "answer": "it"}
    path = table(inner / "q.json", [row, row | {"image": str(outer)}])
    with pytest.raises(DatasetError, match="2 rows skipped"):
        open_benchmark("pathvqa", path)
