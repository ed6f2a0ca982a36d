# %% [markdown]
# # 08 · Scaling up: from two cores to many GPUs
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/08_scaling_up.ipynb)
#
# After this notebook you can
# - say what changes between a laptop, one GPU and a cluster, and what does not;
# - know what a run takes in memory, hours and money before anything is rented, and check the arithmetic behind it;
# - start the same training in several processes, on the authors' release, and get a checkpoint that anything loads.
#
# **Where we stand.** Behind the tour. Every notebook has `PROFILE = "gpu"`; this one is about what that costs, and about what to do
# when one GPU or one process is not enough. Nothing here needs a GPU: shapes are true, weights are not there; processes are two, on
# the CPU; the release is a replica in its form.
#
# **Time** one minute on 2 CPU cores. **Needs** nothing from earlier notebooks. **Synthetic**: patients are phantoms. *Nothing
# here is for clinical use.*

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
GPUS = "8xH100"  # number and name; see unireason_lib/configs/planning.yaml

# %% tags=["setup"]
# Set-up. On Colab: fetch and install the project; elsewhere: only check the installed versions.
import os
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.exists("../unireason_lib"):
    address = "https://github.com/unireason-lab/unireason-lab"
    clone = ["git", "clone", "--quiet", "--depth=1", "--branch=v0.1.0"]
    subprocess.run([*clone, address, "unireason-lab"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "./unireason-lab"], check=True)
    os.chdir("unireason-lab/notebooks")

from unireason_lib.notebooks import check_versions

print(check_versions())

# %%
import pandas as pd
from IPython.display import Markdown

from unireason_lib.config import load_profile
from unireason_lib.display import pipeline_figure
from unireason_lib.notebooks import project_root, publish

profiles = {name: load_profile(name, OVERRIDES) for name in ("smoke", "laptop", "t4", "gpu")}
root = project_root()
pipeline_figure()

# %% [markdown]
# ## 1 · What changes: a few lines of YAML
#
# A profile is a file of settings. The code reads it and asks for nothing else: there is no branch for large models. These are the
# settings in which the profiles differ that decide what is trained, on what:

# %%
KEYS = """model.base model.dtype model.quantization model.device serialization.size sft.learning_rate
sft.per_device_train_batch_size sft.gradient_accumulation_steps sft.gradient_checkpointing grounding.sft_lora_r
grpo.generation_batch_size grpo.num_generations grpo.learning_rate grpo.beta""".split()


def leaves(profile):
    """Every setting of a profile: "section.name" -> value."""
    sections = profile.model_dump(exclude={"name"})
    return {f"{s}.{name}": value for s, section in sections.items() for name, value in section.items()}


settings = pd.DataFrame({name: leaves(profile) for name, profile in profiles.items()}).astype(str)
settings.loc[KEYS]

# %% [markdown]
# How many there are in all:

# %%
different = (settings["laptop"] != settings["gpu"]).sum()
print(f"{different} of {len(settings)} settings differ between laptop and gpu")

# %% [markdown]
# ## 2 · True shapes without weights
#
# PyTorch can build a model on the *meta* device: every tensor has its shape and no memory. So the 7B model is here, down to the
# names of its modules. What fine-tuning freezes, what it lets learn, and where adapters go is decided by the code that trains the
# tiny one.

# %%
from unireason_lib.planning import lora_parameters, parameters, shaped_model
from unireason_lib.training.sft import freeze

rows = []
for name in ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"):
    big = shaped_model(name)
    learns, frozen = freeze(big)
    assert (learns, frozen) == parameters(big)  # language model; vision tower and merger
    rows.append((name, learns, frozen, lora_parameters(big, r=16)))
pd.DataFrame(rows, columns=["model", "learns", "frozen", "LoRA, rank 16"])

# %% [markdown]
# What a forward pass would cost is counted in the same way: `FlopCounterMode` watches the operations of a run without memory.
# A rule of thumb says two operations for every parameter and token, and attention between all pairs of tokens besides.

# %%
from unireason_lib.planning import language_flops

