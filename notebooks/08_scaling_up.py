# %% [markdown]
# # 08 · Scaling up: what a full-size run costs, and how to launch it
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/08_scaling_up.ipynb)
#
# After this notebook you can
# - derive parameters, FLOPs, training memory and the KV cache of a 7B model from its configuration, without its weights;
# - turn FLOPs into hours and dollars, and say which of the numbers are assumptions;
# - train in several processes, write a Slurm script, read the authors' release, and merge an adapter.
#
# This notebook takes notebooks 04 and 05 to the scale of the paper. **Time** about a minute on 2 CPU cores; no GPU is used. **Needs** no
# other notebook; the tiny base ships in `data/tiny-base`. **Synthetic**: all patients are phantoms. *Not for clinical use.*
#
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740), [Qwen2.5-VL](https://arxiv.org/abs/2502.13923), [LoRA](https://arxiv.org/abs/2106.09685),
# [ZeRO](https://arxiv.org/abs/1910.02054), [FSDP](https://arxiv.org/abs/2304.11277) and [FSDP2](https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html),
# [memory of activations](https://arxiv.org/abs/2205.05198), [grouped-query attention](https://arxiv.org/abs/2305.13245), [FLOPs](https://arxiv.org/abs/2001.08361).

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
import torch
from IPython.display import Markdown
from safetensors.torch import load_file
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from unireason_lib import planning
from unireason_lib.config import load_profile
from unireason_lib.display import pipeline_figure, plot_lines
from unireason_lib.display.figures import INK, LINE_COLORS, AltFigure, legend
from unireason_lib.notebooks import project_root, publish
from unireason_lib.planning import KNOWN, estimate, language_flops

root, gpu = project_root(), load_profile("gpu", OVERRIDES)  # the paper's settings
pipeline_figure()


# %% [markdown]
# ## 1 · Parameters: true shapes without weights
# On PyTorch's *meta* device a tensor has a shape but no storage, so the 7B model can be built here. Its size follows from the hidden size $h$, the
# number of layers $L$, the widths $q$ of all queries and $k$ of all keys of a token, the MLP width $i$ and the vocabulary $V$:
# $$N = L\,(\underbrace{2hq + 2hk}_{\text{attention}} + \underbrace{3hi}_{\text{MLP}}) + \underbrace{L\,(q + 2k + 2h) + h}_{\text{biases, norms}} + \underbrace{2Vh}_{\text{embedding, output layer}},$$
#
# with one $Vh$ if both share a matrix (3B). LoRA of rank $r$ adds $r\,(n + m)$ parameters to a matrix of $n \times m$.
# > **Predict first.** What percentage of the 7B model's parameters does LoRA train, with $r = 16$ on all matrices of the layers?

# %%
def sizes(config):
    """h, L, q, k, i and V of a language model."""
    h, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    q, k = head * config.num_attention_heads, head * config.num_key_value_heads
    return h, config.num_hidden_layers, q, k, config.intermediate_size, config.vocab_size


def language_parameters(config):
    """Parameters of the matrices of the layers, and of the whole language model."""
    h, L, q, k, i, V = sizes(config)
    matrices = L * (2 * h * q + 2 * h * k + 3 * h * i)
    return matrices, matrices + L * (q + 2 * k + 2 * h) + h + (2 - config.tie_word_embeddings) * V * h


for name in ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"):
    model = planning.shaped_model(name)
    config, (language, vision) = model.config.text_config, planning.parameters(model)
    assert language_parameters(config)[1] == language
    percent = 100 * (adapters := planning.lora_parameters(model, r=16)) / (language + vision)
    print(f"{name}: language {language:,}, vision {vision:,} (frozen), LoRA {adapters:,}: {percent:.2f} %")


# %% [markdown]
# ## 2 · FLOPs: a formula and a counter
# A matrix of $n \times m$ costs $2nm$ FLOPs per token; the scores and the weighted sums of attention cost $2 T^2 q$ each per layer. A forward pass over
# $T$ tokens with logits for $T'$ of them, and training on them, take (with $N_\text{matrices}$ the attention and MLP parameters of section 1)
#
# $$F = 2\,T\,N_\text{matrices} + 4\,T^2 q L + 2\,T' V h, \qquad F_\text{training} = 3F,$$
#
# because the backward pass takes two matrix products for each one of the forward pass. The term in $T^2$ is called the *attention square* below; fast
# kernels skip its masked half, which is counted here. PyTorch's `FlopCounterMode` counts the operations of a run on the meta device; both must agree.
# > **Predict first.** A volume of 32 slices is a prompt of about 3,000 tokens. What fraction of the FLOPs is the attention square, $4\,T^2 q L$?

# %%
def forward_flops(config, tokens, logits):
    """FLOPs of a forward pass, and those of the attention square."""
    h, L, q, _, _, V = sizes(config)
    square = 4 * tokens**2 * q * L
    return 2 * tokens * language_parameters(config)[0] + square + 2 * logits * V * h, square


volume = planning.samples_of(gpu.dataset.shape, image=512).loc["3d"]  # a question with its reply, in tokens
assert volume.prompt == 150 + 32 * (9 * 9 + 2)  # slices of 252 x 252: 9 x 9 tokens, two delimiters
by_hand, square = forward_flops(config, volume.tokens, volume.generated)
assert by_hand == language_flops(model, volume.tokens, volume.generated)
assert 3 * by_hand == language_flops(model, volume.tokens, volume.generated, "all")
print(f"{volume.tokens:,} tokens: {by_hand:.3g} FLOPs, {square / by_hand:.1%} of them in attention's square")
flops = {T: forward_flops(config, T, 1) for T in range(2000, 60_001, 2000)}
percent = [(T, 100 * square / total) for T, (total, square) in flops.items()]
half = language_parameters(config)[0] / (2 * config.hidden_size * config.num_hidden_layers)  # q = h
print(f"the square costs as much as the matrices at {half:,.0f} tokens")
plot_lines({"7B": percent}, "tokens", "attention's square, % of FLOPs", reference=("half", 50))


# %% [markdown]
# Less than a tenth: at this length FLOPs are nearly proportional to tokens. The figure shows where the quadratic term takes over.
# ## 3 · Memory of training
# With AdamW in mixed precision a trained parameter takes 16 bytes: weight, gradient and two moments in float32. A frozen parameter takes 4 bytes in
# float32 (full fine-tuning) and 2 in bfloat16 (LoRA). Without sharding, autocast also holds a 16-bit copy of the trained weights. If $G$ GPUs shard
# all of this (ZeRO-3, FSDP2), with gradient checkpointing, each needs
#
# $$M = \underbrace{\frac{16\,N_\text{learns} + 4\,N_\text{frozen}}{G}}_{\text{weights, gradients, optimizer states}} + \underbrace{2 \cdot \frac{2\,N_\text{learns}}{L}}_{\text{two layers gathered}} + \underbrace{B\,T\,(2hL + 2a)}_{\text{activations}} + \underbrace{12\,V \cdot 1024}_{\text{logits, in chunks}} + M_\text{CUDA}.$$
#
# For $B = 2$ sequences of $T$ tokens, checkpointing keeps the input of every layer (2 bytes per entry) and the activations of the layers that are being
# recomputed, $a = 8h + 4q + 4k + 8i$ bytes per token. Logits, at 12 bytes each, exist for 1,024 tokens at a time; $M_\text{CUDA}$ is CUDA's own need.

# %%
def training_memory(config, learns, frozen, gpus, tokens):
    """GB on each of several GPUs that shard weights, gradients and optimizer states."""
    h, L, q, k, i, V = sizes(config)
    parts = {"frozen weights": 4 * frozen / gpus, "weights, gradients, optimizer": 16 * learns / gpus}
    parts |= {"reference model": 0, "weights in use": 2 * 2 * learns / L}
    parts["activations"] = tokens * (2 * h * L + 2 * (8 * h + 4 * q + 4 * k + 8 * i))
    parts |= {"logits": 12 * V * min(tokens, 1024), "keys and values": 0, "CUDA context": 1.5e9}
    return {part: size / 1e9 for part, size in parts.items()}


plan = estimate(gpu, GPUS, sharding="zero3")  # a PlanError where a stage does not fit names what would
count, card = int(GPUS.split("x")[0]), KNOWN["gpus"][GPUS.split("x")[1]]
by_hand = pd.Series(training_memory(config, language, vision, count, volume.tokens * 2))
pd.testing.assert_series_equal(plan.memory["sft, zero3"], by_hand, check_names=False)

# %%
held, lora = {}, load_profile("gpu", "grounding.sft_lora_r=16")
ways = {"every GPU holds all (DDP)": (gpu, "ddp"), "8 GPUs shard (ZeRO-3, FSDP2)": (gpu, "zero3")}
for way, (profile, how) in (ways | {"LoRA, r = 16 (DDP)": (lora, "ddp")}).items():
    held[way] = estimate(profile, "8xB200", sharding=how, stages=("sft",)).memory.iloc[:, 0]  # 180 GB each
    print(f"{way}: {held[way].sum():.0f} GB, most of it {held[way].idxmax()}")
held = pd.DataFrame(held)[lambda table: table.max(axis=1) > 0]
figure = AltFigure(9, 2.3, f"GB on each GPU to fine-tune 7B, by part: {', '.join(held)}")
axes, left = figure.subplots(), held.cumsum() - held
for part, color in zip(held.index, [*LINE_COLORS, "#999999"], strict=False):
    axes.barh(list(held), held.loc[part], left=left.loc[part], color=color, label=part)
axes.axvline(KNOWN["gpus"]["H100"]["memory"], color=INK, linestyle="--", label="memory of an H100")
axes.set(xlabel="GB on each GPU", ylim=(2.5, -0.5))
legend(figure, *axes.get_legend_handles_labels(), "outside upper left")
figure

# %% [markdown]
# Full fine-tuning does not fit on one card of 80 GB: weights, gradients and optimizer states alone take more. Sharded it fits, and so does LoRA.
# ## 4 · Hours and price: an estimate between two bounds
# With $C$ the FLOPs of a whole stage,
# $$t = \frac{C}{G \cdot \text{peak} \cdot u}, \qquad \text{price} = t \cdot G \cdot \text{price per GPU hour}.$$
# $C$ is counted: with checkpointing the forward pass runs twice, so training on a sample takes $4F$, and the frozen vision tower is added. The
# utilization $u$, the proportion of the peak that a run attains, is **assumed**: a good and a poor value give bounds, the estimate is their geometric
# mean. Also assumed (`configs/planning.yaml`): prices (yours: `--price`), numbers of RL questions and of tokens and boxes per reply, and the time to
# launch a decoding step. **Neither memory nor hours were compared with a real run**, and failed runs, tuning and tests come on top. As a command:
# `python -m unireason_lib plan --gpus 8xH100`.

# %%
bounds = [f"{unit}, {bound} bound" for unit in ("hours", "USD") for bound in ("lower", "upper")]
work = plan.work.set_axis(["stage", "part", "FLOPs", *bounds], axis=1)
hours = [work.FLOPs[0] / (count * 1e12 * card["peak"] * u) / 3600 for u in KNOWN["utilization"]["training"]]
price = [hours[0] * count * card["price"][0], hours[1] * count * card["price"][1]]
assert all(abs(a / b - 1) < 1e-9 for a, b in zip([*hours, *price], work.loc[0, bounds], strict=True))
totals = work.groupby("stage")[bounds].sum()
for stage, what in (("sft", "fine-tuning"), ("grpo", "outcome RL")):
    for unit in ("hours", "USD"):
        low, high = totals.loc[stage, [f"{unit}, lower bound", f"{unit}, upper bound"]]
        how = {"interval": (low, high), "note": f"estimate (lower bound to upper bound), {GPUS}"}
        publish(f"{what} at the paper's scale", (low * high) ** 0.5, unit, **how)
Markdown(work.to_markdown(index=False, floatfmt=".3g"))

# %% [markdown]
# *Log-probabilities*: of the replies, under policy and reference model. Of outcome RL, rollouts take by far the fewest FLOPs, but not the fewest hours:
# they decode token by token, and each step takes as long as its launch or as reading all weights and the cache, whichever is longer (here the launch).
# ## 5 · The KV cache of the rollouts
# Generation keeps the keys and values of every token: $2 \cdot 2\,k\,L\,T$ bytes per reply in 16 bits. In grouped-query attention $q / k$ query heads
# share one key-value head, which makes the cache smaller by this factor. The model on the meta device fills a real cache:

# %%
h, L, q, k, *_ = sizes(config)
bytes_of_reply = 2 * 2 * k * L * volume.tokens
cache, embedded = DynamicCache(config=model.config), torch.empty(1, volume.tokens, h, device="meta")
positions = torch.zeros(3, 1, volume.tokens, dtype=torch.long, device="meta")
with torch.no_grad():
    model.model.language_model(inputs_embeds=embedded, position_ids=positions, past_key_values=cache)
assert bytes_of_reply == 2 * sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
together = gpu.grounding.rollout_batch_size * gpu.grpo.num_generations
held_at_once = together * bytes_of_reply / 1e9
assert abs(plan.memory["grpo, zero3"]["keys and values"] - held_at_once) < 1e-6
print(f"{together} replies at a time: {held_at_once:.1f} GB, {q // k} times less than without groups")

# %% [markdown]
# ## 6 · The authors' release as data
# `IQuestLab/UniReason-Med-Data` contains conversations and 2D images; its volumes belong to M3D, and whoever has them passes their folder. Here we read
# a replica made of phantoms, without and with volumes. The release is also read by `sft --data FOLDER --m3d-root M3D` and notebooks 04 to 06.

# %%
import tempfile
import warnings
from pathlib import Path

from unireason_lib.boxes import Box3D
from unireason_lib.dataset.build import phantom_set
from unireason_lib.dataset.release import write_release
from unireason_lib.imaging import QWEN_FRAME
from unireason_lib.training.data import Examples, images_from, training_records

warnings.simplefilter("ignore")  # they count the rows that are left out, and deprecations in packages
scratch, how = Path(tempfile.mkdtemp()), load_profile("gpu", "dataset.per_family=1,dataset.prior_studies=0")
phantom_set(scratch / "phantoms", 5, 1, QWEN_FRAME, how.dataset)  # 5 slices, 1 volume
release = write_release(scratch / "phantoms", scratch / "UniReason-Med-Data", scratch / "m3d")
without = training_records(release)
complete, images = (read(release, m3d_root=scratch / "m3d") for read in (training_records, images_from))
print(f"{len(without)} records without the volumes, {len(complete)} with them; the first with a cuboid:")
print(next(one.reply for one in complete if any(isinstance(box, Box3D) for box in one.boxes)))

# %% [markdown]
# ## 7 · Two processes, the same losses as one
# In data parallelism each process $p$ takes a part of a step's examples. The loss is the mean of the losses $\ell_t$ of the step's $n = \sum_p n_p$
# tokens, so each process divides by $n$, not by its own $n_p$, and gradients are summed (PyTorch's DDP averages them, so trainers multiply the loss by
# the number of processes): $\;\nabla\mathcal{L} = \sum_p \frac{1}{n} \sum_{t \in p} \nabla \ell_t$. By hand, the two halves of a step are computed in
# turn; then `torchrun` starts the command `sft` twice, with 4 of the 8 examples each.
# > **Predict first.** Suppose that each process takes the mean over *its* tokens and the gradients are averaged. Is the result the same?

# %%
from unireason_lib.grounding import load_model
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.checkpoints import merge_adapter
from unireason_lib.training.encoding import Collator
from unireason_lib.training.sft import train_sft

base, steps, batch_size = root / "data" / "tiny-base", 2 if PROFILE == "smoke" else 3, 8
tiny, processor = load_model(base, dtype="float32", device="cpu")


def gradient(examples, tokens):
    """Gradient of the loss summed over some examples and divided by a number of tokens."""
    tiny.zero_grad()
    batch = Collator(processor)(examples)
    labels = batch.pop("labels")[:, 1:].flatten()
    logits = tiny(**batch).logits[:, :-1].flatten(0, 1)
    (torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / tokens).backward()
    return torch.cat([p.grad.flatten() for p in tiny.parameters() if p.grad is not None])


# %%
records = training_records(release, {"2d": batch_size * steps, "3d": 0}, seed=0)
examples = list(Examples(records[:batch_size], images, processor))
halves = examples[::2], examples[1::2]
counts = [sum(int(one.loss_mask[1:].sum()) for one in half) for half in halves]
whole = gradient(examples, sum(counts))
summed = sum(gradient(half, sum(counts)) for half in halves)
averaged = sum(gradient(half, own) / 2 for half, own in zip(halves, counts, strict=True))
summed, averaged = ((one - whole).norm() / whole.norm() for one in (summed, averaged))
print(f"Tokens of the two processes: {counts}. Relative distance from the gradient of one process:")
print(f"divided by all tokens {summed:.1e}, mean of the two means {averaged:.1e}")

# %%
common = {"sft.max_steps": steps, "sft.logging_steps": 1, "sft.bf16": False, "sft.learning_rate": 1e-4}
common |= {"grounding.muon_learning_rate": 0.0, "grounding.free_running_questions": 0, "model.tower": None}
two = common | {"sft.per_device_train_batch_size": batch_size // 2, "sft_data.records_2d": len(records)}
words = "-m torch.distributed.run --standalone --nproc_per_node 2 -m unireason_lib sft --quiet".split()
words += [f"--data={release}", f"--model={base}", f"--out={scratch / 'two'}"]
words += [f"--set={name}={value}" for name, value in two.items()]
print(" ".join(["python", *words]).replace(str(scratch), "FOLDER").replace(str(root), "."))
environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True, cwd=root)
one = load_profile("laptop", common | {"sft.per_device_train_batch_size": batch_size})
train_sft(tiny, processor, records, images, scratch / "one", one)
losses = pd.DataFrame({n: pd.DataFrame(read_log(scratch / n / "log.jsonl")).loss for n in ("one", "two")})
apart = (losses.one - losses.two).abs().max()
publish("two processes against one", apart, note="largest difference of a loss, float32")
losses

# %% [markdown]
# It is not the same: a mean of two means gives more weight to each token of the half with fewer tokens. The two runs, whose losses are divided by all
# tokens, agree up to rounding. That their losses rise means little: each step has other examples, and so few steps teach nothing.
# ## 8 · Launching on a cluster
# On GPUs `accelerate launch` starts the same command, with a configuration for each way of sharding (`ddp`, `fsdp2`, `zero3`). After a crash the same
# command resumes from the last checkpoint. Slurm starts one task per node, and the task starts the node's processes.

# %%
SLURM = [
    "#!/bin/bash",
    "#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --time=08:00:00",
    'export FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    "srun --cpus-per-task=$SLURM_CPUS_PER_TASK bash -c 'accelerate launch --num_processes $((8 * SLURM_NNODES)) \\",
    "    --config_file unireason_lib/training/launch/fsdp2.yaml --num_machines $SLURM_NNODES \\",
    "    --machine_rank $SLURM_NODEID --main_process_ip $FIRST --main_process_port 29500 \\",
    "    -m unireason_lib sft --profile gpu --data DATA --model MODEL --out runs/sft/NAME'",
]
(scratch / "sft.sbatch").write_text(script := "\n".join(SLURM))
subprocess.run(["bash", "-n", scratch / "sft.sbatch"], check=True)  # the syntax: there is no cluster here
print(script)

# %% [markdown]
# ## 9 · An adapter merged into its model
# LoRA learns $B \in \mathbb{R}^{n \times r}$ and $A \in \mathbb{R}^{r \times m}$ beside a frozen $W$; merged, $W' = W + \frac{\alpha}{r} B A$. The merged
# folder is a plain checkpoint: it needs neither PEFT nor this library to load. As a command: `python -m unireason_lib merge`.

# %%
tiny, processor = load_model(base, dtype="float32", device="cpu")
adapted = load_profile("laptop", common | {"grounding.sft_lora_r": 8})
folder = train_sft(tiny, processor, records, images, scratch / "adapted", adapted)
merged = Qwen2_5_VLForConditionalGeneration.from_pretrained(merge_adapter(base, folder, scratch / "merged"))
before, adapter = load_model(base, dtype="float32")[0], load_file(folder / "adapter_model.safetensors")
name = "model.language_model.layers.0.self_attn.q_proj"
A, B = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
W, scale = before.get_submodule(name).weight, adapted.grounding.lora_alpha / adapted.grounding.sft_lora_r
torch.testing.assert_close(merged.get_submodule(name).weight, W + scale * B @ A)
print(f"W {tuple(W.shape)}, B {tuple(B.shape)}, A {tuple(A.shape)}: merged, it is W + {scale:g} BA")

# %% [markdown]
# ## Check yourself

# %%
assert script.startswith("#!/bin/bash\n#SBATCH")
assert summed < 1e-4 and apart < 1e-3, "two processes must give the losses of one"
assert {one.dimension for one in without} == {"2d"} and {one.dimension for one in complete} == {"2d", "3d"}
print("all checks passed")

# %% [markdown]
# **Remember**: count what can be counted, name what is assumed, compare before renting a GPU. **Next**: appendices [90](90_tiny_base.ipynb) (the small
# model) and [91](91_study_statistics.ipynb) (the statistics), or a run of your own ([commands](../unireason_lib/README.md#commands)).
# ## Exercises
# 1. How many GPUs of one kind does full fine-tuning of the 7B model need at least? Which part of the memory decides?
# 2. Why do the updates of outcome RL cost several times as much as fine-tuning? Predict the ratio from settings of the profile (`gpu.sft`, `gpu.grpo`)
#    and the assumed numbers of records and questions (`KNOWN["sft"]`, `KNOWN["grpo"]`).
# 3. What do slices of 512 x 512 cost compared with 256 x 256, in tokens of the prompt and in FLOPs of a forward pass?
#
# Solutions: [`solutions/08_scaling_up.py`](solutions/08_scaling_up.py).
