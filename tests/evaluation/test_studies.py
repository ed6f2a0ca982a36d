"""Questions about phantoms and other outlined scans; data sets in Parquet."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.build import FIRST_3D, BuildConfig, build
from unireason_lib.dataset.sources import SourceSpec, open_source
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation import most_likely_answers, open_benchmark
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)


@pytest.fixture(scope="module")
def debiased():
    """A benchmark as it is really asked, with an answer prior."""
    return open_benchmark("phantom", limit=120, frame=FRAME, prior_studies=120)


def numbers(benchmark) -> set[int]:
    return {int(item.patient.removeprefix("phantom-")) for item in benchmark}


def test_the_patients_of_the_splits_never_meet(phantoms):
    val = open_benchmark("phantom", split="val", limit=12, frame=FRAME, prior_studies=0)
    train = open_benchmark("phantom", split="train", limit=12, frame=FRAME, prior_studies=0)
    assert all(1_000_000 <= n < 2_000_000 for n in numbers(phantoms))
    assert all(2_000_000 <= n < 3_000_000 for n in numbers(val))
    assert all(n < 1_000_000 for n in numbers(train))
    flat = {item.patient for item in phantoms if item.dimension == "2d"}
    assert not flat & {item.patient for item in phantoms if item.dimension == "3d"}


def test_a_longer_benchmark_begins_with_the_shorter_one(phantoms):
    longer = open_benchmark("phantom", limit=20, frame=FRAME, size=(4, 64, 64), prior_studies=0)
    assert longer.identity == phantoms.identity
    for one, other in zip(phantoms, longer, strict=False):
        assert one.to_dict() == other.to_dict() and one.truth_boxes == other.truth_boxes


def test_both_dimensions_and_all_families_are_asked(debiased):
    assert Counter(item.dimension for item in debiased) == {"2d": 60, "3d": 60}
    assert len({item.family for item in debiased}) == 6
    assert max(Counter(item.patient for item in debiased).values()) <= 2
    letters = Counter(item.answer for item in debiased)
    assert set(letters) == set("ABCD") and max(letters.values()) < 50


def test_truth_boxes_lie_in_the_frame_around_what_is_asked(debiased):
    boxed = [item for item in debiased if item.truth_boxes]
    assert len(boxed) > 80
    for item in boxed:
        for _, box in item.truth_boxes:
            assert isinstance(box, Box2D if item.dimension == "2d" else Box3D)
            inside = box.clip(64, 64) if item.dimension == "2d" else box.clip(64, 64, 8)
            assert inside == box and not box.is_empty


def test_pictures_come_when_asked_for(phantoms):
    flat, deep = phantoms.items[0], phantoms.items[1]
    assert [p.size for p in flat.load()] == [(64, 64)] and [p.size for p in deep.load()] == [
        (64, 64)
    ] * 4
    assert np.asarray(flat.load()[0]).std() > 10


def test_the_most_likely_answer_is_near_chance_when_questions_are_debiased(debiased):
    guessed = [item for item in debiased if item.guess is not None]
    assert len(guessed) > 60 and all(item.guess in item.options for item in guessed)
    right = sum(item.guess == item.answer for item in guessed) / len(guessed)
    assert right < 0.45


def test_most_likely_answers_learn_from_training(phantoms):
    texture = replace(
        phantoms.items[0], kind="texture", options={"A": "Mottled", "B": "Striped"}, answer="A"
    )
    training = [replace(texture, id=f"{k}", answer="B") for k in range(3)] + [texture]
    (one,) = most_likely_answers([texture], training)
    assert one.guess == "B"
    unknown = replace(texture, kind="new")
    assert most_likely_answers([unknown], training)[0].guess is None
    assert (
        most_likely_answers([replace(texture, options={"A": "X", "B": "Y"})], training)[0].guess
        is None
    )


def test_options_reach_the_phantoms():
    plain = open_benchmark(
        "phantom",
        limit=4,
        frame=FRAME,
        prior_studies=0,
        dimension="2d",
        families=["lesion analysis"],
    )
    assert {(i.dimension, i.family) for i in plain} == {("2d", "lesion analysis")}
    with pytest.raises(DatasetError, match="PhantomConfig"):
        open_benchmark("phantom", limit=4, frame=FRAME, config={"noize": 3})


@pytest.mark.parametrize("seed", [0, 5])
def test_nobody_who_is_asked_about_was_trained_on(seed):
    """The data set that models learn from, however large, and the benchmark share no patient."""
    from unireason_lib.evaluation import studies

    largest = FIRST_3D  # so many, or slices would run into volumes
    trained = [range(0, largest), range(FIRST_3D, FIRST_3D + largest)]
    for split in ("test", "val"):
        begin = studies.FIRST_PATIENT[split]
        asked = range(begin, begin + studies._FIRST_3D + studies._ROOM)
        others = [b for name, b in studies.FIRST_PATIENT.items() if name != split]
        assert all(begin >= one.stop for one in trained)
        assert not any(other in asked for other in others)
        found = open_benchmark(
            "phantom", split=split, limit=10, frame=FRAME, seed=seed, prior_studies=20
        )
        assert all(n in asked for n in numbers(found))
        # a study tells who it is about, and two numbers are two bodies
        (one,) = open_source("phantom", start=begin, count=1)
        (other,) = open_source("phantom", start=0, count=1)
        assert one.patient != other.patient and not np.array_equal(one.labels, other.labels)


def test_another_folder_is_another_benchmark(tmp_path):
    """Else its lines would go into the results of the first one."""
    labels = np.zeros((24, 24, 12), np.uint8)
    for k, (x, y) in enumerate(((1, 2), (13, 3), (2, 14), (14, 13)), start=1):
        labels[x : x + 5 + k, y : y + 6, 2 : 5 + k] = k
    names = {"1": "liver", "2": "spleen", "3": "left kidney", "4": "right kidney"}
    for folder in (tmp_path / "one", tmp_path / "other"):
        for part, array in (("images", labels.astype(np.int16) * 40), ("labels", labels)):
            (folder / part).mkdir(parents=True)
            nib.save(nib.Nifti1Image(array, np.diag([2, 2, 3, 1])), folder / part / "anna.nii.gz")
        (folder / "names.json").write_text(json.dumps({"names": names}), encoding="utf-8")
    one, other, again = (
        open_benchmark("folder", tmp_path / name, size=(4, 64, 64), frame=FRAME, title="mine")
        for name in ("one", "other", "one")
    )
    assert [item.question for item in one] == [item.question for item in other]
    assert one.identity == again.identity != other.identity


# -- Parquet --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A small data set as the build writes it: train and test, 2D and 3D."""
    sources = ({"dimension": "2d", "count": 8}, {"dimension": "3d", "count": 8, "start": 500})
    config = BuildConfig(
        tuple(SourceSpec("phantom", None, options) for options in sources),
        size=(4, 64, 64),
        frame=FRAME,
        prior_studies=0,
        fractions={"train": 0.5, "val": 0.0, "test": 0.5},
    )
    return build(config, tmp_path_factory.mktemp("set") / "data").folder


