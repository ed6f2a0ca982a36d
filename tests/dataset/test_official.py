"""The authors' release, as its scripts expect it: made in miniature, read, and volumes attached to its 3D rows."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.official import as_dict, open_official, question_and_options
from unireason_lib.dataset.parquet import png
from unireason_lib.errors import DatasetError

ASKED = "What is shown here?\nA. Mass\nB. Cyst\nC. Air\nD. Nothing\nAnswer with one letter."
FLAT = "<think>It is seen at <|box_start|>[4,5,20,24]<|box_end|>, round.</think>B. Cyst"
DEEP = "<think>It spans <|box_start|>(4,5,1,20,24,3)<|box_end|>.</think>A. Mass"


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def turns(user, assistant=None):
    said = [{"role": "user", "content": user}]
    return said + ([{"role": "assistant", "content": assistant}] if assistant else [])


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "release"
    ids = ["im_000", "im_001", "im_crop"]
    write(
        folder / "images/part-0.parquet",
        [
            {"image_id": name, "path": f"{name}.png", "bytes": png(Image.new("L", (40, 30), 9 * k))}
            for k, name in enumerate(ids)
        ],
    )
    write(
        folder / "sft/a.parquet",
        [
            {"messages": turns(f"<image>\n{ASKED}", FLAT), "image_ids": ["im_000"]},
            {
                "messages": turns(f"<image>{ASKED}", FLAT.replace("<|box_end|>", "<|box_end|><image>")),
                "image_ids": ["im_001", "im_crop"],
            },
        ],
    )
    write(folder / "sft/b.parquet", [{"messages": turns(ASKED, DEEP), "image_ids": []}])
    common = {"prompt": turns(ASKED), "agent_name": "urm_single_assistant", "ability": "medical_vqa"}
    write(
        folder / "rl/0.parquet",
        [
            {
                **common,
                "image_ids": ["im_000"],
                "data_source": "samed2d",
                "reward_model": json.dumps({"style": "rule", "ground_truth": "B"}),
                "extra_info": json.dumps({"split": "train", "index": 4}),
            },
            {
                **common,
                "image_ids": [],
                "data_source": "m3d",
                "reward_model": json.dumps({"style": "rule", "ground_truth": "A. Mass"}),
                "extra_info": json.dumps({"volume": "ct/0001/x.npy"}),
            },
        ],
    )
    write(
        folder / "rl/1.parquet",
        [
            {
                **common,
                "image_ids": ["im_001"],
                "source_dataset": "other",
                "reward_model": {"style": "rule", "ground_truth": "Nothing"},
                "extra_info": {"index": 7},
            }
        ],
    )
    return folder


@pytest.fixture
def held(tmp_path):
    """M3D volumes that a user holds: (1, 32, 256, 256) arrays, here smaller."""
    volume = np.linspace(0, 1, 1 * 6 * 16 * 16, dtype=np.float32).reshape(1, 6, 16, 16)
    (tmp_path / "m3d/ct/0001").mkdir(parents=True)
    np.save(tmp_path / "m3d/ct/0001/x.npy", volume)
    return tmp_path / "m3d"


def test_rows_become_records_with_the_authors_words(release):
    first, second, third = open_official(release).records("sft")
    assert first.user_text == ASKED and first.question == "What is shown here?"
    assert first.options == {"A": "Mass", "B": "Cyst", "C": "Air", "D": "Nothing"}
    assert (first.answer, first.dimension, first.boxes) == ("B", "2d", [Box2D(4, 5, 20, 24)])
    assert first.messages[0]["content"][0] == {"type": "image", "image": "im_000"}
    assert second.image_ids == ("im_001",) and second.reply == FLAT  # a stored crop is cut again
    assert (third.answer, third.dimension, third.boxes) == ("A", "3d", [Box3D(4, 5, 1, 20, 24, 3)])
    assert len({record.id for record in (first, second, third)}) == 3


def test_truth_and_source_are_read_in_either_form(release):
    first, second, third = open_official(release).records("rl")
    assert [record.answer for record in (first, second, third)] == ["B", "A", "D"]
    assert [record.source for record in (first, second, third)] == ["samed2d", "m3d", "other"]
    assert [record.dimension for record in (first, second, third)] == ["2d", "3d", "2d"]
    assert first.split == "train" and first.reply == ""


def test_pictures_are_found_and_missing_volumes_counted(release):
    data = open_official(release)
    first, _, third = data.records("sft")
    assert [picture.size for picture in data.pictures(first)] == [(40, 30)]
    assert data.counts == {"2d": 2, "3d": 1, "volume missing": 1}
    with pytest.raises(DatasetError, match="pictures"):
        data.pictures(third)


def test_a_volume_named_in_the_row_is_attached(release, held):
    data = open_official(release, m3d_root=held)
    record = list(data.records("rl"))[1]
    assert len(record.image_ids) == 32 and data.counts["volume attached"] == 1
    shown = data.pictures(record)
    assert len(shown) == 32 and {picture.size for picture in shown} == {(256, 256)}
    assert record.messages[0]["content"][0] == {"type": "image", "image": record.image_ids[0]}


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_table_names_the_volume_of_a_row_that_does_not(release, held, tmp_path, kind):
    table = tmp_path / f"volumes.{kind}"
    pair = ("sft-00000002", "ct/0001/x.npy")
    table.write_text(f"id,volume\n{','.join(pair)}\n" if kind == "csv" else json.dumps(dict([pair])))
    data = open_official(release, m3d_root=held, volumes=table)
    *_, record = data.records("sft")
    assert data.counts["volume attached"] == 1 and len(data.pictures(record)) == 32


@pytest.mark.parametrize("path", ["../secret.npy", "/etc/hosts.npy", "ct/../../secret.npy"])
def test_a_volume_outside_of_the_folder_is_never_read(release, held, tmp_path, path):
    np.save(tmp_path / "secret.npy", np.zeros((1, 4, 4, 4)))
    table = tmp_path / "volumes.json"
    table.write_text(json.dumps({"sft-00000002": path}))
    data = open_official(release, m3d_root=held, volumes=table)
    *_, record = data.records("sft")
    assert data.counts["volume refused"] == 1 and record.lookup == "" and record.image_ids == ()
    with pytest.raises(DatasetError):
        data.pictures(record)


def test_a_hub_id_is_not_downloaded_unasked(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DatasetError, match="hf download --repo-type dataset"):
        open_official("IQuestLab/UniReason-Med-Data")
    with pytest.raises(DatasetError, match="neither"):
        open_official(tmp_path / "no such folder")


def test_a_hub_id_is_downloaded_when_asked(monkeypatch, release):
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(release)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert len(list(open_official("a/b", download=True, revision="v1").records())) == 3
    assert (asked["repository"], asked["revision"], asked["local_files_only"]) == ("a/b", "v1", False)


def test_bad_input_is_named(release, tmp_path):
    with pytest.raises(DatasetError, match="m3d-root"):
        open_official(release, m3d_root=tmp_path / "none")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="columns id and volume"):
        open_official(release, volumes=tmp_path / "t.csv")
    write(release / "rl/2.parquet", [{"prompt": turns("x"), "image_ids": [], "reward_model": "{not json"}])
    with pytest.raises(DatasetError, match="reward_model of rl-00000003"):
        list(open_official(release).records("rl"))
    write(release / "sft/c.parquet", [{"image_ids": ["x"]}])
    with pytest.raises(DatasetError, match="messages or prompt"):
        list(open_official(release).records("sft"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Why?\nA. one\nB. two", ("Why?", {"A": "one", "B": "two"})),
        ("Why?\nHow?\n(A) one\n(B) two\n(C) 3", ("Why?\nHow?", {"A": "one", "B": "two", "C": "3"})),
        ("Why?\nB. two\nA. one", ("Why?\nB. two\nA. one", {})),
        ("Only a question", ("Only a question", {})),
    ],
)
def test_options_are_read_out_of_the_text(text, expected):
    assert question_and_options(text) == expected


@pytest.mark.parametrize(
    "value, expected", [(None, {}), ("", {}), ({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1})]
)
def test_a_dictionary_or_json_of_one(value, expected):
    assert as_dict(value, "row", "extra_info") == expected


@pytest.mark.parametrize("value", ["[1]", "x", 5])
def test_neither_is_refused(value):
    with pytest.raises(DatasetError, match="extra_info of row"):
        as_dict(value, "row", "extra_info")
