"""From a folder of Parquet to a fine-tuned model: which records, their pictures, the probe, the command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from typer.testing import CliRunner
from unireason_lib.training.logbook import read_lines, read_log
from unireason_lib.training.probes import answer_probe

from unireason_lib.cli import app
from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.sources import SourceSpec
from unireason_lib.errors import DatasetError
from unireason_lib.grounding import load_model
from unireason_lib.training.data import images_from, training_records

from .conftest import FRAME


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set of slices and volumes."""
    sources = ({"dimension": "2d", "count": 16}, {"dimension": "3d", "count": 8, "start": 500})
    config = BuildConfig(
        tuple(SourceSpec("phantom", None, options) for options in sources),
        size=(4, 64, 64),
        frame=FRAME,
        prior_studies=0,
        fractions={"train": 0.6, "val": 0.4, "test": 0.0},
    )
    return build(config, tmp_path_factory.mktemp("data") / "set").folder


def test_records_are_chosen_by_dimension_and_count(data):
    everything = training_records(data)
    assert {r.split for r in everything} == {"train"}
    assert len({r.id for r in everything}) == len(everything)
    some = training_records(data, {"2d": 10, "3d": 4})
    assert Counter(r.dimension for r in some) == {"2d": 10, "3d": 4}
    assert {r.dimension for r in training_records(data, {"2d": None})} == {"2d"}
    again = training_records(data, {"3d": 3 * len(training_records(data, {"3d": None}))})
    assert set(Counter(r.id for r in again).values()) == {3}  # matched steps: all come three times
    assert [r.id for r in training_records(data, seed=1)] != [r.id for r in everything]
    less, more = (training_records(data, {"3d": n}) for n in (2, 4))
    assert {r.id for r in less} <= {r.id for r in more}


@pytest.mark.parametrize(
    "counts, split", [({"2d": 0, "3d": 0}, "train"), (None, "test"), ({"3d": 5}, "test")]
)
def test_records_that_are_not_there_are_named(data, counts, split):
    with pytest.raises(DatasetError, match=split):
        training_records(data, counts, split=split)


def test_the_probe_asks_and_scores(data, tiny_model):
    records = training_records(data, split="val")[:6]
    found = answer_probe(records, images_from(data), 5).measure(*tiny_model)
    assert sum(scores["n"] for scores in found.values()) == len(records)
    for scores in found.values():
        assert scores["failed"] == 0 and 0 <= scores["right"] <= 1 and 0 <= scores["in_format"] <= 1
    broken = answer_probe(records, lambda record: [], 5).measure(*tiny_model)
    assert sum(scores["failed"] for scores in broken.values()) == len(records)


def sft_words(data, checkpoint, out, *more):
    """The command with its options, as text."""
    return [
        str(word) for word in ("sft", "--data", data, "--model", checkpoint, "--out", out, *more)
    ]


def test_the_command_fine_tunes_and_goes_on(data, tiny_checkpoint, tmp_path):
    words = sft_words(data, tiny_checkpoint, tmp_path / "run", "--profile", "smoke", "--quiet")
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    log = tmp_path / "run" / "log.jsonl"
    assert len(read_log(log)) == 4
    assert read_log(log, "answers")[-1]["step"] == 4
    assert (
        json.loads((tmp_path / "run" / "settings.json").read_text())["settings"]["form"] == "full"
    )
    load_model(tmp_path / "run" / "model", device="cpu")
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = log.read_text()
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0 and log.read_text() == lines  # finished: nothing is done twice


def test_the_command_refuses_a_setting_that_does_not_exist(data, tiny_checkpoint, tmp_path):
    words = sft_words(data, tiny_checkpoint, tmp_path / "run", "--set", "sft.learning_rat=1")
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2 and "learning_rate" in found.output


def test_the_command_reinforces_and_goes_on(data, tiny_checkpoint, tmp_path):
    out = tmp_path / "run"
    words = ["rl", *sft_words(data, tiny_checkpoint, out, "--profile", "smoke", "--quiet")[1:]]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert [line["step"] for line in read_log(out / "log.jsonl", "reward")] == [1, 2]
    assert read_log(out / "log.jsonl", "answers")[-1]["step"] == 2
    assert len(read_lines(out / "rollouts.jsonl")) == 2 * 2 * 2  # steps, questions, replies
    load_model(out / "model", device="cpu")
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0 and len(read_lines(out / "rollouts.jsonl")) == 8
    other = CliRunner().invoke(app, [*words, "--set", "rl.kl=0.5"])
    assert other.exit_code == 2 and "kl was 0.01, is 0.5" in other.output


def test_outcome_rl_that_is_killed_goes_on(data, tiny_checkpoint, tmp_path):
    """kill -9 in the middle of a run: the same command finishes it, with the weights of a run that nobody killed."""
    changes = "rl.steps=4,rl.prompts=2,rl.mini_batch=2,rl.rollouts=2,rl.micro_batch=2,rl.reply_tokens=8,rl.patience=0"
    changes += ",rl.save_steps=1,rl.probe_steps=100,rl.learning_rate=0.001,rl.lora_rank=none"

    def command(out):
        given = [
            "--data",
            str(data),
            "--model",
            str(tiny_checkpoint),
            "--out",
            str(out),
            "--set",
            changes,
        ]
        return [
            sys.executable,
            "-m",
            "unireason_lib",
            "rl",
            *given,
            "--profile",
            "laptop",
            "--quiet",
        ]

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    running = subprocess.Popen(command(killed), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and not list(killed.glob("checkpoint-*/trainer_state.json")):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL and not (killed / "model").exists()
    for out in (killed, whole):
        subprocess.run(
            command(out), env=environment, check=True, stdout=subprocess.DEVNULL, timeout=240
        )
    one, other = (
        load_model(out / "model", device="cpu")[0].state_dict() for out in (killed, whole)
    )
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    rewards = [
        [line["reward"] for line in read_log(out / "log.jsonl", "reward")]
        for out in (killed, whole)
    ]
    assert len(rewards[0]) == 4 and rewards[0] == pytest.approx(rewards[1])