def test_our_parquet_by_its_folder(built):
    found = open_benchmark(str(built), frame=FRAME)
    assert {item.dimension for item in found} == {"2d", "3d"} and len(found) > 10
    train = open_benchmark("parquet", built, split="train", frame=FRAME)
    assert not {i.patient for i in found} & {i.patient for i in train}
    item = next(i for i in found if i.dimension == "3d" and i.truth_boxes)
    assert len(item.load()) == 4 and item.load()[0].size == (64, 64)
    assert item.boxes_in(FRAME, 64, 64) == item.truth_boxes
    assert any(i.guess for i in found)  # learnt from the training rows
    rl = open_benchmark("parquet", built, frame=FRAME, form="rl")
    assert [(i.id, i.answer, i.question) for i in rl] == [
        (i.id, i.answer, i.question) for i in found
    ]


def test_parquet_that_is_not_there_or_of_another_layout(built, tmp_path):
    with pytest.raises(DatasetError, match="found none"):
        open_benchmark("parquet", built, split="val", frame=FRAME)
    with pytest.raises(DatasetError, match="size"):
        open_benchmark("parquet", built, size=(8, 64, 64))
    with pytest.raises(DatasetError, match="the folder of a data set"):
        open_benchmark("parquet", tmp_path / "none")
    with pytest.raises(DatasetError, match="sft or rl"):
        open_benchmark("parquet", built, form="raw")


def test_images_that_are_not_stored_are_read_through_their_source(built, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    shutil.rmtree(copy / "images")
    stored, again = (open_benchmark(str(folder), frame=FRAME) for folder in (built, copy))
    for one, other in zip(stored, again, strict=True):
        assert [i.tobytes() for i in one.load()] == [i.tobytes() for i in other.load()]


def test_the_released_form(tmp_path):
    user = "<image>What is marked?\nA. Leber ä\nB. Spleen\nAnswer please."
    rows = [
        {
            "prompt": [{"role": "user", "content": user}],
            "image_ids": ["x1"],
            "data_source": "samed2d",
            "reward_model": json.dumps({"ground_truth": "B"}),
            "extra_info": json.dumps({"index": 0}),
        },
        {
            "prompt": [{"role": "user", "content": user.removeprefix("<image>")}],
            "image_ids": [],
            "data_source": "m3d",
            "reward_model": json.dumps({"ground_truth": "A"}),
            "extra_info": None,
        },
        {
            "prompt": [{"role": "user", "content": user}],
            "image_ids": ["x1"],
            "data_source": "samed2d",
            "reward_model": "{no json",
            "extra_info": None,
        },
    ]
    (tmp_path / "rl").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rl" / "train.parquet")
    found = open_benchmark(str(tmp_path), split="all")
    flat, deep = found.items
    assert [row.name for row in found.skipped] == [
        "rl-00000002"
    ] and "reward_model" in found.skipped[0].reason
    assert flat.options["A"] == "Leber ä" and flat.answer == "B" and flat.dimension == "2d"
    (turn,) = flat.request([Image.new("RGB", (8, 8))]).conversation()
    assert turn["content"][-1]["text"] == user.removeprefix("<image>")  # asked in its own words
    assert deep.dimension == "3d" and deep.answer == "A"
    with pytest.raises(DatasetError, match="name its volume"):
        deep.load()
    with pytest.raises(DatasetError):
        flat.load()
