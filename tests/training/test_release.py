"""Training and evaluation on the authors' release: an offline replica in its folders, columns and sizes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from unireason_lib.cli import app
from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.hub import load_set
from unireason_lib.dataset.release import release_split, write_release
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.sources import SourceSpec
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation import open_benchmark
from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.imaging.frame import QWEN_FRAME
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.encoding import Encoder
from unireason_lib.training.forms import conversation
from unireason_lib.training.logbook import read_lines, read_log

SIZE = (32, 256, 256)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A data set of ours at the paper's size: slices of 256 x 256, volumes of 32."""
    sources = (
        SourceSpec("phantom", None, {"dimension": "2d", "count": 3}),
        SourceSpec("phantom", None, {"dimension": "3d", "start": 500_000, "count": 2}),
    )
    config = BuildConfig(
        sources,
        size=SIZE,
        frame=QWEN_FRAME,
        per_family=1,
        prior_studies=0,
        fractions={"train": 1.0, "val": 0.0, "test": 0.0},
    )
    return build(config, tmp_path_factory.mktemp("ours") / "set").folder


@pytest.fixture(scope="module")
def release(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    return write_release(ours, folder / "UniReason-Med-Data", folder / "m3d"), folder / "m3d"


@pytest.fixture(scope="module")
def small_qwen(tmp_path_factory):
    """The tiny model with the frame of Qwen2.5-VL: 252 x 252 pixels, 81 tokens a slice."""
    limits = {"min_pixels": QWEN_FRAME.min_pixels, "max_pixels": QWEN_FRAME.max_pixels}
    return build_tiny(tmp_path_factory.mktemp("model") / "qwen", patch_size=14, **limits)


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done


def test_it_has_the_columns_of_the_release_and_nothing_of_ours(ours, release):
    folder, m3d = release
    assert sorted(path.name for path in folder.iterdir()) == ["images", "rl", "sft"]
    tables = {
        name: pq.read_table(folder / name / "part-00000.parquet")
        for name in ("sft", "rl", "images")
    }
    assert tables["images"].column_names == ["image_id", "path", "bytes"]
    assert {"messages", "image_ids"} <= set(tables["sft"].column_names)
    assert {
        "prompt",
        "image_ids",
        "data_source",
        "agent_name",
        "ability",
        "reward_model",
        "extra_info",
    } <= set(tables["rl"].column_names)
    infos = [json.loads(text) for text in tables["sft"]["extra_info"].to_pylist()]
    assert all(set(info) <= {"index", "volume"} for info in infos)
    held = sorted(m3d.rglob("*.npy"))
    assert len(held) == 2
    volume = np.load(held[0], allow_pickle=False)
    assert (
        volume.shape == (1, *SIZE)
        and volume.dtype == np.float32
        and 0 <= volume.min() < volume.max() <= 1
    )
    with pytest.raises(DatasetError, match="no such folder"):
        write_release(ours, folder, m3d)


def test_the_model_is_shown_and_taught_the_same(ours, release, small_qwen):
    folder, m3d = release
    _, processor = load_model(small_qwen, device="cpu")
    encoder = Encoder(processor)
    mine = {record.reply: record for record in map(Record.from_row, load_set(ours, "sft", "train"))}
    store, scans = images_from(ours), images_from(folder, m3d_root=m3d)
    records = [
        r
        for split in ("train", "val", "test")
        for r in training_records_or_none(folder, split, m3d)
    ]
    assert len(records) == len(load_set(ours, "sft", "train"))
    for record in records:
        twin = mine[record.reply]
        assert (record.answer, record.dimension, record.boxes) == (
            twin.answer,
            twin.dimension,
            twin.boxes,
        )
        theirs, shown = (
            encoder(conversation(one, pictures(one), "full", encoder.frame))
            for one, pictures in ((record, scans), (twin, store))
        )
        assert np.array_equal(theirs.ids, shown.ids) and np.array_equal(theirs.own, shown.own)
        assert all(
            np.corrcoef(a.ravel(), b.ravel())[0, 1]
            > 0.98  # the percentile window, once more for a volume
            for a, b in zip(theirs.pictures, shown.pictures, strict=True)
        )


def training_records_or_none(folder, split, m3d):
    try:
        return training_records(folder, split=split, m3d_root=m3d)
    except DatasetError:
        return []


def test_what_is_learnt_from_is_not_asked(release):
    """The release names no splits; training and evaluation read the same ones out of it."""
    folder, m3d = release
    learnt = {
        r.id for split in ("train", "val") for r in training_records_or_none(folder, split, m3d)
    }
    everything = {item.id for item in open_benchmark(str(folder), split="all", m3d_root=str(m3d))}
    try:
        asked = {item.id for item in open_benchmark(str(folder), split="test", m3d_root=str(m3d))}
    except DatasetError:  # none of five studies fell into it
        asked = set()
    assert not learnt & asked and learnt | asked == everything
    many = [Record(**vars_of(k)) for k in range(2000)]
    kept = Counter(release_split(record) for record in many)
    assert 20 < kept["val"] < 65 and 20 < kept["test"] < 65 and kept["train"] > 1850
    assert release_split(replace(many[0], split="val")) == "val"


def vars_of(k):
    """A released row about a picture of its own."""
    names = {field.name for field in fields(Record)}
    words = dict.fromkeys(
        names
        & {"study", "patient", "source", "modality", "family", "question", "reply", "license"},
        "",
    )
    return words | {
        "id": f"sft-{k:08d}",
        "dimension": "2d",
        "options": {},
        "answer": "",
        "image_ids": (f"im_{k}",),
    }


def test_volumes_that_nobody_holds_are_left_out_and_counted(release):
    folder, _ = release
    with pytest.warns(UserWarning, match=r"\d+ rows about volumes are left out"):
        records = training_records(folder)
    assert {record.dimension for record in records} == {"2d"}
    with pytest.warns(UserWarning), pytest.raises(DatasetError, match="3d"):
        training_records(folder, {"3d": 4})


def test_sft_rl_and_evaluation_run_on_it(release, small_qwen, tmp_path):
    folder, m3d = release
    given = [
        "--data",
        folder,
        "--m3d-root",
        m3d,
        "--profile",
        "smoke",
        "--quiet",
        "--set",
        "max_length=8192",
    ]
    run(
        "sft",
        *given,
        "--model",
        small_qwen,
        "--out",
        tmp_path / "sft",
        "--set",
        "sft.keep_features=true",
    )
    assert len(read_log(tmp_path / "sft" / "log.jsonl")) == 4
    rl = [word for word in given if word not in ("--set", "max_length=8192")]
    run(
        "rl",
        *rl,
        "--model",
        tmp_path / "sft" / "model",
        "--out",
        tmp_path / "rl",
        "--set",
        "rl.patience=0",
    )
    replies = read_lines(tmp_path / "rl" / "rollouts.jsonl")
    assert len(replies) == 2 * 2 * 2 and not (tmp_path / "rl" / "left_out.jsonl").exists()
    out = tmp_path / "test.jsonl"
    options = [
        "--benchmark",
        folder,
        "--option",
        f"m3d_root={m3d}",
        "--split",
        "all",
        "--limit",
        "40",
        "--profile",
        "smoke",
    ]
    run("evaluate", "--model", tmp_path / "rl" / "model", *options, "--quiet", "--out", out)
    lines = read_lines(out)
    assert {line["dimension"] for line in lines} == {"2d", "3d"}
    assert not [line for line in lines if line.get("error")]
