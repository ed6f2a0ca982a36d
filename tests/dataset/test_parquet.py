"""Parquet: what is written is read back, in the released columns; pictures, hashes, safe names, whole files."""

import errno
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unireason_lib.dataset.parquet import (
    SCHEMAS,
    ImageStore,
    RecordTable,
    ScanRoots,
    changed_files,
    file_stem,
    picture_row,
    pictures_of,
    png,
    read_records,
    rows,
    sft_row,
    whole_file,
    write_dataset,
    write_shards,
    write_text,
)
from unireason_lib.errors import DatasetError, ScanError
from unireason_lib.imaging import load_volume, serialize


@pytest.fixture
def records(picture_record, volume_record):
    return [
        picture_record(),
        volume_record(),
        volume_record(
            id="v2/x/0", study="v2", image_ids=("c-0", "c-1"), lookup="deep/v2.nii.gz", split="val"
        ),
        picture_record(id="s2/x/0", asked="In other words?\nA. x\nB. y", picture_size=None, split="test"),
    ]


@pytest.fixture
def written(tmp_path, records, pictures):
    shown = {**pictures(records[0]), **pictures(records[1])}
    write_dataset(tmp_path / "set", records, shown)
    return tmp_path / "set"


def test_what_is_written_is_read_back(written, records):
    found = {record.id: record for record in read_records(written)}
    assert found == {record.id: record for record in records}
    assert [record.id for record in read_records(written, "val")] == ["v2/x/0"]
    asked = {record.id: record for record in read_records(written, form="rl")}
    for record in records:
        assert asked[record.id].reply == "" and asked[record.id].user_text == record.user_text
        assert asked[record.id].answer == record.answer and asked[record.id].evidence == record.evidence


def test_the_columns_are_those_of_the_release(written, records):
    sft, rl = (list(rows(written, form)) for form in ("sft", "rl"))
    assert set(pq.read_schema(written / "sft/train-00000.parquet").names) == {
        "messages",
        "image_ids",
        "extra_info",
    }
    row = next(row for row in sft if row["extra_info"]["id"] == records[1].id)
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"] == "<image>" * 6 + records[1].user_text
    assert row["messages"][1]["content"] == records[1].reply
    assert row["image_ids"] == list(records[1].image_ids)
    row = next(row for row in rl if row["extra_info"]["id"] == records[1].id)
    assert row["reward_model"] == {"style": "rule", "ground_truth": "D"}
    assert row["prompt"] == [{"role": "user", "content": "<image>" * 6 + records[1].user_text}]
    assert (row["data_source"], row["ability"]) == ("made", "medical_vqa")


def test_a_row_whose_pictures_may_not_be_stored_is_text_only(written):
    (row,) = rows(written, "sft", "val")
    assert row["image_ids"] == [] and "<image>" not in row["messages"][0]["content"]
    (record,) = read_records(written, "val")
    assert record.image_ids == ("c-0", "c-1") and record.lookup == "deep/v2.nii.gz"


def test_records_by_number_in_any_order(written, records):
    table = RecordTable(written)
    assert len(table) == 4 and {table[k].id for k in (3, 0, 2, 1)} == {record.id for record in records}
    assert table[-1] == table[3] and list(RecordTable(written, "test")) == list(read_records(written, "test"))
    with pytest.raises(IndexError):
        table[4]


def test_pictures_come_back_exactly_and_grey_ones_are_stored_grey(written, records, pictures):
    store = ImageStore(written)
    assert len(store) == 7 and set(store) == {*records[0].image_ids, *records[1].image_ids}
    for name, picture in {**pictures(records[0]), **pictures(records[1])}.items():
        assert store[name].mode == "RGB" and store[name].tobytes() == picture.tobytes()
        assert Image.open(io.BytesIO(store.encoded(name))).mode == "L"
    assert [p.tobytes() for p in pictures_of(records[1], store)] == [
        p.tobytes() for p in pictures(records[1]).values()
    ]
    with pytest.raises(KeyError):
        store["nothing"]
    assert "nothing" not in store and 5 not in store


def test_colours_survive():
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    again = Image.open(io.BytesIO(png(colours)))
    assert again.mode == "RGB" and again.tobytes() == colours.tobytes()


def images(folder, *entries):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(
        [{"image_id": name, "path": path, "bytes": data} for name, path, data in entries], SCHEMAS["images"]
    )
    pq.write_table(table, folder / "0.parquet")


def test_names_from_outside_cannot_escape_or_collide(tmp_path):
    data = {name: png(Image.new("L", (4, 4), shade)) for shade, name in enumerate("abcdefg")}
    names = ["../../out", "/etc/x", "A", "a", "x.png", "C:\\x", "n" * 300]
    images(
        tmp_path / "images",
        *((name, "same.png", picture) for name, picture in zip(names, data.values(), strict=True)),
    )
    store = ImageStore(tmp_path)
    files = store.export(tmp_path / "files")
    assert len({path.name.lower() for path in files.values()}) == len(names)
    for name, picture in zip(names, data.values(), strict=True):
        assert files[name].parent == tmp_path / "files" and files[name].read_bytes() == picture
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == sorted(path.name for path in files.values())
    assert store.export(tmp_path / "files") == files
    assert file_stem("0f3a-001") == "0f3a-001"


