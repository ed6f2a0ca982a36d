"""Two processes train one model: what several GPUs do, on the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unireason_lib.dataset.build import BuildConfig, SourceSpec, build
from unireason_lib.grounding import load_model
from unireason_lib.training.data import pictures_from, training_records
from unireason_lib.training.logbook import read_lines, read_log
from unireason_lib.training.sft import SFTSettings, fine_tune

from .conftest import FRAME

ROOT = Path(__file__).parents[2]

SFT = """
import json, sys
from torch import distributed
from unireason_lib.grounding import load_model
from unireason_lib.training.data import pictures_from, training_records
from unireason_lib.training.logbook import Probe
from unireason_lib.training.sft import SFTSettings, fine_tune
data, checkpoint, out, settings = sys.argv[1:]
model, processor = load_model(checkpoint, device="cpu")
probe = Probe("answers", 2, lambda model, processor: {"rank": distributed.get_rank()})
made = fine_tune(model, processor, training_records(data), pictures_from(data), out,
                 SFTSettings(**json.loads(settings)), probes=[probe])
assert (made / "model.safetensors").is_file(), "every process returns when the model is there"
distributed.barrier()
distributed.destroy_process_group()
"""

RL = """
import json, sys
from torch import distributed
from unireason_lib.grounding import load_model
from unireason_lib.training.data import pictures_from, training_records
from unireason_lib.training.rl import RLSettings, reinforce
data, checkpoint, out, settings = sys.argv[1:]
model, processor = load_model(checkpoint, device="cpu")
made = reinforce(model, processor, training_records(data), pictures_from(data), out, RLSettings(**json.loads(settings)))
assert (made / "model.safetensors").is_file(), "every process returns when the model is there"
if distributed.is_initialized():
    distributed.barrier()
    distributed.destroy_process_group()
"""


def launch(program, processes, folder, *arguments):
    """Run a program in processes that meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(program, encoding="utf-8")
    command = [sys.executable]
    if processes > 1:
        command += [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            "--master_port",
            str(port),
        ]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder / "train.py"), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set of slices."""
    config = BuildConfig(
        (SourceSpec("phantom", None, {"dimension": "2d", "count": 8}),),
        size=(4, 64, 64),
        frame=FRAME,
        census=0,
        fractions={"train": 1.0, "val": 0.0, "test": 0.0},
    )
    return build(config, tmp_path_factory.mktemp("data") / "set").folder


def test_two_processes_make_one_run(data, tiny_checkpoint, tmp_path):
    settings = {"steps": 4, "learning_rate": 1e-3, "accumulation": 1, "save_steps": 2, "log_steps": 1}
    settings |= {"bf16": False, "keep_features": True}
    out, both = tmp_path / "both", json.dumps(settings | {"batch_size": 2})
    launch(SFT, 2, tmp_path, data, tiny_checkpoint, out, both)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]  # each once
    assert [line["answers"] for line in lines if "answers" in line] == [{"rank": 0}] * 2
    load_model(out / "model", device="cpu")
    # one process with batches twice as large sees the same examples, and so has the same losses
    alone = SFTSettings(**(settings | {"batch_size": 4}))
    model, processor = load_model(tiny_checkpoint, device="cpu")
    fine_tune(model, processor, training_records(data), pictures_from(data), tmp_path / "alone", alone)
    losses = [[line["loss"] for line in read_log(run / "log.jsonl")] for run in (out, tmp_path / "alone")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_two_processes_make_one_run_of_outcome_rl(data, tiny_checkpoint, tmp_path):
    """The same questions, replies and rewards as one process, and the same losses and weights behind them."""
    settings = {
        "steps": 3,
        "prompts": 4,
        "mini_batch": 4,
        "rollouts": 4,
        "learning_rate": 1e-3,
        "kl": 0.1,
        "patience": 0,
    }
    settings |= {"reply_tokens": 12, "save_steps": 100, "bf16": False, "keep_features": True}
    logs, weights, replies = [], [], []
    for processes, each in ((1, 16), (2, 8)):
        out = tmp_path / f"{processes}"
        given = json.dumps(settings | {"micro_batch": each})
        launch(RL, processes, tmp_path / f"program-{processes}", data, tiny_checkpoint, out, given)
        logs.append(read_log(out / "log.jsonl", "reward"))
        weights.append(load_model(out / "model", device="cpu")[0].state_dict())
        replies.append(
            sorted((line["step"], line["id"], line["text"]) for line in read_lines(out / "rollouts.jsonl"))
        )
    assert replies[0] == replies[1] and len(replies[0]) == 3 * 16
    for one, other in zip(*logs, strict=True):
        for key in ("loss", "kl", "reward", "reward_std", "entropy"):
            assert one[key] == pytest.approx(other[key], abs=1e-4), key
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])