small, tokens = shaped_model("3b"), 3086
counted = language_flops(small, tokens)
text = small.config.text_config
layers = sum(p.numel() for p in small.model.language_model.layers.parameters())
by_hand = 2 * layers * tokens + 2 * text.num_hidden_layers * text.hidden_size * tokens**2
print(
    f"3B, {tokens:,} tokens: {counted:.3g} FLOPs counted, {by_hand:.3g} by hand with half of the attention square"
)
assert 0 < counted - by_hand < 0.08 * counted  # the other half, which fast kernels skip

# %% [markdown]
# What a question costs in tokens follows from the processor: images are resized to multiples of 28 pixels, and a square of 28 is a
# token. A volume of 32 slices is a long prompt; what the model writes and points at is little beside it.

# %%
from unireason_lib.planning import samples_of

samples = samples_of(profiles["gpu"].dataset.shape, image=512)
publish("tokens of a volume of 32 slices", int(samples.prompt["3d"]), note="prompt, Qwen2.5-VL")
samples.T

# %% [markdown]
# ## 3 · The cost before it is paid
#
# From tokens follow operations, from operations hours, from hours money. The formulas are in `planning.py`, what is assumed of GPUs
# and of how well they are used in `configs/planning.yaml`. Hours are a range, since nobody knows better before the run. As a
# command: `python -m unireason_lib plan --gpus 8xH100`.

# %%
from unireason_lib.planning import estimate

gpu = profiles["gpu"]
made = estimate(gpu, GPUS)  # refused where it cannot fit
hours = made.work.groupby("stage")[["hours", "to"]].sum()
for stage, what in (("sft", "fine-tuning"), ("grpo", "outcome RL")):
    low, high = hours.loc[stage]
    publish(f"{what} at the paper's scale", high, "h", interval=(low, high), note=f"predicted, {GPUS}")
Markdown(made.to_markdown())

# %% [markdown]
# Where does the memory go? The same fine-tuning, sharded in different ways, and with adapters:

# %%
from unireason_lib.errors import PlanError
from unireason_lib.planning import SHARDING

for way, overrides in [*((way, "") for way in SHARDING), ("ddp", "grounding.sft_lora_r=16")]:
    try:
        found = estimate(load_profile("gpu", overrides), GPUS, sharding=way, stages=("sft",))
        parts = found.memory.iloc[:, 0]
        held = f"{parts.sum():.1f} GB a GPU, most of it {parts.idxmax()}"
    except PlanError as refused:
        held = f"refused: {refused.found}"
    print(f"{way} {overrides or '(full)'}: {held}")

# %% [markdown]
# What cannot fit is refused, and the message names what can:

# %%
try:
    estimate(gpu, "1xA100", stages=("sft",))
except PlanError as refused:
    print(refused)

# %% [markdown]
# A free notebook has one T4. The profile `t4` is sized for it: 3B in 4 bits, adapters, volumes of 8 slices.

# %%
Markdown(estimate(profiles["t4"], "T4").to_markdown())

# %% [markdown]
# ### Does the arithmetic hold?
#
# It can be tried here. How many operations this machine does in a second is measured with one kind of work, fine-tuning on slices;
# from that and the formulas follows how long other work takes, and that is measured too. One thread each, so that the run on slices
# can be compared with two processes in the next section.

# %%
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from unireason_lib.dataset.build import phantom_set
from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.data import Examples, images_from, training_records
from unireason_lib.training.sft import train_sft

scratch = Path(tempfile.mkdtemp())
build_tiny(scratch / "model")
how = SimpleNamespace(shape=(8, 64, 64), per_family=2, prior_studies=0)
phantom_set(scratch / "data", 24, 10, ProcessorFrame(8, 2, 32 * 32, 128 * 128), how)
steps, rows = (2, 8) if PROFILE == "smoke" else (6, 16)
tiny, images = shaped_model(str(scratch / "model")), images_from(scratch / "data")

# %%
CHANGES = {
    "sft.max_steps": steps,
    "sft.logging_steps": 1,
    "sft.bf16": False,
    "sft.learning_rate": 1e-4,
    "grounding.free_running_questions": 0,
    "grounding.muon_learning_rate": 0.0,
}


