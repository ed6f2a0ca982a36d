# %% [markdown]
# # 90 · The tiny base: what the small model learns before it sees a scan
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/90_tiny_base.ipynb)
#
# After this notebook you can
# - say what the shipped base was taught, what was withheld from it, and which of its skills are above chance;
# - write the auxiliary attention loss and the update of Muon by hand, and reproduce the library's values;
# - tell a falling loss from a learnt skill: the letter of an answer comes late, abruptly, or not at all.
#
# This step comes before the pipeline. The paper fine-tunes Qwen2.5-VL-7B-Instruct, which two CPU cores cannot run. `data/tiny-base` replaces it: the
# same architecture with a few million parameters, trained on exercises that a program generates. This appendix, best read after 04, shows where the
# small model's skills and weaknesses come from.
#
# **Time** about a minute on 2 CPU cores; a GPU is not used. **Needs** no other notebook. **Synthetic**: everything. *Not for clinical use.*
#
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740), [Qwen2.5-VL](https://arxiv.org/abs/2502.13923); letters of options:
# [symbol binding](https://arxiv.org/abs/2210.12353), [induction heads](https://arxiv.org/abs/2209.11895); auxiliary targets:
# [guided attention](https://arxiv.org/abs/1710.08969), [deeply supervised nets](https://arxiv.org/abs/1409.5185); optimizers:
# [AdamW](https://arxiv.org/abs/1711.05101), [Muon](https://kellerjordan.github.io/posts/muon), [Muon at scale](https://arxiv.org/abs/2502.16982).

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0

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
import json
import re
import shutil

import torch
from transformers.utils import logging

from unireason_lib import display
from unireason_lib.boxes import Box3D, parse_boxes
from unireason_lib.config import load_profile
from unireason_lib.dataset.sources import phantom
from unireason_lib.evaluation import wilson
from unireason_lib.grounding import load_model
from unireason_lib.notebooks import project_root, publish
from unireason_lib.tiny_base import HELD_OUT, STAGES, Plan, exercise, pretrain, replies
from unireason_lib.tiny_base.guidance import HEADS, WEIGHT, Guide
from unireason_lib.tiny_base.pretraining import Steps
from unireason_lib.training.optim import FloatMuon

logging.disable_progress_bar()
profile, smoke = load_profile(PROFILE, OVERRIDES), PROFILE == "smoke"
root, BASE = project_root(), project_root() / "data" / "tiny-base"
display.pipeline_figure()

# %% [markdown]
# ## 1 · What it must not know
# Notebooks 04, 05 and 07 ask what fine-tuning and RL teach about scans, so the base must know no organ, no lesion, no volume, and no crop inside a
# reply. (This holds for the language model; notebook 04 replaces the vision tower by one trained on phantoms, see `data/README.md`.) Like any
# pretrained model it may be able to choose among options, put boxes on shapes and tell images apart. Exercise $k$ of a stage is a function of $k$ and
# of the seed. No exercise may contain an anatomical or clinical word, or a cuboid:

# %%
exercises = {stage: [exercise(stage, k, SEED) for k in range(60 if smoke else 250)] for stage in STAGES}
every = [one for several in exercises.values() for one in several]
anatomy = {word for name in phantom.LABELS.values() for word in name.split()} - {"left", "right"}
clinic = {"organ", "patient", "scan", "slice", "slices", "volume", "axial", "CT", "MRI"}
for one in every:
    text = f"{one.question} {one.reply}"
    assert not (anatomy | clinic) & set(re.findall(r"[A-Za-z]+", text)), text
    assert not any(isinstance(box, Box3D) for box in parse_boxes(text)), text
print(f"{len(every)} exercises contain none of {len(anatomy | clinic)} words, and no cuboid.")
for stage, weights in STAGES.items():
    print(f"{stage:<16}{', '.join(weights)}")

# %% [markdown]
# Exercises and scans still resemble each other, on purpose: both have the same syntax of boxes, words for positions and names of textures; in some
# images a large oval contains the shapes; *close up* adds an enlarged part as a further image, *span of images* asks in which of several images a shape
# lies. New in fine-tuning are organs, lesions, cuboids, and crops inside a reply.
# ## 2 · What it is taught
# **Shapes** on a noisy background: names, shades, textures, sizes and contrasts vary widely; the box of a shape is the bounding box of its pixels.

# %%
scenes = [exercise("shapes", k, SEED).images[0] for k in range(8)]
shapes = [", ".join(shape.name for shape in scene.shapes) for scene in scenes]
boxes = [[shape.box for shape in scene.shapes] for scene in scenes]
display.show_images([scene.pixels for scene in scenes], boxes, shapes)

# %% [markdown]
# **Questions** are answered by looking, or by comparing two numbers. A comparison is written **right after its numbers** (*Left edges at 8 and 31:
# to the left*): later tokens can use a result only once it is written. Exercises called `pairs` train this step many times each.
#
# > **Predict first.** In *relation of boxes* below, which of the four options follows from the two boxes?

# %%
for name in ("pairs", "relation of boxes", "letter", "span of images"):
    one = next(one for one in every if one.name == name and len(one.reply) > 12)
    print(f"--- {name}, {len(one.images)} images\n{one.question}\n> {one.reply}\n")

# %% [markdown]
# Here is one exercise of each kind: the first line of its question and the last line of its reply. Section 7 measures most of these skills.

# %%
for name, one in {one.name: one for one in reversed(every)}.items():
    question, reply = one.question.splitlines()[0], one.reply.splitlines()[-1]
    print(f"{name:<21}{question[:66]:<68}> {reply[:50]}")

# %% [markdown]
# ## 3 · The plan of stages
# Every answer needs its letter, and choosing it is a skill of its own that emerges abruptly (section 6): so text comes first, then boxes, then all.
# Each group of a step has its own forward pass, so that short exercises are not padded to the length of long ones. The learning rate rises
# to $\eta_{\max}$ in $w$ steps, then falls to a tenth by step $S$: $\eta(s) = \eta_{\max}\,(0.1 + 0.45\,(1 + \cos \pi \frac{s - w}{S - w}))$.

# %%
plan, first = Plan(), 0
for proportion, groups in plan.stages:
    last = first + round(proportion * plan.steps)
    print(f"steps {first:>5} to {last:>5}: {', '.join(f'{number} {name}' for name, number in groups)}")
    first = last

# %% [markdown]
# ## 4 · Auxiliary targets: where attention heads should look
# To answer `B. Ring` a model must find the conclusion among the options and copy the letter before it: several steps, each useless without the others.
# The true targets of these steps are known: four attention heads are trained towards them, a fifth towards the shape whose box is written:
#
# | head | from | to |
# | --- | --- | --- |
# | *phrase* | last token of an option, and of its text in the conclusion | all tokens of that text |
# | *mark* | every token of an option | the letter before it |
# | *answer* | the token before an answer letter | the end of the conclusion |
# | *option* | the same token | the end of the option with the same text |
# | *look* | tokens of a box, or of a shape's name | image tokens of the shape |
#
# The heads form a chain over three layers. *Phrase* gathers an option, or the conclusion, in its last token; *mark* adds the letter to the option;
# *answer* brings the conclusion to where a letter is due; *option* finds the option with the same content, whose letter can be copied from there (an
# induction head). With $a^h_{ts}$ the attention of head $h$ from token $t$ to its target $s$, $\mathcal{T}_h$ all such pairs, a weight $\gamma$ (in
# the code `WEIGHT`) and $\mathcal{L}_\text{CE}$ the cross entropy of the reply, the loss is
#
# $$\mathcal{L} = \mathcal{L}_\text{CE} + \gamma\,\Big(\sum_h \frac{1}{|\mathcal{T}_h|} \sum_{(t, s) \in \mathcal{T}_h} -\log a^h_{ts} \;+\; \mathcal{L}_\text{letters} + \mathcal{L}_\text{edges} + \mathcal{L}_\text{covered}\Big).$$
#
# The other terms predict letters and edges of boxes from early layers, and from the vision tower's output what each image token covers. Nothing is
# added to the architecture, and fine-tuning uses none of these terms.

# %%
model, processor = load_model(BASE, dtype="float32", device="cpu")
guide = Guide(model, processor.tokenizer)  # switches to attention that returns its weights
one_step = Plan(stages=((1.0, (("one image", 12 if smoke else 40),)),), seed=SEED + 1)
((_, batch, targets),) = Steps(one_step, processor)[0]
labels = batch.pop("labels")
output = model.model(**batch, output_attentions=True, output_hidden_states=True)


def attention_on_targets(attentions, pairs):
    """Head -> the attention from each token to each of its targets."""
    by_head = {}
    for index, (name, (layer, head)) in enumerate(HEADS.items()):  # which head gets which target
        row, _, source, target = pairs[pairs[:, 1] == index].long().T
        by_head[name] = attentions[layer][row, head, source, target]
    return by_head


# %%
others = {name: getattr(targets, name)[:0] for name in ("letters", "edges", "tokens")}
weights = attention_on_targets(output.attentions, targets.attention)
by_hand = WEIGHT * sum(-(values + 1e-6).log().mean() for values in weights.values() if len(values))
by_library = guide.loss(output, batch["input_ids"], targets._replace(**others))
assert torch.isclose(by_hand, by_library, rtol=1e-4)
print(f"weighted loss of attention: {by_hand:.4f} by hand, {by_library:.4f} by the library")

# %%
torch.manual_seed(SEED)
with torch.no_grad():
    random_output = type(model)(model.config).model(**batch, output_attentions=True)


def attention_to_all_targets(attentions):
    """Head -> median and quartiles, over tokens, of the attention to all targets of a token."""
    by_head = {}
    for index, (name, values) in enumerate(attention_on_targets(attentions, targets.attention).items()):
        pairs = targets.attention[targets.attention[:, 1] == index].long()
        tokens, place = torch.unique(pairs[:, [0, 2]], dim=0, return_inverse=True)
        totals = torch.zeros(len(tokens)).index_add(0, place, values.detach())
        by_head[name] = tuple(totals.quantile(torch.tensor([0.5, 0.25, 0.75])).tolist())
    return by_head


looks = {"shipped base": attention_to_all_targets(output.attentions)}
looks["random weights"] = attention_to_all_targets(random_output.attentions)
display.plot_intervals(looks, "attention of a token to all its targets (median, quartiles)", form=".2f")


# %% [markdown]
# A head that looks where it should has its marker near 1 (blue); with random weights (orange) attention is spread over all tokens.
# ## 5 · Two optimizers, one formula
# AdamW trains embeddings, norms and biases, Muon the matrices of the layers. With the rate $\eta$ and the weight decay $\lambda$, both take
# $\theta \leftarrow (1 - \eta\lambda)\,\theta - \eta\,u$ with
#
# $$u_\text{AdamW} = \frac{\hat m}{\sqrt{\hat v} + \epsilon}, \qquad u_\text{Muon} = 0.2\,\sqrt{\max(p, q)}\;U V^\top .$$
#
# Here $\hat m$ and $\hat v$ are the running means of the gradient and of its square; $U \Sigma V^\top$ is the SVD of Muon's momentum $M$, a matrix of
# $p \times q$, and the factor gives entries of about the size of AdamW's. Without $\Sigma$ all singular values are alike: all directions of a matrix
# are updated equally. Instead of an SVD, Muon starts from $X = M / \lVert M \rVert_F$ and five times sets $X \leftarrow aX + (bA + cA^2)X$
# with $A = XX^\top$. At the first step, below, $M$ is a multiple of the gradient, and $\hat m / \sqrt{\hat v}$ is its sign.

# %%
def orthogonal(matrix, a=3.4445, b=-4.775, c=2.0315):
    """A square matrix with its singular values near 1."""
    X = matrix / matrix.norm()
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


guide.loss(output, batch["input_ids"], targets).backward()
matrix = model.model.language_model.layers[1].self_attn.q_proj.weight
before, gradient = matrix.detach().clone(), matrix.grad.clone()
FloatMuon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
update = 0.2 * max(matrix.shape) ** 0.5 * orthogonal(gradient)
torch.testing.assert_close(matrix.detach(), 0.999 * before - 0.01 * update, rtol=1e-3, atol=1e-5)
matrix.data = before.clone()
torch.optim.AdamW([matrix], lr=0.01, weight_decay=0.1, eps=1e-16).step()  # m / sqrt(v) is a sign at first
torch.testing.assert_close(matrix.detach(), 0.999 * before - 0.01 * gradient.sign(), rtol=1e-3, atol=1e-5)
matrix.data = before

# %%
spectra = {"gradient": torch.linalg.svdvals(gradient), "Muon's update": torch.linalg.svdvals(update)}
for name, one in spectra.items():
    print(f"{name}: {(one > one.max() / 10).sum()} of {len(one)} singular values exceed a tenth of the first")
curves = {name: list(enumerate((one / one.max()).tolist(), 1)) for name, one in spectra.items()}
display.plot_lines(curves, "index of the singular value", "proportion of the largest")

# %% [markdown]
# Where the gradient's curve falls off at once, a plain gradient step would move few directions; Muon's update moves many more. Singular values far
# below the largest are not yet near 1 after five steps (exercise 3). Whether this makes the model learn faster is not measured here.
# ## 6 · A short run, with and without auxiliary targets
# The exercises `words` name one of four options and ask for its letter. Both runs start from the same random weights and see the same exercises; only
# the auxiliary targets differ. The figure shows the proportion of right letters where the model is given the right tokens before them (teacher
# forcing), on exercises that it has not learnt from yet; chance is one in four.
#
# > **Predict first.** The loss falls in both runs. Will both give the right letter at the end?

# %%
steps, logs, run = 20 if smoke else 100, {}, root / "runs" / f"piece-of-tiny-base-{PROFILE}"
for name, guidance in (("with auxiliary targets", True), ("cross entropy alone", False)):
    shutil.rmtree(run / name, ignore_errors=True)
    rates = {"learning_rate": 2e-3, "muon": 5e-3, "warmup": 20, "steps": 1000}
    short = Plan(stages=((1.0, (("words", 16),)),), guidance=guidance, seed=SEED, **rates)
    pretrain(run / name, short, until=steps, save_steps=steps, workers=0)
    logs[name] = [json.loads(line) for line in (run / name / "log.jsonl").read_text().splitlines()]
    first, last = logs[name][0], logs[name][-1]
    print(f"{name}: loss {first['loss']:.2f} to {last['loss']:.2f}, letters {last['letter']:.0%} right")
shipped = [json.loads(line) for line in (BASE / "log.jsonl").read_text(encoding="utf-8").splitlines()]
curves = logs | {"shipped base": [line for line in shipped if line["step"] <= 2 * steps]}
curves = {n: [(one["step"], one["letter"]) for one in c if "letter" in one] for n, c in curves.items()}
display.plot_lines(curves, "step", "proportion of right letters", reference=("chance", 0.25))


# %% [markdown]
# If the loss falls while letters stay at chance, the model has learnt everything but the choice: one token in a reply is the letter, and the others can
# be copied. (The loss with auxiliary targets includes their terms: compare letters, not losses.) A longer run without auxiliary targets was stopped
# with its letters at chance (`data/README.md`). The log of the shipped base, with larger batches and lower rates, shows when the skill emerged there.
#
# **Words that it never saw.** The softmax pushes the embeddings of absent tokens all in the same direction: "liver" and "spleen" look alike, and
# fine-tuning would have to teach the choice of letters again. So after the training the embeddings of unseen tokens were replaced by random ones around
# 0.3 times their mean; `<think>` and `</think>` copy the embedding of the line break, which ends the reasoning in the exercises. Below, a cosine near 1
# means that the words look alike; the short run (the one with cross entropy alone) lacks that repair, the shipped base has it.

# %%
def likeness(rows):
    """Mean cosine between the embeddings of words of anatomy."""
    ids = sorted({processor.tokenizer(f" {word}").input_ids[0] for word in anatomy})
    units = torch.nn.functional.normalize(rows[ids])
    return ((units @ units.T).sum() - len(ids)).item() / (len(ids) ** 2 - len(ids))


after = torch.load(run / name / "checkpoint.pt", weights_only=True)["model"]["lm_head.weight"]
rows = [one.get_input_embeddings().weight for one in (load_model(run / name / "start")[0], model)]
drawn = {"at random": rows[0], f"after {steps} steps": after, "in the shipped base": rows[1]}
print("cosine of unseen words:", {when: round(likeness(x), 2) for when, x in drawn.items()})

# %% [markdown]
# ## 7 · Skills of the base that ships
# The skills were measured on held-out exercises, **free-running**: only what the model itself writes counts. A reply with options is right if its
# letter is, a free answer (a name, the number of an image, the results of `pairs`) if all of it is; boxes are measured by their IoU, printed below.
# The intervals are Wilson's, 95 %. Chance is one quarter where there are four options; a free answer has no chance level.

# %%
skills = json.loads((BASE / "skills.json").read_text(encoding="utf-8"))
free, right = {one.name for one in every if one.answer}, {}
for name, row in sorted(skills.items(), key=lambda item: -item[1].get("right", 0)):
    if "right" in row:
        kind, n = "free answer" if name in free else "four options", int(row["n"])
        right.setdefault(kind, {})[name] = (row["right"], *wilson(round(row["right"] * n), n))
letter, *ends = right["four options"]["letter"]
publish("tiny base, letter given text", letter, interval=ends, note=f"n = {skills['letter']['n']:.0f}")
display.plot_intervals(right, "proportion right", reference=("chance among four", 0.25), form=".2f")

# %%
unclear = [name for name, (_, low, _) in right["four options"].items() if low <= 0.25]
print("not above chance, by the interval:", ", ".join(unclear) or "none")
weak = [f"{name} {value:.0%}" for some in right.values() for name, (value, *_) in some.items() if value < 0.6]
print("right in fewer than 60 %:", ", ".join(weak) or "none")
for name in (name for name, row in skills.items() if "iou" in row):
    value, error = skills[name]["iou"], 1.96 * skills[name]["iou_error"]
    print(f"IoU of the first box, {name}: {value:.2f} ({value - error:.2f} to {value + error:.2f})")
tests = [exercise("pointing", HELD_OUT + k, SEED + 1) for k in range(10 * profile.notebook.questions)]
tests = [one for one in tests if one.name == "point"][: profile.notebook.questions]
boxes, titles = [], []
for one, text in zip(tests, replies(model, processor, tests), strict=True):
    written = [box for box in parse_boxes(text)[:1] if not isinstance(box, Box3D)]
    boxes.append(dict(zip(("truth", "written by the model"), [one.box, *written], strict=False)))
    iou = written[0].iou(one.box) if written else 0.0
    titles.append(f"{one.question[:26]}\nIoU {iou:.2f}: {'right' if iou >= 0.5 else 'wrong'}")
display.show_images([one.images[0].pixels for one in tests], boxes, titles)

# %% [markdown]
# These are the first held-out exercises of their kind, not selected ones; *right* in a title means an IoU of at least 0.5. A weak skill must be learnt
# in fine-tuning, or it limits the results. `python -m unireason_lib base --out runs/tiny-base` runs the whole plan (hours; a killed run resumes);
# with `--measure FOLDER` it only measures the skills. The exercises were changed during the training of the shipped base (`data/README.md` says how),
# so the command gives a similar model, not the same weights. **Next**: [notebook 04](04_sft.ipynb) fine-tunes this base.
#
# ## Check yourself

# %%
for name, (median, _, _) in looks["shipped base"].items():
    assert median > looks["random weights"][name][0], name
for lines in logs.values():
    assert lines[-1]["loss"] < lines[0]["loss"], "the loss falls with and without auxiliary targets"
print("all checks passed")

# %% [markdown]
# ## Exercises ([solutions](solutions/90_tiny_base.py))
# 1. Why does *option* need *phrase* if options end alike ("left and upper", "right and upper")? Compare their last tokens after layer 0.
# 2. In training, up to 120 filler words stand between options and conclusion. Up to what distance does the model still find the letter?
# 3. From which size on do singular values end near 1 after the five steps of Muon's iteration? (They act on each singular value separately.)