def test_two_pictures_of_one_id_are_refused_and_the_same_twice_is_not(tmp_path):
    one, other = (png(Image.new("L", (4, 4), shade)) for shade in (0, 9))
    images(tmp_path / "good/images", ("x", "p", one), ("x", "q", one))
    assert ImageStore(tmp_path / "good").encoded("x") == one
    images(tmp_path / "bad/images", ("x", "p", one), ("x", "p", other))
    with pytest.raises(DatasetError, match="'x'"):
        ImageStore(tmp_path / "bad")


def test_bytes_that_are_no_picture_say_which(tmp_path):
    images(tmp_path / "images", ("broken", "p", b"\x89PNG nonsense"))
    with pytest.raises(ScanError, match="broken"):
        ImageStore(tmp_path)["broken"]


def test_scans_that_the_user_holds_replace_pictures_that_are_not_stored(tmp_path, volume_record):
    (tmp_path / "held/deep").mkdir(parents=True)
    np.save(tmp_path / "held/deep/v.npy", np.random.default_rng(0).normal(size=(9, 40, 50)))
    record = volume_record(lookup="deep/v.npy", serialization={"size": [6, 64, 64], "window": "minmax"})
    shown = pictures_of(record, {}, ScanRoots({"made": tmp_path / "held"}))
    expected = serialize(load_volume(tmp_path / "held/deep/v.npy"), (6, 64, 64), "minmax").images()
    assert [p.tobytes() for p in shown] == [p.tobytes() for p in expected]
    with pytest.raises(DatasetError, match=r"deep/v\.npy"):
        pictures_of(record, {})


@pytest.mark.parametrize(
    "lookup", ["../secret.npy", "/etc/passwd", "deep/../../secret.npy", "..\\secret.npy", "a\0b"]
)
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, lookup, volume_record):
    (tmp_path / "held").mkdir()
    np.save(tmp_path / "secret.npy", np.zeros((3, 4, 4)))
    with pytest.raises(DatasetError, match="inside held"):
        ScanRoots({"": tmp_path / "held"})(volume_record(lookup=lookup))


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path, volume_record):
    (tmp_path / "held").mkdir()
    np.save(tmp_path / "secret.npy", np.zeros((3, 4, 4)))
    (tmp_path / "held/link.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(DatasetError, match="inside held"):
        ScanRoots({"": tmp_path / "held"})(volume_record(lookup="link.npy"))


@pytest.mark.parametrize("pieces", [1, 4, 27])
def test_shards_hold_so_many_rows_however_they_arrive(tmp_path, picture_record, pieces):
    schema = SCHEMAS["sft"].append(pa.field("_answer", pa.string()))
    made = [{**sft_row(picture_record(id=f"r{k}")), "_answer": "B"} for k in range(27)]
    tables = (pa.Table.from_pylist(made[k : k + pieces], schema) for k in range(0, 27, pieces))
    entries = write_shards(tmp_path, "train", tables, rows=10, row_group=5)
    assert [(entry["path"], entry["rows"]) for entry in entries] == [
        (f"{form}/train-{number:05d}.parquet", count)
        for number, count in enumerate((10, 10, 7))
        for form in ("sft", "rl")
    ]
    assert [record.id for record in read_records(tmp_path)] == [f"r{k}" for k in range(27)]
    assert pq.read_metadata(tmp_path / "sft/train-00000.parquet").num_row_groups == 2
    write_text(tmp_path / "manifest.json", json.dumps({"files": entries}))
    assert changed_files(tmp_path) == []
    path = tmp_path / "rl/train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert changed_files(tmp_path) == ["rl/train-00001.parquet"]


def test_the_same_rows_give_the_same_bytes(tmp_path, records, pictures):
    for name in ("one", "two"):
        write_dataset(tmp_path / name, records, pictures(records[1]))
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*.*")) for n in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 8
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files[0])
    assert (
        pq.read_metadata(tmp_path / "one/sft/val-00000.parquet").row_group(0).column(0).compression == "ZSTD"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_nothing_torn(tmp_path, code):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with (
        pytest.raises(DatasetError, match=r"full disk.*run the same command again"),
        whole_file(path) as file,
    ):
        file.write(b"half")
        raise OSError(code, "No space left on device")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_other_errors_pass_and_leave_nothing_either(tmp_path):
    with pytest.raises(OSError, match="broken pipe"), whole_file(tmp_path / "x") as file:
        file.write(b"half")
        raise OSError(errno.EPIPE, "broken pipe")
    assert not list(tmp_path.iterdir())


def test_reading_what_is_not_there_or_not_ours_says_so(tmp_path, picture_record):
    with pytest.raises(DatasetError, match="sft"):
        list(read_records(tmp_path))
    with pytest.raises(DatasetError, match="split"):
        write_dataset(tmp_path / "a", [picture_record(split="")])
    write_dataset(tmp_path / "b", [picture_record()])
    with pytest.raises(DatasetError, match=r"dev-\*.*train-00000"):
        list(read_records(tmp_path / "b", "dev"))
    with pytest.raises(DatasetError, match="empty or new"):
        write_dataset(tmp_path / "b", [picture_record()])
    path = tmp_path / "b/sft/train-00000.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match="whole Parquet file"):
        list(read_records(tmp_path / "b"))


def test_rows_are_named_after_their_picture():
    row = picture_row("0f-003", Image.new("RGB", (3, 2), (1, 1, 1)))
    assert row["path"] == "images/0f-003.png" and Image.open(io.BytesIO(row["bytes"])).size == (3, 2)
