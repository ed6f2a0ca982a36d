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
# **Time** three minutes on 2 CPU cores. **Needs** nothing from earlier notebooks. **Synthetic**: patients are phantoms. *Nothing
# here is for clinical use.*

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
GPUS = "8xH100"  # number and name; see unireason_lib/planning/machines.yaml

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

from unireason_lib.tutorial import check_versions

print(check_versions())

# %%
from unireason_lib.display import pipeline_figure
from unireason_lib.profiles import load_profile, profile_names
from unireason_lib.tutorial import project_root, publish
from unireason_lib.tutorial.results import aligned

profiles = {name: load_profile(name, OVERRIDES) for name in profile_names()}
root = project_root()
pipeline_figure()

# %% [markdown]
# ## 1 · What changes: a few lines of YAML
#
# A profile is a file of settings. The code reads it and asks for nothing else: there is no branch for large models. These are the
# settings in which the profiles differ that decide what is trained, on what:

# %%
KEYS = """model.base model.dtype model.quantization model.device serialization.size sft.learning_rate sft.batch_size
sft.accumulation sft.lora_rank sft.gradient_checkpointing rl.prompts rl.rollouts rl.learning_rate rl.kl""".split()

lines = [("setting", *profiles)]
for key in KEYS:
    section, name = key.split(".")
    lines.append((key, *(str(one[section][name]) for one in profiles.values())))
print(aligned(lines))


# %% [markdown]
# How many there are in all:

# %%
def leaves(one):
    """Every setting of a profile: name -> value."""
    return {(s, n): v for s, part in one.items() if s != "name" for n, v in part.items()}


small, large = leaves(profiles["laptop"]), leaves(profiles["gpu"])
different = [key for key in small if small[key] != large[key]]
print(f"{len(different)} of {len(small)} settings differ between laptop and gpu")

# %% [markdown]
# ## 2 · True shapes without weights
#
# PyTorch can build a model on the *meta* device: every tensor has its shape and no memory. So the 7B model is here, down to the
# names of its modules. What fine-tuning freezes, what it lets learn, and where adapters go is decided by the code that trains the
# tiny one.

# %%
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from unireason_lib.planning import published, published_config, shape_of
from unireason_lib.training.sft import freeze

lines = [("model", "learns", "frozen", "LoRA, rank 16")]
for name in list(published())[:2]:
    with torch.device("meta"):
        big = Qwen2_5_VLForConditionalGeneration(published_config(name))
    learns, frozen = freeze(big)
    shape = shape_of(name)
    assert (shape.language, shape.vision) == (learns, frozen)  # the planner's arithmetic
    lines.append((name, f"{learns:,}", f"{frozen:,}", f"{shape.adapters(16):,}"))
print(aligned(lines))

# %% [markdown]
# What a question costs in tokens follows from the processor: pictures are resized to multiples of 28 pixels, and a square of 28 is a
# token. A volume of 32 slices is a long prompt; what the model writes and points at is little beside it.

# %%
from unireason_lib.imaging.frame import QWEN_FRAME
from unireason_lib.planning import samples_of

samples = samples_of(QWEN_FRAME, profiles["gpu"].dataset.shape, picture=512)
lines = [("a sample", "pictures", "tokens each", "prompt", "regions", "written", "in all")]
for d, one in samples.items():
    row = (len(one.pictures), one.pictures[0], one.prompt, one.injected, one.written, one.tokens)
    lines.append((d.upper(), *(f"{n:,}" for n in row)))
print(aligned(lines))
publish("tokens of a volume of 32 slices", samples["3d"].prompt, note="prompt, Qwen2.5-VL")

# %% [markdown]
# ## 3 · The bill before it is paid
#
# From tokens follow operations, from operations hours, from hours money. The formulas are in `planning/work.py` and `memory.py`,
# what is assumed of GPUs and of how well they are used in `planning/machines.yaml`. Hours are a range, since nobody knows
# better before the run. As a command: `python -m unireason_lib plan --gpus 8xH100`.

# %%
from unireason_lib.planning import Cluster, bill
from unireason_lib.planning.report import table

