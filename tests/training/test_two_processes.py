"""Two processes train one model: what several GPUs do, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unireason_lib.grounding import load_model
from unireason_lib.io import read_lines
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.sft import train_sft

from .conftest import quick

ROOT = Path(__file__).parents[2]
ONE_PASS = {"sft__gradient_accumulation_steps": 1}

SFT = """
import errno, os, signal, sys
from pathlib import Path
import pytest
from torch import distributed
from transformers import TrainerCallback
from unireason_lib.config import load_profile
from unireason_lib.errors import TrainingError, UniReasonError
from unireason_lib.grounding import load_model
from unireason_lib.training import checkpoints
from unireason_lib.training.data import Examples, images_from, training_records
from unireason_lib.training.sft import train_sft

data, checkpoint, out, overrides = sys.argv[1:]
rank, out = int(os.environ["RANK"]), Path(out)
records, images = training_records(data), images_from(data)

def run(name, callbacks=(), overrides=overrides):
    profile, loaded = load_profile("smoke", overrides), load_model(checkpoint, device="cpu")
    return train_sft(*loaded, records, images, out / name, profile, callbacks=callbacks)

made = run("both")
assert (made / "model.safetensors").is_file(), "every process returns when the model is there"

class Poison(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if rank == 1 and state.global_step == 2:
            model.get_input_embeddings().weight.data.fill_(float("nan"))

class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if rank == 1 and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)

for name, callback in (("nan", Poison()), ("interrupted", Interrupt())):
    try:
        run(name, [callback])
    except (TrainingError, KeyboardInterrupt) as error:
        (out / f"{name}-{rank}").write_text(str(error))

def full(records):
    raise OSError(errno.ENOSPC, "no space")

if rank == 0:  # one process that raised left the other waiting for ever
    (out / "damaged").mkdir()
    (out / "damaged" / "settings.json").write_text('{"settings": {}}')
for keep in (True, False):  # each record was listed by both
    how = {"max_length": 10, "too_long": out / f"long-{keep}.jsonl", "keep": keep}
    examples = Examples(records[:4], images, load_model(checkpoint, device="cpu")[1], **how)
    with pytest.raises(IndexError):
        examples[0]
with pytest.MonkeyPatch.context() as patch:
    if rank == 0:
        patch.setattr(checkpoints, "serialization_of", full)
    for name in ("damaged", "full"):
        try:
            run(name)
        except Exception as error:
            (out / f"failed-{name}-{rank}").write_text(str(error))
run("interrupted")
try:
    run("both", overrides=overrides + ", sft.learning_rate=0.5")
except UniReasonError as error:
    (out / f"refused-{rank}").write_text(str(error))
distributed.barrier()
distributed.destroy_process_group()
"""

SHARDED = """
import sys
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from unireason_lib.grounding import load_model
from unireason_lib.training.data import Examples, images_from, training_records
from unireason_lib.training.encoding import Collator
from unireason_lib.training.sft import freeze

data, checkpoint, out = sys.argv[1:]
distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
model, processor = load_model(checkpoint, device="cpu")
freeze(model)
examples = Examples(training_records(data)[:4], images_from(data), processor)
batch = dict(Collator(processor)([examples[k] for k in range(4)]))
results = []
for sharded in (False, True):
    if sharded:
        for layer in model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    loss = model(**batch).loss
    loss.backward()
    norms = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            whole = parameter.grad.full_tensor() if sharded else parameter.grad
            norms[name] = float(whole.norm())
    held = sum((p.to_local() if sharded else p).numel() for p in model.parameters())
    results.append((float(loss.detach()), norms, held))
    model.zero_grad(set_to_none=True)
if distributed.get_rank() == 0:
    torch.save({"plain": results[0], "sharded": results[1]}, out)
distributed.barrier()
distributed.destroy_process_group()
"""


def launch(program, folder, *arguments):
    """Run a program in two processes that meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(port), str(folder / "train.py"), *map(str, arguments)]
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_make_one_run_and_decide_together(data, tiny_checkpoint, tmp_path):
    profile = quick(**ONE_PASS)
    settings = profile.sft.model_dump()
    overrides = ", ".join(
        [
            *(f"sft.{k}={settings[k]}" for k in ("max_steps", "learning_rate", "bf16")),
            "sft.gradient_accumulation_steps=1, grounding.muon_learning_rate=0.0",
        ]
    )
    launch(SFT, tmp_path / "program", data, tiny_checkpoint, tmp_path, overrides)
    # one process with batches twice as large sees the same examples
    model, processor = load_model(tiny_checkpoint, device="cpu")
    alone = quick(**ONE_PASS, sft__per_device_train_batch_size=4)
    records, images = training_records(data), images_from(data)
    train_sft(model, processor, records, images, tmp_path / "alone", alone)
    two, one = (read_log(tmp_path / name / "log.jsonl") for name in ("both", "alone"))
    assert [line["step"] for line in two] == [1, 2, 3, 4]  # each once
    # the log was that of the first process: TRL's metrics are of both
    for key, tolerance in {"loss": 1e-3, "mean_token_accuracy": 1e-3, "num_tokens": 64}.items():
        values = [[line[key] for line in lines] for lines in (two, one)]
        assert values[0] == pytest.approx(values[1], abs=tolerance), key
    # one process that raised left the other waiting for ever
    errors = [(tmp_path / f"nan-{rank}").read_text() for rank in (0, 1)]
    assert "another in another process" in errors[0] and "found nan" in errors[1]
    for rank in (0, 1):
        assert "stopped at step 1" in (tmp_path / f"interrupted-{rank}").read_text()
        assert "learning_rate was" in (tmp_path / f"refused-{rank}").read_text()
        assert "hash" in (tmp_path / f"failed-damaged-{rank}").read_text()
        assert "space on the disk" in (tmp_path / f"failed-full-{rank}").read_text()
    for keep in (True, False):
        assert len(read_lines(tmp_path / f"long-{keep}.jsonl")) == 4
    resumed = read_log(tmp_path / "interrupted" / "log.jsonl")
    expected = [line["loss"] for line in two]
    assert [line["loss"] for line in resumed] == pytest.approx(expected, abs=1e-5)


def test_the_model_can_be_sharded_by_fsdp2(data, tiny_checkpoint, tmp_path):
    """What fsdp2.yaml asks of it: layers sharded on their own, loss and gradients unchanged."""
    launch(SHARDED, tmp_path / "program", data, tiny_checkpoint, tmp_path / "results.pt")
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    (plain, norms, whole), (loss, sharded, held) = results["plain"], results["sharded"]
    assert loss == pytest.approx(plain, abs=1e-5)
    assert sharded.keys() == norms.keys() and len(norms) > 10
    assert all(sharded[name] == pytest.approx(norms[name], rel=1e-3, abs=1e-6) for name in norms)
    assert held < 0.55 * whole
