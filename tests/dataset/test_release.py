"""The authors' release, as its scripts expect it: made in miniature, read, and volumes attached."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.hub import ImageTable, record_images
from unireason_lib.dataset.release import open_release
from unireason_lib.dataset.shards import image_row
from unireason_lib.errors import DatasetError

ASKED = "What is shown here?\nA. Mass\nB. Cyst\nC. Air\nD. Nothing\nAnswer with one letter."
FLAT = "<think>It is seen at <|box_start|>[4,5,20,24]<|box_end|>, round.</think>B. Cyst"
CROPPED = FLAT.replace("<|box_end|>", "<|box_end|><image>")
DEEP = "<think>It spans <|box_start|>(4,5,1,20,24,3)<|box_end|>.</think>A. Mass"


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def turns(user, assistant=None):
    texts = {"user": user, **({"assistant": assistant} if assistant else {})}
    return [{"role": role, "content": text} for role, text in texts.items()]


def images_of(data, record):
    return record_images(record, ImageTable(data.folder), {"": data})


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "release"
    ids = ["im_000", "im_001", "im_crop"]
    images = [image_row(n, np.full((30, 40), 9 * k, np.uint8)) for k, n in enumerate(ids)]
    write(folder / "images/part-0.parquet", images)
    sft = [
        {"messages": turns(f"<image>\n{ASKED}", FLAT), "image_ids": ["im_000"]},
        {"messages": turns(f"<image>{ASKED}", CROPPED), "image_ids": ["im_001", "im_crop"]},
        {"messages": turns(f"<image>{ASKED}", CROPPED), "image_ids": ["im_001"]},
    ]
    write(folder / "sft/a.parquet", sft)
    write(folder / "sft/b.parquet", [{"messages": turns(ASKED, DEEP), "image_ids": []}])
    rows = [  # data source, image ids, truth, extra_info, and how the last two are written
        ("samed2d", ["im_000"], "B", {"split": "train", "index": 4}, json.dumps),
        ("m3d", [], "A. Mass", {"volume": "ct/0001/x.npy"}, json.dumps),
        ("other", ["im_001"], "Nothing", {"index": 7}, dict),
    ]
    for k, (source, image_ids, answer, info, written) in enumerate(rows):
        row = {"prompt": turns(ASKED), "ability": "medical_vqa", "image_ids": image_ids}
        row |= {"data_source": source, "extra_info": written(info)}
        row["reward_model"] = written({"style": "rule", "ground_truth": answer})
        write(folder / f"rl/{k}.parquet", [row])
    return folder


@pytest.fixture
def m3d_root(tmp_path):
    """M3D volumes that a user holds: (1, 32, 256, 256) arrays, here smaller."""
    volume = np.linspace(0, 1, 6 * 16 * 16, dtype=np.float32).reshape(1, 6, 16, 16)
    (tmp_path / "m3d/ct/0001").mkdir(parents=True)
    np.save(tmp_path / "m3d/ct/0001/x.npy", volume)
    return tmp_path / "m3d"


def test_rows_become_records_with_the_authors_words(release):
    first, second, _, last = open_release(release).records("sft")
    assert first.user_text == ASKED and first.question == "What is shown here?"
    assert first.options == {"A": "Mass", "B": "Cyst", "C": "Air", "D": "Nothing"}
    assert (first.answer, first.dimension, first.boxes) == ("B", "2d", [Box2D(4, 5, 20, 24)])
    assert second.image_ids == ("im_001",) and second.reply == FLAT  # a stored crop is cut again
    assert (last.answer, last.dimension, last.boxes) == ("A", "3d", [Box3D(4, 5, 1, 20, 24, 3)])
    records = list(open_release(release).records("rl"))
    assert [record.answer for record in records] == ["B", "A", "D"]
    assert [record.source for record in records] == ["samed2d", "m3d", "other"]
    assert [record.dimension for record in records] == ["2d", "3d", "2d"]
    assert records[0].split == "train" and records[0].reply == ""
    assert records[2].family == "medical_vqa" and records[2].study == "im_001"


def test_b11_a_crop_that_is_not_listed_leaves_the_image_of_the_user(release):
    """Fault B11: it took the place of the user's image, and the row became text only."""
    data = open_release(release)
    _, _, record, _ = data.records("sft")
    assert record.image_ids == ("im_001",) and record.dimension == "2d"
    assert [image.size for image in images_of(data, record)] == [(40, 30)]
    bare = {"messages": turns(ASKED, CROPPED), "image_ids": ["im_001", "im_crop"]}
    assert data.record("x", bare).image_ids == ("im_001",)  # without a placeholder of the user's


def test_a_table_names_volumes_and_none_outside_of_the_folder_is_read(release, m3d_root, tmp_path):
    np.save(tmp_path / "secret.npy", np.zeros((1, 4, 4, 4)))
    table = tmp_path / "volumes.csv"
    paths = {"ct/0001/x.npy": (32, False), "ct/none.npy": (0, False), "../secret.npy": (0, True)}
    for path, expected in paths.items():
        table.write_text(f"id,volume\nsft-00000003,{path}\nsft-00000001,\n")
        data = open_release(release, m3d_root=m3d_root, volumes=table)
        *_, record = data.records("sft")
        assert (len(record.image_ids), record.scan is None) == expected
    _, named, _ = open_release(release, m3d_root=m3d_root).records("rl")  # by its own row
    assert {image.size for image in images_of(data, named)} == {(256, 256)}


def test_the_id_of_a_row_counts_the_files_of_all_splits_report_8(tmp_path):
    for split in ("test", "train", "validation"):
        rows = [{"messages": turns(f"{split} {k}", "x"), "image_ids": []} for k in range(2)]
        write(tmp_path / f"sft/{split}-0.parquet", rows)
    data = open_release(tmp_path)
    every, part = ({key: str(row) for key, row in data.rows("sft", s)} for s in ("all", "train"))
    assert list(part) == ["sft-00000002", "sft-00000003"] and part.items() <= every.items()


def test_bad_input_is_named(release, tmp_path):
    write(release / "rl/3.parquet", [{"prompt": turns("x"), "reward_model": "{not json"}])
    with pytest.raises(DatasetError, match="reward_model of rl-00000003"):
        list(open_release(release).records("rl"))
    (release / "sft/a.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DatasetError, match=r"a\.parquet"):
        list(open_release(release).records("sft"))
