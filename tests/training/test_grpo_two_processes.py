"""Outcome RL in two processes is the same run as in one."""

import json

import pytest
import torch

from unireason_lib.grounding import load_model
from unireason_lib.io import read_lines
from unireason_lib.training import rewards
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.grpo import train_grpo

from .test_grpo import SMALL, profile
from .test_two_processes import launch

CHANGES = {"grpo.beta": 0.1, "grpo.learning_rate": 0.1, "grpo.max_completion_length": 12}
CHANGES |= {"grpo.optim": "sgd"}  # Adam makes steps of rounding errors where a gradient is 0
CHANGES |= {"grpo.gradient_accumulation_steps": 1, "grounding.feature_cache": True}

PROGRAM = """
import itertools, json, os, sys
from pathlib import Path
from types import SimpleNamespace
from torch import distributed
from unireason_lib.config import load_profile
from unireason_lib.errors import TrainingError
from unireason_lib.grounding import load_model
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training import grpo, rewards
from unireason_lib.training.grpo import GroundedGRPOTrainer, train_grpo

rewards.answer_reward = lambda text, *_: float(len(text) % 2)  # differs within a group
data, checkpoint, out, changes = sys.argv[1:]
rank, out, profile = os.environ["RANK"], Path(out), load_profile("smoke", json.loads(changes))

def run(name):
    model, processor = load_model(checkpoint, device="cpu")
    records, images = training_records(data), images_from(data)
    return train_grpo(model, processor, records, images, out / name, profile)

if rank == "1":  # each look at its clock takes it 1000 s
    grpo.time = SimpleNamespace(perf_counter=itertools.count(0, 1000).__next__)
made = run("both")
assert (made / "model.safetensors").is_file(), "every process returns when the model is there"

plain = GroundedGRPOTrainer._compute_loss
def poisoned(self, model, inputs):
    loss = plain(self, model, inputs)
    return loss * float("nan") if rank == "1" and self.state.global_step == 1 else loss
GroundedGRPOTrainer._compute_loss = poisoned
try:
    run("nan")
except TrainingError as error:
    (out / f"nan-{rank}").write_text(str(error))
distributed.barrier()
distributed.destroy_process_group()
"""


def test_two_processes_are_one(data, tiny_checkpoint, monkeypatch, tmp_path):
    """Questions, replies, rewards, losses and weights. A loss that is not finite in one process
    ends the run in both, with its checkpoint kept."""
    launch(
        PROGRAM,
        tmp_path / "program",
        data,
        tiny_checkpoint,
        tmp_path,
        json.dumps({**SMALL, **CHANGES}),
    )
    monkeypatch.setattr(rewards, "answer_reward", lambda text, *_: float(len(text) % 2))
    model, processor = load_model(tiny_checkpoint, device="cpu")
    alone = profile(CHANGES, per_device_train_batch_size=8)
    records, images = training_records(data), images_from(data)
    train_grpo(model, processor, records, images, tmp_path / "alone", alone)

    replies = [read_lines(tmp_path / name / "rollouts.jsonl") for name in ("both", "alone")]
    keys = [[(x["step"], x["id"], x["text"], x["reward"]) for x in lines] for lines in replies]
    assert keys[0] == keys[1] and len(keys[0]) == 2 * 8
    logs = [read_log(tmp_path / name / "log.jsonl", "reward") for name in ("both", "alone")]
    assert [line["rollout_seconds"] for line in logs[0]] == [1000, 1000]  # of the slower process
    for one, other in zip(*logs, strict=True):
        names = "loss kl reward reward_std entropy boxes pointing_2d completions/mean_length"
        for name in names.split():
            assert one[name] == pytest.approx(other[name], abs=1e-4), name
    weights = [load_model(tmp_path / x / "model", device="cpu")[0] for x in ("both", "alone")]
    one, other = (model.state_dict() for model in weights)
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    start = load_model(tiny_checkpoint, device="cpu")[0].state_dict()
    assert any(not torch.allclose(one[name], start[name], atol=1e-4) for name in one)

    errors = [(tmp_path / f"nan-{rank}").read_text() for rank in (0, 1)]
    assert all("finite loss" in error for error in errors)
    assert (tmp_path / "nan" / "checkpoint-1").is_dir() and not (tmp_path / "nan/model").exists()