gpu = profiles["gpu"]
made = bill(gpu, shape_of(gpu.model.base), Cluster.named(GPUS), samples)  # refused where it cannot fit
print(table(made))
for stage, what in (("sft", "fine-tuning"), ("rl", "outcome RL")):
    found = made.hours(stage)
    publish(f"{what} at the paper's scale", found.high, "h", interval=tuple(found), note=f"foretold, {GPUS}")

# %% [markdown]
# Where does the memory go? The same model, spread in different ways:

# %%
from unireason_lib.planning import STRATEGIES, memory

lines = [("fine-tuning, GB a GPU", "in all", "fits", "largest part")]
for way in STRATEGIES:
    held = memory(shape_of("7b"), Cluster.named(GPUS), way, gpu.sft.batch_size * samples["3d"].tokens)
    part, most = max(held.parts.items(), key=lambda item: item[1])
    lines.append((way, f"{held.total / 1e9:.1f}", "yes" if held.fits else "no", f"{part}: {most / 1e9:.1f}"))
print(aligned(lines))

# %% [markdown]
# What cannot fit is refused, and the message names what can:

# %%
from unireason_lib.errors import PlanError

try:
    bill(gpu, shape_of("7b"), Cluster.named("1xA100"), samples, stages=("sft",))
except PlanError as refused:
    print(refused)

# %% [markdown]
# A free notebook has one T4. The profile `t4` is sized for it: 3B in 4 bits, adapters, volumes of 8 slices.

# %%
from unireason_lib.planning.counts import phantom_rows

t4 = profiles["t4"]
print(
    table(
        bill(
            t4,
            shape_of(t4.model.base),
            Cluster.named("T4"),
            samples_of(QWEN_FRAME, t4.dataset.shape),
            **phantom_rows(t4),
        )
    )
)

# %% [markdown]
# ### Does the arithmetic hold?
#
# It can be tried here. How many operations this machine does in a second is measured with one kind of work, fine-tuning on slices;
# from that and the formulas follows how long other work takes, and that is measured too.

# %%
from unireason_lib.bench.planning import bench_plan

rows = bench_plan(steps=4 if PROFILE == "smoke" else 40, repeats=1 if PROFILE == "smoke" else 2)
for row in rows:
    print(f"{row['name']}: {row['baseline_s']:.1f} s, {row['ours_s']:.1f} s, ratio {row['ratio']:.2f}")
publish("foretold time / measured time", rows[0]["ratio"], note="volumes, from the speed with slices")

# %% [markdown]
# ## 4 · Two processes
#
# On GPUs every process has its own, and they share the work of a step. The same happens here on two cores: `torchrun` starts the
# command `sft` twice, each with a thread, and a step of 16 examples becomes two of 8.

# %%
import shlex
import tempfile
from pathlib import Path
from types import SimpleNamespace

from unireason_lib.dataset.build import phantom_set
from unireason_lib.grounding import build_tiny
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.training.logbook import read_log

scratch = Path(tempfile.mkdtemp())
build_tiny(scratch / "model")
how = SimpleNamespace(shape=(8, 64, 64), per_family=2, prior_studies=0)
phantom_set(scratch / "data", 60, 24, ProcessorFrame(8, 2, 32 * 32, 128 * 128), how)
steps = 4 if PROFILE == "smoke" else 40


# %%
def train(processes):
    """Losses and samples a second of the command, in some processes."""
    out = scratch / f"with-{processes}"
    settings = {
        "steps": steps,
        "batch_size": 16 // processes,
        "log_steps": 1,
        "probe_size": 0,
        "bf16": "false",
    }
    settings |= {"counts_2d": 384, "counts_3d": 144, "muon": 0.0, "learning_rate": 1e-4}
    words = f"-m torch.distributed.run --standalone --nproc_per_node {processes} -m unireason_lib sft --quiet".split()
    words += ["--data", scratch / "data", "--model", scratch / "model", "--out", out]
    words += [word for name, value in settings.items() for word in ("--set", f"sft.{name}={value}")]
    words = [str(word) for word in words]
    print("python", shlex.join(words).replace(str(scratch), "FOLDER"))
    thread = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run([sys.executable, *words], env=thread, check=True, capture_output=True, cwd=root)
    log = out / "log.jsonl"
    rate = read_log(log, "train_runtime")[-1]["train_samples_per_second"]
    return [line["loss"] for line in read_log(log)], rate