# %%
def measured(dimension):
    """Operations of some steps of fine-tuning, seconds of the trainer, and losses."""
    model, processor = load_model(scratch / "model", dtype="float32", device="cpu")
    settings = load_profile("laptop", CHANGES | {"sft.per_device_train_batch_size": rows})
    records = training_records(scratch / "data", {dimension: rows * steps}, seed=settings.sft.seed)
    flops = 0.0
    for one in Examples(records, images, processor):  # the images' features are cached
        flops += language_flops(tiny, len(one.ids), int(one.loss_mask.sum()), "all")
    out = scratch / f"run-{dimension}"
    train_sft(model, processor, records, images, out, settings)
    seconds = read_log(out / "log.jsonl", "train_runtime")[-1]["train_runtime"]
    return flops, seconds, [line["loss"] for line in read_log(out / "log.jsonl")]


# %%
threads = torch.get_num_threads()
torch.set_num_threads(1)
(known, slow, one), (asked, taken, _) = measured("2d"), measured("3d")
torch.set_num_threads(threads)
predicted = asked / (known / slow)
print(f"slices: {known / slow:.2g} FLOP/s; volumes: {predicted:.1f} s predicted, {taken:.1f} s measured")
publish("predicted time / measured time", predicted / taken, note="volumes, from the speed with slices")

# %% [markdown]
# ## 4 · Two processes
#
# On GPUs every process has its own, and they share the work of a step. The same happens here on two cores: `torchrun` starts the
# command `sft` twice, each with a thread, and a step of 16 examples becomes two of 8. One process has been trained on the same
# examples above.

# %%
import shlex

