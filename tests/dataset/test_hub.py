"""Finished sets: loaded by ``datasets``, images from the table or through the source, publishing."""

import pickle

import datasets
import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unireason_lib.dataset.build import BuildConfig, SourceSpec, build
from unireason_lib.dataset.hub import ImageTable, load_set, push_set, record_images
from unireason_lib.dataset.schema import IMAGE_FEATURES, RL_FEATURES, SFT_FEATURES, Record
from unireason_lib.dataset.shards import image_row
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import load_image

SMALL = {"size": (8, 64, 64), "prior_studies": 0}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory, frame):
    """A set of five phantoms in each of three splits."""
    config = BuildConfig((SourceSpec("phantom", None, {"count": 15}),), frame=frame, **SMALL)
    config = BuildConfig(
        **{**vars(config), "fractions": dict.fromkeys(("train", "val", "test"), 1 / 3)}
    )
    return build(config, tmp_path_factory.mktemp("hub") / "set").folder


def test_datasets_loads_every_configuration_with_typed_columns(phantoms):
    sft, rl = (datasets.load_dataset(str(phantoms), name) for name in ("sft", "rl"))
    assert set(sft) == set(rl) == {"train", "val", "test"}
    assert sft["train"].features == SFT_FEATURES and rl["val"].features == RL_FEATURES
    left = sft["train"].filter(lambda row: row["family"] == "lesion analysis")
    assert 0 < len(left) < len(sft["train"]) and set(left["split"]) == {"train"}
    images = load_set(phantoms, "images", "train")
    assert images.features == IMAGE_FEATURES and len(images) == 15 * 8
    assert sft["test"].cache_files  # memory-mapped
    mixed = datasets.concatenate_datasets([sft["train"].shuffle(1).select(range(3)), sft["val"]])
    assert len([Record.from_row(row) for row in mixed]) == 3 + len(sft["val"])


def test_sets_of_one_folder_name_are_not_taken_for_each_other(tmp_path, frame):
    for start in (0, 50):
        spec = SourceSpec("phantom", None, {"count": 2, "start": start})
        folder = tmp_path / str(start) / "set"
        build(BuildConfig((spec,), frame=frame, **SMALL), folder)
        for load in (load_set, lambda where: datasets.load_dataset(str(where), "sft")):
            (part,) = load(folder).values()
            assert {row["study"] for row in part} == {f"phantom-{start + k:06d}" for k in (0, 1)}


def test_a_set_is_published_as_it_lies_here(phantoms, monkeypatch):
    calls = []
    for name in ("create_repo", "upload_folder"):
        note = lambda self, *words, name=name, **more: calls.append((name, words, more))  # noqa: E731
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", note)
    push_set(phantoms, "me/mine")
    (made, words, more), (sent, _, what) = calls
    assert (made, words, more["private"]) == ("create_repo", ("me/mine",), True)
    assert sent == "upload_folder" and what["folder_path"] == phantoms
    assert "sft/*.parquet" in what["allow_patterns"] and "README.md" in what["allow_patterns"]
    assert not any(pattern.startswith((".", "*")) for pattern in what["allow_patterns"])


def table_of(folder, *rows):
    (folder / "images").mkdir(parents=True)
    table = pa.Table.from_pylist(list(rows), IMAGE_FEATURES.arrow_schema)
    pq.write_table(table, folder / "images/part-00000.parquet")
    return folder


def test_images_come_back_exactly_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"grey": (9, 7), "colour": (9, 7, 3)}
    pixels = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
    rows = [image_row(name, array) for name, array in pixels.items()]
    table = ImageTable(table_of(tmp_path, *rows, rows[0]))  # the same one twice is no conflict
    for one in (table, pickle.loads(pickle.dumps(table))):
        assert len(one) == 2 and set(one) == {"grey", "colour"} and "other" not in one
        for name in ("colour", "grey"):
            expected = Image.fromarray(pixels[name]).convert("RGB")
            assert one[name].mode == "RGB" and one(name).tobytes() == expected.tobytes()
    with pytest.raises(KeyError):
        table["other"]
    assert len(ImageTable(tmp_path / "images")) == 0


def test_images_of_16_bits_keep_their_contrast_and_cameras_are_upright(tmp_path):
    """Both as load_image reads a file: a 16-bit row came out white, and EXIF was ignored."""
    deep = np.linspace(1000, 40000, 63).astype(np.uint16).reshape(9, 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    rows = []
    for name, image, options in (
        ("deep", Image.fromarray(deep), {}),
        ("x", colour, {"exif": exif}),
    ):
        image.save(tmp_path / f"{name}.png", **options)
        content = (tmp_path / f"{name}.png").read_bytes()
        rows.append({"image_id": name, "path": f"images/{name}.png", "bytes": content})
    table = ImageTable(table_of(tmp_path / "set", *rows))
    for name in ("deep", "x"):
        assert table[name].tobytes() == load_image(tmp_path / f"{name}.png").tobytes()
    grey = np.asarray(table["deep"])[..., 0]
    assert grey.min() == 0 and grey.max() == 255 and len(np.unique(grey)) == 63
    assert table["x"].tobytes() == colour.transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.fixture
def decathlon(tmp_path):
    """Tasks of one case: a bright liver and a spleen, in 3D or as the second of two channels."""
    labels = np.zeros((24, 20, 12), np.uint8)  # x, y, z
    labels[3:11, 4:12, 2:9], labels[15:21, 10:17, 3:8] = 1, 2
    scan = np.random.default_rng(0).normal(0, 30, labels.shape) + 400 * (labels == 1) + 200 * labels

    def make(channels):
        root = tmp_path / f"Task{channels}"
        stacked = scan if channels == 1 else np.stack([scan[::-1], scan], axis=-1)
        for kind, array in (("imagesTr", stacked.astype(np.float32)), ("labelsTr", labels)):
            (root / kind).mkdir(parents=True)
            nib.save(nib.Nifti1Image(array, np.diag([2, 2, 5, 1])), root / kind / "a.nii.gz")
        case = '{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}'
        names = '{"0": "background", "1": "liver", "2": "spleen"}'
        modalities = ", ".join(f'"{k}": "CT"' for k in range(channels))
        (root / "dataset.json").write_text(
            f'{{"name": "Task", "modality": {{{modalities}}}, "labels": {names}, '
            f'"training": [{case}], "numTraining": 1}}'
        )
        return root

    return make


@pytest.mark.parametrize(
    "channels, options", [(1, ""), (1, ",flip=xy"), (2, ",channels=1"), (2, ",channels=1,flip=x")]
)
def test_images_that_are_not_stored_are_read_again_through_their_source(
    decathlon, frame, tmp_path, channels, options
):
    """Fault B1: from the bare path, flips and channels of the source were lost."""
    root = decathlon(channels)
    spec = SourceSpec.parse(f"decathlon:{root}{options}")
    for images in ("all", "none"):
        config = BuildConfig((spec,), frame=frame, images=images, **SMALL)
        build(config, tmp_path / images)
    rows = [row for part in load_set(tmp_path / "none").values() for row in part]
    stored, empty = ImageTable(tmp_path / "all"), ImageTable(tmp_path / "none")
    assert rows and len(stored) == 8 and len(empty) == 0
    for record in map(Record.from_row, rows):
        expected = [image.tobytes() for image in record_images(record, stored)]
        for roots in ({record.source: root}, {"decathlon": str(root)}, {"": root}):
            images = record_images(record, empty, roots)
            assert [image.tobytes() for image in images] == expected
        with pytest.raises(DatasetError, match="obtain these scans"):
            record_images(record, empty)
