"""Questions about phantoms and other outlined scans; data sets in Parquet."""

import json
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.build import FIRST_3D, BuildConfig, build
from unireason_lib.dataset.sources import SourceSpec, open_source
from unireason_lib.errors import DatasetError, ScanWarning
from unireason_lib.evaluation import most_likely_answers, open_benchmark
from unireason_lib.evaluation.benchmarks import FIRST_PATIENT, PATIENTS
from unireason_lib.imaging import Serialization


@pytest.fixture(scope="module")
def debiased(frame):
    """A benchmark as it is really asked, with an answer prior."""
    return open_benchmark("phantom", limit=120, frame=frame, prior_studies=120)


def test_a_longer_benchmark_begins_with_the_shorter_one(phantoms, frame):
    longer = open_benchmark("phantom", limit=20, frame=frame, size=(4, 64, 64), prior_studies=0)
    assert longer.identity == phantoms.identity
    for one, other in zip(phantoms, longer, strict=False):
        assert one.to_dict() == other.to_dict() and one.truth_boxes == other.truth_boxes
    flat = {item.patient for item in phantoms if item.dimension == "2d"}
    assert not flat & {item.patient for item in phantoms if item.dimension == "3d"}


def test_patients_can_be_passed_over(frame):
    """A study asks patients whom nobody looked at while its models were chosen."""
    how = {"frame": frame, "size": (4, 32, 32), "prior_studies": 2}
    everyone, later = (
        open_benchmark("phantom", limit=n, skip_patients=k, **how) for n, k in ((40, 0), (8, 5))
    )
    first, last = ({item.patient for item in items} for items in (everyone, later))
    assert last and last <= first and len(first - last) >= 2 * 5  # slices and volumes
    assert later.identity != open_benchmark("phantom", limit=8, **how).identity


def test_both_dimensions_and_all_families_are_asked(debiased):
    assert Counter(item.dimension for item in debiased) == {"2d": 60, "3d": 60}
    assert len({item.family for item in debiased}) == 6
    assert max(Counter(item.patient for item in debiased).values()) <= 2
    letters = Counter(item.answer for item in debiased)
    assert set(letters) == set("ABCD") and max(letters.values()) < 50
    boxes = [(item.dimension, box) for item in debiased for _, box in item.truth_boxes]
    assert len(boxes) > 80
    for dimension, box in boxes:
        assert isinstance(box, Box2D if dimension == "2d" else Box3D)
        inside = box.clip(64, 64) if dimension == "2d" else box.clip(64, 64, 8)
        assert inside == box and not box.is_empty


def test_most_likely_answers_learn_from_training(phantoms):
    options = {"A": "Mottled", "B": "Striped"}
    texture = replace(phantoms.items[0], kind="texture", options=options, answer="A")
    training = [replace(texture, id=f"{k}", answer="B") for k in range(3)] + [texture]
    unknown = replace(texture, kind="new"), replace(texture, options={"A": "X", "B": "Y"})
    guesses = [i.guess for i in most_likely_answers([texture, *unknown], training)]
    assert guesses == ["B", None, None]


def test_volumes_are_laid_out_as_the_checkpoint_was_trained_and_others_warned_of(frame):
    how = {"dimension": "3d", "limit": 2, "frame": frame, "prior_studies": 0}
    how["serialization"] = Serialization((4, 32, 32), (-50, 200))
    with warnings.catch_warnings(action="error", category=ScanWarning):
        found = open_benchmark("phantom", **how)
    assert [found.identity[name] for name in ("size", "window")] == [[4, 32, 32], [-50, 200]]
    assert [image.size for image in found.items[0].load()] == [(32, 32)] * 4
    for other in ({"size": (2, 64, 64)}, {"window": (0, 100)}):
        (name,) = other
        with pytest.warns(ScanWarning, match=f"{name} .*trained with"):
            assert open_benchmark("phantom", **how, **other).identity[name] == [*other[name]]