# %%
(one, slow), (two, fast) = train(1), train(2)
apart = max(abs(a - b) for a, b in zip(one, two, strict=True))
print(f"\n{len(one)} steps; losses {one[0]:.3f} ... {one[-1]:.3f} and {two[0]:.3f} ... {two[-1]:.3f}")
print(f"apart at most: {apart:.1e}")
print(f"samples a second: {slow:.0f} in one process, {fast:.0f} in two")
publish("two processes against one", fast / slow, "x", note="samples a second, one thread each")
assert apart < 0.01

# %% [markdown]
# The losses are those of one process but for rounding: sums are taken in another order. That is seen best in float32 with a small
# rate; bfloat16 and the laptop's own optimizer, Muon, let a difference in the last digit grow from step to step, as any training
# does. And the examples, 528, fill whole steps of 16: the rest of an epoch, a shorter step, would be divided differently.

# %% [markdown]
# On GPUs the launcher is accelerate's, with a configuration that ships for each way of spreading; the command behind it is the same.
# One that loses a process ends with a message, and the same command goes on from its last checkpoint.

# %%
from unireason_lib.planning.launch import launch_command

for text, way in (("8xH100", "zero3"), ("16xH100", "fsdp2"), ("4xA100", "lora")):
    print(f"{text}, {way}:\n  {launch_command('sft', gpu, Cluster.named(text), way)}\n")

rollouts, rest = made.lines[1], made.lines[2:4]
share = rollouts.hours.high / (rollouts.hours.high + sum(line.hours.high for line in rest))
print(f"of outcome RL, writing replies takes {share:.0%} of the time, by the bill of section 3")

# %% [markdown]
# **Slurm.** One task a node, with all its cores, which starts the node's processes:
#
# ```
# !/bin/bash
# #SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
# export FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# srun --cpus-per-task=$SLURM_CPUS_PER_TASK \
#     bash -c 'NODE=$SLURM_NODEID; accelerate launch --config_file ... --machine_rank $NODE --main_process_ip $FIRST ...'
# ```
#
# **Kubernetes.** Use what your cluster has. A `PyTorchJob` of Kubeflow's training operator (v1) sets `RANK` and `MASTER_ADDR` of each
# node: its container runs the command above after `NODE=$RANK FIRST=$MASTER_ADDR`. With KubeRay, `ablate --ray auto` runs
# one notebook a GPU.
#
# **Rollouts by vLLM.** A server writes replies faster than the trainer. It is given the policy's weights before each generation, and
# knows nothing of boxes: they are stop tokens to it, the crop is cut here, and the longer prompt is sent, of which its prefix
# cache knows all but the crop. With vLLM 0.30 or later:
#
# ```
# VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs --limit-mm-per-prompt.image 256
# accelerate launch ... -m unireason_lib rl ... --set rl.vllm=http://host:8000
# ```
#
# **Curves.** `--set rl.report_to=tensorboard` (or `wandb`, `trackio`) hands all that is logged to a tracker; every reply is in
# `rollouts.jsonl` of the run.

# %% [markdown]
# ## 5 · The authors' release
#
# `IQuestLab/UniReason-Med-Data` has conversations, and pictures of slices. Volumes it has not: they belong to M3D, and who holds them
# says where. Here is a replica in the same folders and columns, made of phantoms.

# %%
from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.release import write_release
from unireason_lib.dataset.sources import SourceSpec
from unireason_lib.training.data import images_from, training_records

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

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    without = training_records(release)
print(
    "without the volumes:",
    len(without),
    "records;",
    str(said[-1].message).replace(str(scratch), "FOLDER")[:110],
    "...",
)
records = training_records(release, m3d_root=scratch / "m3d")
print("with them:          ", len(records), "records")
deep = next(record for record in records if record.dimension == "3d")
slices = images_from(release, m3d_root=scratch / "m3d")(deep)
print(f"\n{deep.question} {deep.options}\n{len(slices)} slices of {slices[0].size}; {deep.reply[:160]}...")

