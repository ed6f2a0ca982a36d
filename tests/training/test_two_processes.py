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

from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.sources import SourceSpec
from unireason_lib.grounding import load_model
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.logbook import read_lines, read_log
from unireason_lib.training.sft import SFTSettings, fine_tune

from .conftest import FRAME

ROOT = Path(__file__).parents[2]

SFT = """
import json, sys
from torch import distributed
from unireason_lib.grounding import load_model
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.logbook import Probe
from unireason_lib.training.sft import SFTSettings, fine_tune
data, checkpoint, out, settings = sys.argv[1:]
model, processor = load_model(checkpoint, device="cpu")
probe = Probe("answers", 2, lambda model, processor: {"rank": distributed.get_rank()})
made = fine_tune(model, processor, training_records(data), images_from(data), out,
                 SFTSettings(**json.loads(settings)), probes=[probe])
assert (made / "model.safetensors").is_file(), "every process returns when the model is there"
distributed.barrier()
distributed.destroy_process_group()
"""

RL = """
import json, sys
from torch import distributed
from unireason_lib.grounding import load_model
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.rl import RLSettings, reinforce
data, checkpoint, out, settings = sys.argv[1:]
model, processor = load_model(checkpoint, device="cpu")
made = reinforce(model, processor, training_records(data), images_from(data), out, RLSettings(**json.loads(settings)))
assert (made / "model.safetensors").is_file(), "every process returns when the model is there"
if distributed.is_initialized():
    distributed.barrier()
    distributed.destroy_process_group()
"""


DIES = """
import os, signal
from pathlib import Path
from torch import distributed
from unireason_lib.training.logbook import Probe
def dies(model, processor):
    "The second process is killed once, in the middle of the run."
    once = Path(__file__).with_name("died")
    if distributed.get_rank() == 1 and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()
    return {}
"""

SHARDED = """
import sys
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from unireason_lib.grounding import load_model
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.encoding import Collator
from unireason_lib.training.examples import Examples
from unireason_lib.training.sft import freeze
data, checkpoint, out = sys.argv[1:]
distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
model, processor = load_model(checkpoint, device="cpu")
freeze(model)
examples = Examples(training_records(data)[:4], images_from(data), processor)
batch = dict(Collator(processor)([examples[k] for k in range(4)]))
losses = []
for spread in (False, True):
    if spread:
        for layer in model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    loss = model(**batch).loss
    loss.backward()
    norms = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            whole = parameter.grad.full_tensor() if spread else parameter.grad
            norms[name] = float(whole.norm())
    held = sum((p.to_local() if spread else p).numel() for p in model.parameters())
    losses.append((float(loss.detach()), norms, held))
    model.zero_grad(set_to_none=True)
if distributed.get_rank() == 0:
    torch.save({"plain": losses[0], "spread": losses[1]}, out)
distributed.barrier()
distributed.destroy_process_group()
"""


def launch(program, processes, folder, *arguments, fails=False, before=()):
    """Run a program in processes that meet; what was said on stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(program, encoding="utf-8")
    command = [sys.executable, *before]
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
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, str(folder / "train.py"), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set of slices."""
    config = BuildConfig(
        (SourceSpec("phantom", None, {"dimension": "2d", "count": 8}),),
        size=(4, 64, 64),
        frame=FRAME,
        prior_studies=0,
        fractions={"train": 1.0, "val": 0.0, "test": 0.0},
    )
    return build(config, tmp_path_factory.mktemp("data") / "set").folder


def test_two_processes_make_one_run(data, tiny_checkpoint, tmp_path):
    settings = {
        "steps": 4,
        "learning_rate": 1e-3,
        "accumulation": 1,
        "save_steps": 2,
        "log_steps": 1,
    }
    settings |= {"bf16": False, "keep_features": True}
    out, both = tmp_path / "both", json.dumps(settings | {"batch_size": 2})
    launch(SFT, 2, tmp_path, data, tiny_checkpoint, out, both)
    lines = [
        json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]  # each once
    assert [line["answers"] for line in lines if "answers" in line] == [{"rank": 0}] * 2
    load_model(out / "model", device="cpu")
    # one process with batches twice as large sees the same examples, and so has the same losses
    alone = SFTSettings(**(settings | {"batch_size": 4}))
    model, processor = load_model(tiny_checkpoint, device="cpu")
    fine_tune(
        model, processor, training_records(data), images_from(data), tmp_path / "alone", alone
    )
    losses = [
        [line["loss"] for line in read_log(run / "log.jsonl")] for run in (out, tmp_path / "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_launcher_may_start_a_single_process(data, tiny_checkpoint, tmp_path):
    settings = {
        "steps": 2,
        "batch_size": 2,
        "accumulation": 1,
        "save_steps": 50,
        "log_steps": 1,
        "bf16": False,
    }
    program = SFT.replace("distributed.get_rank()", "0")
    with_launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    out = tmp_path / "out"
    launch(
        program,
        1,
        tmp_path / "program",
        data,
        tiny_checkpoint,
        out,
        json.dumps(settings),
        before=with_launcher,
    )
    assert len(read_log(out / "log.jsonl")) == 2


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
            sorted(
                (line["step"], line["id"], line["text"])
                for line in read_lines(out / "rollouts.jsonl")
            )
        )
    assert replies[0] == replies[1] and len(replies[0]) == 3 * 16
    for one, other in zip(*logs, strict=True):
        for key in ("loss", "kl", "reward", "reward_std", "entropy"):
            assert one[key] == pytest.approx(other[key], abs=1e-4), key
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def test_a_killed_process_ends_the_run_and_the_next_one_goes_on(data, tiny_checkpoint, tmp_path):
    settings = {
        "steps": 6,
        "learning_rate": 1e-3,
        "accumulation": 1,
        "batch_size": 2,
        "save_steps": 2,
        "log_steps": 1,
    }
    given = json.dumps(settings | {"bf16": False, "keep_features": True})
    whole = SFT.replace(
        'lambda model, processor: {"rank": distributed.get_rank()}', "dies"
    ).replace('", 2', '", 3')
    program = DIES + whole
    said = launch(
        program, 2, tmp_path / "program", data, tiny_checkpoint, tmp_path / "run", given, fails=True
    )
    assert "SIGKILL" in said
    assert (tmp_path / "run" / "checkpoint-2").is_dir() and not (
        tmp_path / "run" / "model"
    ).exists()
    launch(program, 2, tmp_path / "program", data, tiny_checkpoint, tmp_path / "run", given)
    launch(program, 2, tmp_path / "program", data, tiny_checkpoint, tmp_path / "other", given)
    broken, unbroken = (
        [line["loss"] for line in read_log(tmp_path / run / "log.jsonl")]
        for run in ("run", "other")
    )
    assert len(broken) == 6 and broken == pytest.approx(unbroken, abs=1e-5)


def test_the_model_can_be_spread_by_fsdp2(data, tiny_checkpoint, tmp_path):
    """What the configuration fsdp2.yaml asks of it: layers sharded on their own, loss and gradients unchanged."""
    launch(SHARDED, 2, tmp_path / "program", data, tiny_checkpoint, tmp_path / "found.pt")
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    (plain, norms, whole), (spread, sharded, held) = found["plain"], found["spread"]
    assert spread == pytest.approx(plain, abs=1e-5)
    assert sharded.keys() == norms.keys() and len(norms) > 10
    assert all(sharded[name] == pytest.approx(norms[name], rel=1e-3, abs=1e-6) for name in norms)
    assert held < 0.55 * whole
