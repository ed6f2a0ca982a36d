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
from unireason_lib.evaluation import open_benchmark


def picture(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 32), (value,) * 3).save(path)


def volume(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 1, 6 * 16 * 16, dtype=np.float32).reshape(1, 6, 16, 16)
    np.save(path, ramp)


def table(path: Path, rows: list[dict]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def by_row(benchmark) -> dict[int, object]:
    return {int(item.id.rpartition("/")[2]): item for item in benchmark}


@pytest.fixture
def m3d(tmp_path) -> Path:
    volume(tmp_path / "M3D_Cap_npy" / "ct_quizze" / "0001" / "Axial.npy")
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
    rows = [
        row,
        row | {"Question Type": 1, "Choice C": "Heart", "Answer Choice": "B", "Answer": "Spleen"},
        row | {"Answer Choice": "C"},
        row | {"Image Path": "../outside.npy"},
        row | {"Question": ""},
        row
        | {
            "Image Path": "M3D_Cap_npy/ct_quizze/0002/Axial.npy",
            "Answer Choice": "A",
            "Answer": "Liver",
        },
        row | {"Question": "What is <|image_pad|>?"},
    ]
    return table(tmp_path / "M3D_VQA_test.csv", rows)


def test_m3d_vqa_closed(m3d):
    found = open_benchmark(f"m3d-vqa:{m3d}", size=(4, 32, 32))
    items = by_row(found)
    assert list(items) == [1, 2, 6]
    assert items[1].options == {
        "A": "Liver",
        "B": "Spleen",
        "C": "Nierenödem – größer",
    }  # closed up
    assert items[1].answer == "C" and items[1].family == "organ" and items[1].dimension == "3d"
    assert (
        items[2].options["C"] == "Heart" and items[2].answer == "B" and items[2].family == "plane"
    )
    assert items[1].patient == items[2].patient != items[6].patient
    pictures = items[1].load()
    assert len(pictures) == 4 and pictures[0].size == (32, 32)
    with pytest.raises(ScanError, match=r"0002"):
        items[6].load()
    skipped = {row.name: row.reason for row in found.skipped}
    assert list(skipped) == [f"M3D_VQA_test.csv, row {n}" for n in (3, 4, 5, 7)]
    assert (
        "found C" in skipped["M3D_VQA_test.csv, row 3"]
        and "../outside" in skipped["M3D_VQA_test.csv, row 4"]
    )
    assert "image_pad" in skipped["M3D_VQA_test.csv, row 7"]


def test_m3d_vqa_open(m3d):
    items = by_row(open_benchmark("m3d-vqa", m3d, open=True))
    assert items[1].options == {} and items[1].answer == "Nierenödem – größer"
    assert items[2].answer == "Spleen"


def test_m3d_vqa_lies_beside_its_volumes(m3d):
    """As it is handed out: ``data/M3D_VQA/M3D_VQA_test.csv`` and ``data/M3D_Cap_npy``."""
    inner = m3d.parent / "M3D_VQA"
    inner.mkdir()
    m3d.rename(inner / m3d.name)
    found = by_row(open_benchmark(f"m3d-vqa:{inner}", size=(4, 32, 32)))
    assert len(found[1].load()) == 4


def test_a_scan_is_read_once_for_all_its_questions(m3d, monkeypatch):
    from unireason_lib.evaluation import tables

    read, seen = tables.read_scan, []
    monkeypatch.setattr(tables, "read_scan", lambda *words: seen.append(words[0]) or read(*words))
    items = by_row(open_benchmark("m3d-vqa", m3d, size=(4, 32, 32)))
    first, second = items[1].load(), items[2].load()
    assert len(seen) == 1 and first is second
    for _ in range(2):  # what fails is tried again
        with pytest.raises(ScanError):
            items[6].load()
    assert len(seen) == 3


def test_limit_and_identity(m3d):
    short, long = open_benchmark("m3d-vqa", m3d, limit=1), open_benchmark("m3d-vqa", m3d)
    assert len(short) == 1 and short.identity == long.identity
    assert open_benchmark("m3d-vqa", m3d, size=(4, 32, 32)).identity != long.identity
    m3d.write_text(m3d.read_text(encoding="utf-8").replace("Which", "What"), encoding="utf-8")
    assert open_benchmark("m3d-vqa", m3d).identity != long.identity


def test_3d_rad(tmp_path):
    volume(tmp_path / "valid" / "valid_1" / "valid_1_a" / "valid_1_a_1.npy")
    row = {
        "VolumeName": "valid_1_a_1.npy",
        "Question": "Is there effusion?",
        "Answer": "Yes",
        "QuestionType": "existence detection",
        "AnswerChoice": "A",
        "Choice A": "Yes",
        "Choice B": "No",
        "Choice C": "-",
        "Choice D": "-",
    }
    blank = dict.fromkeys(("AnswerChoice", "Choice A", "Choice B"), "-")
    rows = [row, row | blank | {"Answer": "3.1 cm"}, row | {"VolumeName": "valid_2_a_1.nii.gz"}]
    found = open_benchmark("3d-rad", table(tmp_path / "test.csv", rows), size=(2, 16, 16))
    items = by_row(found)
    assert items[1].options == {"A": "Yes", "B": "No"} and items[1].answer == "A"
    assert items[1].patient == "valid_1" and items[1].family == "existence detection"
    assert len(items[1].load()) == 2
    assert items[2].options == {} and items[2].answer == "3.1 cm"
    with pytest.raises(ScanError, match="valid_2"):
        items[3].load()


def test_vqa_rad(tmp_path):
    picture(tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg")
    row = {
        "qid": 1,
        "phrase_type": "freeform",
        "image_name": "synpic1.jpg",
        "question": "Are the lungs clear?",
        "answer": "Yes",
        "answer_type": "CLOSED",
        "question_type": "ABN",
    }
    rows = [
        row | {"phrase_type": "test_freeform"},
        row,
        row
        | {
            "phrase_type": "test_para",
            "answer": "left lobe",
            "answer_type": "OPEN ",
            "question": "Where?",
        },
        row
        | {"phrase_type": "test_para", "answer": 3, "answer_type": "OPEN", "question": "How many?"},
        "no row",
    ]
    path = tmp_path / "VQA_RAD.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    found = open_benchmark("vqa-rad", path)
    items = by_row(found)
    assert list(items) == [1, 3, 4]  # the second belongs to training
    assert items[1].options == {"A": "Yes", "B": "No"} and items[1].answer == "A"
    assert (
        items[1].family == "closed"
        and items[1].kind == "ABN"
        and items[1].load()[0].size == (40, 32)
    )
    assert items[3].options == {} and items[3].answer == "left lobe" and items[3].family == "open"
    assert items[4].answer == "3"
    assert [row.name for row in found.skipped] == ["VQA_RAD.json, row 5"]
    assert 2 in by_row(open_benchmark("vqa-rad", path, split="train"))


def test_slake(tmp_path):
    picture(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    row = {
        "img_id": 1,
        "img_name": "xmlab1/source.jpg",
        "question": "Does the picture contain liver?",
        "answer": "No",
        "q_lang": "en",
        "answer_type": "CLOSED",
        "content_type": "Organ",
        "qid": 0,
    }
    rows = [row, row | {"q_lang": "zh", "question": "图中有肝脏吗？", "answer": "没有"}]
    (tmp_path / "train.json").write_text("[]", encoding="utf-8")
    (tmp_path / "test.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (item,) = open_benchmark("slake", tmp_path)
    assert (
        item.answer == "B"
        and item.kind == "Organ"
        and item.patient == "xmlab1"
        and len(item.load()) == 1
    )
    every = open_benchmark("slake", tmp_path, language=None)
    assert [i.answer for i in every] == ["B", "没有"] and every.items[
        1
    ].question == "图中有肝脏吗？"


def test_pathvqa_with_pictures_in_parquet(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (24, 20), (200, 20, 90)).save(stream, "JPEG")
    rows = [
        {
            "image": {"bytes": stream.getvalue(), "path": None},
            "question": "Is it benign?",
            "answer": "no",
        },
        {
            "image": {"bytes": stream.getvalue(), "path": None},
            "question": "What is shown?",
            "answer": "gland",
        },
        {
            "image": {"bytes": b"no picture", "path": None},
            "question": "What else?",
            "answer": "stroma",
        },
        {"image": {"bytes": stream.getvalue(), "path": None}, "question": None, "answer": "stroma"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    found = open_benchmark("pathvqa", tmp_path)
    items = by_row(found)
    assert (
        items[1].answer == "B"
        and items[1].family == "closed"
        and items[1].load()[0].size == (24, 20)
    )
    assert (
        items[2].answer == "gland"
        and items[2].family == "open"
        and items[2].patient == items[1].patient
    )
    with pytest.raises(ScanError, match="expected an image"):
        items[3].load()
    assert len(found.skipped) == 1 and "row 4" in found.skipped[0].name
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DatasetError, match="a whole Parquet file"):
        open_benchmark("pathvqa", tmp_path)


def test_pmc_vqa(tmp_path):
    picture(tmp_path / "images" / "PMC1_Fig1.jpg")
    row = {
        "Figure_path": "PMC1_Fig1.jpg",
        "Question": "What imaging was used?",
        "Answer": "CT",
        "Choice A": " A:MRI ",
        "Choice B": " B:CT",
        "Choice C": " C:PET ",
        "Choice D": " D:X-ray ",
        "Answer_label": "B",
    }
    rows = [row, row | {"Figure_path": "gone.jpg"}, row | {"Answer_label": "F"}]
    items = by_row(found := open_benchmark("pmc-vqa", table(tmp_path / "test.csv", rows)))
    assert (
        items[1].options == {"A": "MRI", "B": "CT", "C": "PET", "D": "X-ray"}
        and items[1].answer == "B"
    )
    assert items[1].load()[0].size == (40, 32)
    with pytest.raises(ScanError, match=r"gone\.jpg"):
        items[2].load()
    assert [row.name for row in found.skipped] == ["test.csv, row 3"]


def test_omnimedvqa(tmp_path):
    picture(tmp_path / "Images" / "a" / "1.png")
    row = {
        "dataset": "A",
        "question_id": "A_0001",
        "question_type": "Modality Recognition",
        "question": "What is the modality?",
        "gt_answer": "ct (computed tomography)",
        "image_path": "Images/a/1.png",
        "option_A": "MRI",
        "option_B": "CT (computed tomography)",
        "modality_type": "CT",
    }
    wrong = row | {"gt_answer": "ultrasound"}
    (tmp_path / "A.json").write_text(json.dumps([row, wrong]), encoding="utf-8")
    (tmp_path / "B.json").write_text(json.dumps([row | {"option_C": "X-ray"}]), encoding="utf-8")
    found = open_benchmark("omnimedvqa", tmp_path)
    assert [item.id for item in found] == ["omnimedvqa/A/1", "omnimedvqa/B/1"]
    assert found.items[0].answer == "B" and found.items[0].options == {
        "A": "MRI",
        "B": row["option_B"],
    }
    assert found.items[0].family == "CT" and found.items[0].kind == "Modality Recognition"
    assert list(found.items[1].options) == ["A", "B", "C"] and found.items[1].load()
    assert "ultrasound" in found.skipped[0].reason and found.skipped[0].name == "A.json, row 2"
    # as it is handed out: QA_information/Open-access/A.json beside Images/
    inner = tmp_path / "QA_information" / "Open-access"
    inner.mkdir(parents=True)
    (tmp_path / "A.json").rename(inner / "A.json")
    assert open_benchmark("omnimedvqa", inner / "A.json").items[0].load()[0].size == (40, 32)


def test_what_is_no_benchmark_says_so(tmp_path, m3d):
    with pytest.raises(DatasetError, match="found 'm4d'"):
        open_benchmark("m4d")
    with pytest.raises(DatasetError, match="found no path"):
        open_benchmark("slake")
    with pytest.raises(DatasetError, match="found opn"):
        open_benchmark("m3d-vqa", m3d, opn=True)
    with pytest.raises(DatasetError, match="1 or more"):
        open_benchmark("m3d-vqa", m3d, limit=0)
    with pytest.raises(DatasetError, match="needs none"):
        open_benchmark("phantom:/x")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="expected text under image"):
        open_benchmark("pmc-vqa", tmp_path / "t.csv")
    (tmp_path / "empty.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DatasetError, match="found none"):
        open_benchmark("slake", tmp_path / "empty.json")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    inner, outer = tmp_path / "data", tmp_path / "secret.png"
    picture(outer)
    inner.mkdir()
    (inner / "x.png").symlink_to(outer)
    row = {"image": "x.png", "question": "What?", "answer": "it"}
    (inner / "q.json").write_text(json.dumps([row, row | {"image": str(outer)}]), encoding="utf-8")
    with pytest.raises(DatasetError, match="2 rows skipped"):
        open_benchmark("pathvqa", inner / "q.json")
