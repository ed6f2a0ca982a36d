"""Two processes train one model: what several GPUs do, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unireason_lib.config import load_profile
from unireason_lib.grounding import load_model
from unireason_lib.io import read_lines
from unireason_lib.training import rewards
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.grpo import train_grpo
from unireason_lib.training.sft import train_sft

from . import test_grpo

CHANGES = {"sft.max_steps": 3, "sft.learning_rate": 1e-3, "sft.bf16": False}
CHANGES |= {"sft.gradient_accumulation_steps": 1, "grounding.muon_learning_rate": 0.0}
CHANGES |= {**test_grpo.SMALL, "grpo.beta": 0.1, "grpo.learning_rate": 0.1}
CHANGES |= {"grpo.optim": "sgd"}  # Adam makes steps of rounding errors where a gradient is 0
CHANGES |= {"grpo.gradient_accumulation_steps": 1, "grpo.max_completion_length": 12}
CHANGES |= {"grounding.feature_cache": True}

PROGRAM = """
import itertools, json, os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback
from unireason_lib.config import load_profile
from unireason_lib.grounding import load_model
from unireason_lib.training import grpo, rewards
from unireason_lib.training.data import Examples, images_from, training_records
from unireason_lib.training.encoding import Collator
from unireason_lib.training.grpo import train_grpo
from unireason_lib.training.sft import freeze, train_sft

data, checkpoint, out, changes = sys.argv[1:]
rank, out, changes = int(os.environ["RANK"]), Path(out), json.loads(changes)
records, images = training_records(data), images_from(data)

def run(train, name, callbacks=()):
    profile, loaded = load_profile("smoke", changes), load_model(checkpoint, device="cpu")
    return train(*loaded, records, images, out / name, profile, callbacks=callbacks)

class Poison(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if rank == 1 and state.global_step == 1:
            model.get_input_embeddings().weight.data.fill_(float("nan"))

class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if rank == 1 and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)

if rank == 0:
    (out / "damaged").mkdir()
    (out / "damaged" / "settings.json").write_text('{"settings": {}}')
for name, callbacks in (("sft", [Interrupt()]), ("nan", [Poison()]), ("damaged", [])):
    try:
        run(train_sft, name, callbacks)
    except (Exception, KeyboardInterrupt) as error:
        (out / f"{name}-{rank}").write_text(str(error))
made = run(train_sft, "sft")
assert (made / "model.safetensors").is_file(), "every process returns when the model is there"

rewards.answer_reward = lambda text, *_: float(len(text) % 2)  # differs within a group
if rank == 1:  # each look at its clock takes it 1000 s
    grpo.time = SimpleNamespace(perf_counter=itertools.count(0, 1000).__next__)
run(train_grpo, "grpo")

model, processor = load_model(checkpoint, device="cpu")
freeze(model)
batch, results = Collator(processor)(list(Examples(records[:4], images, processor))), []
for sharded in (False, True):
    if sharded:
        mesh = init_device_mesh("cpu", (2,))
        for layer in (*model.model.language_model.layers, model):
            fully_shard(layer, mesh=mesh)
    loss = model(**batch).loss
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {n: float((g.full_tensor() if sharded else g).norm()) for n, g in grads.items()}
    held = sum((p.to_local() if sharded else p).numel() for p in model.parameters())
    results.append([float(loss.detach()), norms, held])
    model.zero_grad(set_to_none=True)
(out / f"sharded-{rank}").write_text(json.dumps(results))
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def both(data, tiny_checkpoint, tmp_path_factory):
    """The folder of what two processes did."""
    out = tmp_path_factory.mktemp("both")
    (out / "train.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", out / "train.py", data, tiny_checkpoint, out]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    one_thread = {"PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    how = {"env": os.environ | one_thread, "capture_output": True, "text": True, "timeout": 240}
    done = subprocess.run([*map(str, command), json.dumps(CHANGES)], **how)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture
def alone(data, tiny_checkpoint, tmp_path):
    """Trains in one process, with batches twice as large; gives the folder of the run."""

    def run(train, **changes):
        profile, images = load_profile("smoke", CHANGES | changes), images_from(data)
        loaded = load_model(tiny_checkpoint, device="cpu")
        return train(*loaded, training_records(data), images, tmp_path / "run", profile).parent

    return run


def test_two_processes_fine_tune_one_model(both, alone):
    """Resumed after Ctrl-C in one of them; each step is logged once, with the metrics of both."""
    one = alone(train_sft, **{"sft.per_device_train_batch_size": 4})
    logs = [read_log(folder / "log.jsonl") for folder in (both / "sft", one)]
    assert [line["step"] for line in logs[0]] == [1, 2, 3]
    for key in ("loss", "mean_token_accuracy", "grad_norm"):
        values = [[line[key] for line in lines] for lines in logs]
        assert values[0] == pytest.approx(values[1], abs=1e-3), key


def test_two_processes_decide_together(both):
    """One process that raised left the other waiting for ever."""
    for name, text in {"sft": "stopped at step 1", "nan": "finite", "damaged": "base"}.items():
        assert all(text in (both / f"{name}-{rank}").read_text() for rank in (0, 1)), name
    assert "another in another process" in (both / "nan-0").read_text()


def test_two_processes_reward_one_model(both, alone, tiny_checkpoint, monkeypatch):
    """Questions, replies, rewards, losses and weights are those of one process."""
    monkeypatch.setattr(rewards, "answer_reward", lambda text, *_: float(len(text) % 2))
    runs = both / "grpo", alone(train_grpo, **{"grpo.per_device_train_batch_size": 8})
    replies = [read_lines(folder / "rollouts.jsonl") for folder in runs]
    keys = [[(x["step"], x["id"], x["text"], x["reward"]) for x in lines] for lines in replies]
    assert keys[0] == keys[1] and len(keys[0]) == 2 * 8
    logs = [read_log(folder / "log.jsonl", "reward") for folder in runs]
    assert [line["rollout_seconds"] for line in logs[0]] == [1000, 1000]  # of the slower process
    names = "loss kl reward reward_std entropy boxes pointing_2d completions/mean_length"
    for one, other in zip(*logs, strict=True):
        for name in names.split():
            assert one[name] == pytest.approx(other[name], abs=1e-4), name
    one, other = (test_grpo.weights_of(folder / "model") for folder in runs)
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    start = test_grpo.weights_of(tiny_checkpoint)
    assert any(not torch.allclose(one[name], start[name], atol=1e-4) for name in one)


def test_the_model_can_be_sharded_by_fsdp2(both):
    """What fsdp2.yaml asks of it: layers sharded on their own, loss and gradients unchanged."""
    plain, sharded = json.loads((both / "sharded-0").read_text())
    assert sharded[0] == pytest.approx(plain[0], abs=1e-5)
    assert sharded[1] == pytest.approx(plain[1], rel=1e-3, abs=1e-6) and len(plain[1]) > 10
    assert sharded[2] < 0.55 * plain[2]
