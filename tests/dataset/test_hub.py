"""Finished sets: loaded by ``datasets``, images from the table or through the source, publishing."""

import pickle
from dataclasses import replace
from unittest.mock import Mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.dataset.sources.test_reading import WAYS
from unireason_lib.dataset.build import BuildConfig, SourceSpec, build
from unireason_lib.dataset.hub import ImageTable, load_set, push_set, record_images
from unireason_lib.dataset.schema import IMAGE_FEATURES, RL_FEATURES, SFT_FEATURES, Record
from unireason_lib.dataset.shards import image_row
from unireason_lib.errors import DatasetError

SMALL = {"size": (8, 64, 64), "prior_studies": 0}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory, frame):
    """A set of five phantoms in each of three splits."""
    thirds = dict.fromkeys(("train", "val", "test"), 1 / 3)
    source = SourceSpec("phantom", None, {"count": 15})
    config = BuildConfig((source,), frame=frame, fractions=thirds, **SMALL)
    return build(config, tmp_path_factory.mktemp("hub") / "set").folder


def test_datasets_loads_every_configuration_with_typed_columns(phantoms):
    sft, rl = (datasets.load_dataset(str(phantoms), name) for name in ("sft", "rl"))
    assert set(sft) == set(rl) == {"train", "val", "test"}
    assert sft["train"].features == SFT_FEATURES and rl["val"].features == RL_FEATURES
    images = load_set(phantoms, "images", "train")
    assert images.features == IMAGE_FEATURES and len(images) == 15 * 8
    assert sft["test"].cache_files  # memory-mapped
    with pytest.raises(DatasetError, match="split 'nowhere'"):
        load_set(phantoms, "sft", "nowhere")


def test_sets_of_one_folder_name_are_not_taken_for_each_other(tmp_path, frame):
    for start in (0, 50):
        spec = SourceSpec("phantom", None, {"count": 2, "start": start})
        folder = tmp_path / str(start) / "set"
        build(BuildConfig((spec,), frame=frame, **SMALL), folder)
        for load in (load_set, lambda where: datasets.load_dataset(str(where), "sft")):
            (part,) = load(folder).values()
            assert {row["study"] for row in part} == {f"phantom-{start + k:06d}" for k in (0, 1)}


def test_a_set_is_published_as_it_lies_here(phantoms, monkeypatch):
    api = Mock()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: api)
    push_set(phantoms, "me/mine")
    api.create_repo.assert_called_with("me/mine", private=True, exist_ok=True, repo_type="dataset")
    sent = api.upload_folder.call_args.kwargs
    assert sent["folder_path"] == phantoms and sent["repo_id"] == "me/mine"
    assert {"sft/*.parquet", "README.md"} < {*sent["allow_patterns"]}
    assert not any(pattern.startswith((".", "*")) for pattern in sent["allow_patterns"])


def test_images_come_back_exactly_in_any_order(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    row = image_row("colour", pixels)
    deep = Image.fromarray(np.linspace(1000, 40000, 63).astype(np.uint16).reshape(9, 7))
    deep.save(tmp_path / "deep.png")
    deep = {"image_id": "deep", "path": "", "bytes": (tmp_path / "deep.png").read_bytes()}
    (tmp_path / "images").mkdir()
    table = pa.Table.from_pylist([row, row, deep], IMAGE_FEATURES.arrow_schema)
    pq.write_table(table, tmp_path / "images/part-0.parquet")
    table = ImageTable(tmp_path)
    for one in (table, pickle.loads(pickle.dumps(table))):
        assert set(one) == {"colour", "deep"} and (np.asarray(one["colour"]) == pixels).all()
    grey = np.asarray(table["deep"])[..., 0]  # report 7: a 16-bit row came out white
    assert grey.min() == 0 and grey.max() == 255 and len(np.unique(grey)) == 63
    assert len(ImageTable(tmp_path / "images")) == 0


@pytest.mark.filterwarnings("ignore::unireason_lib.errors.ScanWarning")
@pytest.mark.parametrize("text, make", [WAYS["phantom config"], WAYS["BRATS"]])
def test_b1_images_that_are_not_stored_are_read_again_through_their_source(
    frame, tmp_path, text, make
):
    """Fault B1: from the bare path, axis order, flips and channels of the source were lost."""
    root = make(tmp_path / "in") if make else None
    spec = replace(SourceSpec.parse(text), path=root and str(root))
    how = {"frame": frame, "per_family": 3, "size": (6, 32, 40), "prior_studies": 0, "limit": 4}
    for images in ("all", "none"):
        build(BuildConfig((spec,), images=images, **how), tmp_path / images)
    rows = [row for part in load_set(tmp_path / "none").values() for row in part]
    stored, empty = ImageTable(tmp_path / "all"), ImageTable(tmp_path / "none")
    assert rows and len(stored) and len(empty) == 0
    for record in map(Record.from_row, rows):
        expected = [image.tobytes() for image in record_images(record, stored)]
        for roots in ({record.source: root}, {"": str(root)}) if root else (None,):
            images = record_images(record, empty, roots)
            assert [image.tobytes() for image in images] == expected
        if root:
            with pytest.raises(DatasetError, match="obtain these scans"):
                record_images(record, empty)