# %%
from unireason_lib.boxes import Box3D
from unireason_lib.display import show_pictures

box = next(box for box in deep.boxes if isinstance(box, Box3D))
middle = int(box.z1 + box.z2) // 2
shown = sorted({max(0, int(box.z1) - 2), int(box.z1), middle, int(box.z2) - 1})
inside = [[box.xy] if box.z1 <= z < box.z2 else [] for z in shown]
show_pictures([QWEN_FRAME.aligned(slices[z]) for z in shown], inside, titles=[f"slice {z}" for z in shown])

# %% [markdown]
# Training on it is training on anything else: `sft --data FOLDER --m3d-root FOLDER`, the same for `rl`, and `evaluate --benchmark
# FOLDER
# --option m3d_root=FOLDER`; notebooks 04, 05 and 06 take `DATA` and `M3D_ROOT`.
#
# Can the volumes be read fast enough for eight GPUs? `python -m unireason_lib bench feeding` compares the seconds that a core
# takes for
# one with those that it may take, by the bill above.

# %%
from unireason_lib.bench.imaging import bench_feeding

feeding = bench_feeding(repeats=1, gpus=GPUS)
for row in feeding:
    print(
        f"{row['name']}: a core may take {row['baseline_s']:.1f} s a volume, and takes {row['ours_s']:.2f} s"
    )
publish(
    "reading volumes: time allowed / time taken",
    min(row["ratio"] for row in feeding),
    "x",
    note=f"a core, {GPUS}",
)

# %% [markdown]
# ## 6 · What comes out
#
# A trained model is a folder in transformers' own form, an adapter one in PEFT's, each with a card written from the run. Merging
# makes one checkpoint of an adapter and its model, which needs neither PEFT nor this library to load.

# %%
import io
from contextlib import redirect_stdout

from unireason_lib.cli import app


def run(*words):
    """A command of this package, and what it says."""
    words, said = [str(word) for word in words], io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(said):
        warnings.simplefilter("ignore")
        app(words, standalone_mode=False)
    said = f"python -m unireason_lib {shlex.join(words)}\n{said.getvalue()}"
    print(said.replace(str(scratch), "FOLDER"))


adapted, merged = scratch / "adapted", scratch / "merged"
few = "--set sft.lora_rank=8 --set sft.steps=4 --set sft.probe_size=0 --set sft.batch_size=4".split()
run("sft", "--data", scratch / "data", "--model", scratch / "model", "--out", adapted, "--quiet", *few)
run("merge", "--model", scratch / "model", "--adapter", adapted / "model", "--out", merged)
plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(merged)
print("\n" + ", ".join(sorted(path.name for path in merged.iterdir())))
print("\n".join((merged / "README.md").read_text().splitlines()[:22]))

# %% [markdown]
# ## Check yourself

# %%
assert samples["3d"].prompt == 150 + 32 * (81 + 2)
assert made.memory["sft"].fits and set(made.memory) == {"sft", "rl", "test"}
assert sum(p.numel() for p in plain.parameters()) == shape_of(merged).total
assert {record.dimension for record in without} == {"2d"} and {record.dimension for record in records} == {
    "2d",
    "3d",
}
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. How many H100 does full fine-tuning of the 7B model need at least? Ask `plan`, then find the part that decides it.
# 2. The bill says that updates of outcome RL cost several times as much as fine-tuning. Which two numbers of the profile make it so?
# 3. What would slices of 512 x 512 cost? Change one setting and read the tokens.
#
# <details><summary>Solutions</summary>
#
# 1. Two for fine-tuning: `plan --gpus 1xH100 --strategy zero3 --stage sft` is refused, with `2xH100` it is not. Sixteen bytes for every
#    parameter that learns, over the number of GPUs, decide. Outcome RL needs more: leave out `--stage`.
# 2. `rl.rollouts` and `rl.epochs`: each question is learnt from sixteen times, three times over.
# 3. `plan --gpus 8xH100 --stage sft --set dataset.shape=[32,512,512]`: 18 x 18 = 324 tokens a slice in place of 81: four times the tokens,
#    and about sixteen times the operations of attention. Without `--stage sft` it is refused: the keys and values of so many
#    replies at once do not fit.
#
# </details>