processes, out = 2, scratch / "two"
settings = CHANGES | {"sft.per_device_train_batch_size": rows // processes}
settings |= {"sft_data.records_2d": rows * steps, "sft_data.records_3d": 0}
words = f"-m torch.distributed.run --standalone --nproc_per_node {processes}".split()
words += ["-m", "unireason_lib", "sft", "--quiet"]
words += ["--data", scratch / "data", "--model", scratch / "model", "--out", out]
words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
words = [str(word) for word in words]
print("python", shlex.join(words).replace(str(scratch), "FOLDER"))
thread = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
finished = subprocess.run([sys.executable, *words], env=thread, check=True, capture_output=True, cwd=root)

# %%
two = [line["loss"] for line in read_log(out / "log.jsonl")]
fast = read_log(out / "log.jsonl", "train_runtime")[-1]["train_runtime"]
apart = max(abs(a - b) for a, b in zip(one, two, strict=True))
print(f"{len(one)} steps; losses {one[0]:.3f} ... {one[-1]:.3f} and {two[0]:.3f} ... {two[-1]:.3f}")
print(f"apart at most: {apart:.1e}; {slow:.1f} s in one process, {fast:.1f} s in two")
publish("two processes against one", slow / fast, "x", note="speed, one thread each")
assert apart < 0.01

# %% [markdown]
# The losses are those of one process but for rounding: sums are taken in another order. That is seen best in float32 with a small
# rate; bfloat16 and the laptop's own optimizer, Muon, let a difference in the last digit grow from step to step, as any training
# does. And the examples fill whole steps: the rest of
# an epoch, a shorter step, would be divided differently.

# %% [markdown]
# On GPUs the launcher is accelerate's, with a configuration that ships for each way of sharding (`ddp`, `fsdp2`, `zero3`); the
# command behind it is the same. One that loses a process ends with a message, and the same command goes on from its last checkpoint.
#
# ```
# accelerate launch --config_file unireason_lib/training/launch/zero3.yaml --num_processes 8 \
#     -m unireason_lib sft --profile gpu --data DATA --model MODEL --out runs/sft/NAME
# accelerate launch --config_file unireason_lib/training/launch/fsdp2.yaml --num_processes 16 --num_machines 2 \
#     --machine_rank $NODE --main_process_ip $FIRST --main_process_port 29500 -m unireason_lib sft ...
# ```

# %%
rollouts, *rest = made.work.loc[made.work["stage"] == "grpo", "to"]
print(
    f"of outcome RL, generating replies takes {rollouts / (rollouts + sum(rest)):.0%} of the time (section 3)"
)

# %% [markdown]
# **Slurm.** One task a node, with all its cores, which starts the node's processes:

# %%
SLURM = r"""#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
export FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --cpus-per-task=$SLURM_CPUS_PER_TASK \
    bash -c 'NODE=$SLURM_NODEID; accelerate launch --config_file ... --machine_rank $NODE --main_process_ip $FIRST ...'
"""
print(SLURM)

# %% [markdown]
# **Kubernetes.** Use what your cluster has. A `PyTorchJob` of Kubeflow's training operator (v1) sets `RANK` and `MASTER_ADDR` of each
# node: its container runs the command above after `NODE=$RANK FIRST=$MASTER_ADDR`. An ablation study runs one notebook
# a GPU with `CUDA_VISIBLE_DEVICES=0,1,... ablate --workers N`.
#
# **Rollouts by vLLM.** A server writes replies faster than the trainer. It is given the policy's weights before each generation, and
# knows nothing of boxes: they are stop tokens to it, the crop is cut here, and the longer prompt is sent, of which its prefix
# cache knows all but the crop. With vLLM 0.30 or later:
#
# ```
# VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs --limit-mm-per-prompt.image 256
# accelerate launch ... -m unireason_lib rl ... --set grpo.use_vllm=true --set grpo.vllm_server_base_url=http://host:8000
# ```
#
# **Curves.** `--set grpo.report_to=tensorboard` (or `wandb`, `trackio`) hands all that is logged to a tracker; every reply is in
# `rollouts.jsonl` of the run.

# %% [markdown]
# ## 5 · The authors' release
#
# `IQuestLab/UniReason-Med-Data` has conversations, and images of slices. Volumes it has not: they belong to M3D, and who holds them
# says where. Here is a replica in the same folders and columns, made of phantoms.

# %%
from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.release import write_release
from unireason_lib.dataset.sources import SourceSpec
from unireason_lib.imaging.frame import QWEN_FRAME

sources = (
    SourceSpec("phantom", None, {"dimension": "2d", "count": 8}),
    SourceSpec("phantom", None, {"dimension": "3d", "start": 500_000, "count": 2}),
)
all_train = {"train": 1.0, "val": 0.0, "test": 0.0}
size = tuple(profiles["gpu"].serialization.size)
ours = build(
    BuildConfig(sources, size=size, frame=QWEN_FRAME, per_family=1, prior_studies=0, fractions=all_train),
    scratch / "ours",
).folder
release = write_release(ours, scratch / "UniReason-Med-Data", scratch / "m3d")
for path in sorted([*release.rglob("*.parquet"), *(scratch / "m3d").rglob("*.npy")]):
    print(f"{path.relative_to(scratch)!s:<50}{path.stat().st_size / 1e3:8.1f} kB")

# %%
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    without = training_records(release)
print(
    "without the volumes:",
    len(without),
    "records;",
    str(caught[-1].message).replace(str(scratch), "FOLDER")[:110],
    "...",
)
records = training_records(release, m3d_root=scratch / "m3d")
print("with them:          ", len(records), "records")
deep = next(record for record in records if record.dimension == "3d")
slices = images_from(release, m3d_root=scratch / "m3d")(deep)
print(f"\n{deep.question} {deep.options}\n{len(slices)} slices of {slices[0].size}; {deep.reply[:160]}...")

# %%
from unireason_lib.boxes import Box3D
from unireason_lib.display import show_images

box = next(box for box in deep.boxes if isinstance(box, Box3D))
middle = int(box.z1 + box.z2) // 2
shown = sorted({max(0, int(box.z1) - 2), int(box.z1), middle, int(box.z2) - 1})
inside = [[box.xy] if box.z1 <= z < box.z2 else [] for z in shown]
show_images([QWEN_FRAME.aligned(slices[z]) for z in shown], inside, titles=[f"slice {z}" for z in shown])

# %% [markdown]
# Training on it is training on anything else: `sft --data FOLDER --m3d-root FOLDER`, the same for `rl`, and `evaluate --benchmark
# FOLDER
# --option m3d_root=FOLDER`; notebooks 04, 05 and 06 take `DATA` and `M3D_ROOT`.
#
# Can the volumes be read fast enough for eight GPUs? From the estimate follows how many volumes a second they learn from when they
# are used well, and so how long one may take on each of the cores that read ahead. How long it takes, up to the pixels that the
# processor cuts into patches, is measured here.

# %%
import time

import numpy as np

from unireason_lib.imaging import load_volume, serialize

hours = made.work["hours"][0]  # of fine-tuning on the paper's 50,000 volumes, 170,000 images beside
volumes_per_second = 50_000 / (hours * 3600)
cores = gpu.sft.dataloader_num_workers * int(GPUS.partition("x")[0])
np.save(scratch / "volume.npy", np.random.default_rng(0).random((1, 32, 256, 256), dtype=np.float32))
began = time.perf_counter()
for image in serialize(load_volume(scratch / "volume.npy"), (32, 256, 256)).images():
    np.asarray(QWEN_FRAME.aligned(image))
taken, allowed = time.perf_counter() - began, cores / volumes_per_second
print(
    f"{volumes_per_second:.1f} volumes/s; a core may take {allowed:.1f} s a volume, and takes {taken:.2f} s"
)
publish("reading volumes: time allowed / time taken", allowed / taken, "x", note=f"a core, {GPUS}")

# %% [markdown]
# ## 6 · What comes out
#
# A trained model is a folder in transformers' own form, an adapter one in PEFT's, each with a card written from the run. Merging
# makes one checkpoint of an adapter and its model, which needs neither PEFT nor this library to load.

# %%
import io
from contextlib import redirect_stdout

from transformers import Qwen2_5_VLForConditionalGeneration

from unireason_lib.cli import app


def run(*words):
    """A command of this package, and what it says."""
    words, shown = [str(word) for word in words], io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(shown):
        warnings.simplefilter("ignore")
        app(words, standalone_mode=False)
    text = f"python -m unireason_lib {shlex.join(words)}\n{shown.getvalue()}"
    print(text.replace(str(scratch), "FOLDER"))


# %%
adapted, merged = scratch / "adapted", scratch / "merged"
few = "--set grounding.sft_lora_r=8 --set sft.max_steps=2 --set sft.per_device_train_batch_size=4".split()
few += "--set grounding.free_running_questions=0".split()
run("sft", "--data", scratch / "data", "--model", scratch / "model", "--out", adapted, "--quiet", *few)
run("merge", "--model", scratch / "model", "--adapter", adapted / "model", "--out", merged)
plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(merged)
print("\n" + ", ".join(sorted(path.name for path in merged.iterdir())))
print("\n".join((merged / "README.md").read_text().splitlines()[:22]))

# %% [markdown]
# ## Check yourself

# %%
assert samples.prompt["3d"] == 150 + 32 * (81 + 2)
assert set(made.work["stage"]) == {"sft", "grpo"}
assert sum(p.numel() for p in plain.parameters()) == sum(parameters(shaped_model(str(merged))))
assert {record.dimension for record in without} == {"2d"} and {record.dimension for record in records} == {
    "2d",
    "3d",
}
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. How many H100 does full fine-tuning of the 7B model need at least? Ask `plan`, then find the part that decides it.
# 2. The estimate says that updates of outcome RL cost several times as much as fine-tuning. Which two numbers of the profile make it so?
# 3. What would slices of 512 x 512 cost? Change one setting and read the tokens.
#
# <details><summary>Solutions</summary>
#
# 1. Two for fine-tuning: `plan --gpus 1xH100 --sharding zero3 --stage sft` is refused, with `2xH100` it is not. Sixteen bytes for every
#    parameter that learns, over the number of GPUs, decide. Outcome RL needs more: leave out `--stage`.
# 2. `grpo.num_generations` and `grpo.num_train_epochs`: each question is learnt from sixteen times, three times over.
# 3. `plan --gpus 8xH100 --stage sft --set dataset.shape=[32,512,512]`: 18 x 18 = 324 tokens a slice in place of 81: four times the tokens,
#    and about sixteen times the operations of attention. Without `--stage sft` it is refused: the keys and values of so many
#    replies at once do not fit.
#
# </details>