@pytest.mark.parametrize("split", ["test", "val"])
def test_nobody_who_is_asked_about_was_trained_on(split, frame):
    """The data set that models learn from, however large, and the benchmark share no patient."""
    begin = FIRST_PATIENT[split]
    asked = range(begin, begin + FIRST_3D + PATIENTS)
    others = [first for name, first in FIRST_PATIENT.items() if name != split]
    assert begin >= 2 * FIRST_3D and not any(first in asked for first in others)
    found = open_benchmark("phantom", split=split, limit=10, frame=frame, seed=5, prior_studies=20)
    assert all(int(item.patient.removeprefix("phantom-")) in asked for item in found)
    (one,), (other,) = (open_source("phantom", start=k, count=1) for k in (begin, 0))
    assert one.patient != other.patient and not np.array_equal(one.labels, other.labels)


# --- Parquet -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory, frame) -> Path:
    """A small data set as the build writes it: train and test, 2D and 3D."""
    sources = ({"dimension": "2d", "count": 8}, {"dimension": "3d", "count": 8, "start": 500})
    config = BuildConfig(
        tuple(SourceSpec("phantom", None, options) for options in sources),
        size=(4, 64, 64),
        frame=frame,
        prior_studies=0,
        fractions={"train": 0.5, "val": 0.0, "test": 0.5},
    )
    return build(config, tmp_path_factory.mktemp("set") / "data").folder


def test_our_parquet_by_its_folder(built, frame):
    found = open_benchmark(str(built), frame=frame)
    assert {item.dimension for item in found} == {"2d", "3d"} and len(found) > 10
    train = open_benchmark("parquet", built, split="train", frame=frame)
    assert not {i.patient for i in found} & {i.patient for i in train}
    item = next(i for i in found if i.dimension == "3d" and i.truth_boxes)
    assert len(item.load()) == 4 and item.load()[0].size == (64, 64)
    assert item.boxes_in(frame, 64, 64) == item.truth_boxes
    assert any(i.guess for i in found)  # learnt from the training rows
    # a model of another scale is asked what states no box; true boxes are pixels for both
    thousandths = replace(frame, scale=1000)
    stating, other = (
        next(i for i in found if i.states_boxes == states) for states in (True, False)
    )
    assert other.boxes_in(thousandths, 64, 64) == other.truth_boxes
    with pytest.raises(DatasetError, match=r"thousandths.*build --model"):
        stating.boxes_in(thousandths, 64, 64)


def test_the_released_form(tmp_path):
    user = "<image>What is marked?\nA. Leber ä\nB. Spleen\nAnswer please."
    row = {"prompt": [{"role": "user", "content": user}], "image_ids": ["x1"]}
    row |= {"data_source": "samed2d", "reward_model": json.dumps({"ground_truth": "B"})}
    row["extra_info"] = json.dumps({"index": 0})
    volume = {"prompt": [{"role": "user", "content": user.removeprefix("<image>")}]}
    volume |= {"image_ids": [], "data_source": "m3d"}
    (tmp_path / "rl").mkdir()
    rows = [row, row | volume, row | {"reward_model": "{no json", "extra_info": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rl" / "train.parquet")
    found = open_benchmark(str(tmp_path), split="all")
    flat, deep = found.items
    assert [one.name for one in found.skipped] == ["rl-00000002"]
    assert "reward_model" in found.skipped[0].reason
    assert flat.options["A"] == "Leber ä" and flat.answer == "B" and flat.dimension == "2d"
    (turn,) = flat.request([Image.new("RGB", (8, 8))]).conversation()
    assert turn["content"][-1]["text"] == user.removeprefix("<image>")  # asked in its own words
    assert deep.dimension == "3d" and deep.answer == "B"
    with pytest.raises(DatasetError, match="say where its volume is"):
        deep.load()
    with pytest.raises(DatasetError):
        flat.load()
