# %% [markdown]
# # 90 · The tiny base: how the small model learnt to see, to box shapes and to choose
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/90_tiny_base.ipynb)
#
# After this notebook you can
# - say what the shipped base was taught, what it was kept from, and how well it does what fine-tuning stands on;
# - tell a falling loss from a learnt skill: the letter of an answer comes late, and abruptly;
# - guide attention with one term of the loss, and measure where a trained model looks.
#
# **Where we stand.** Before the pipeline. The paper starts from a *pretrained MLLM*, Qwen2.5-VL-7B-Instruct, which has
# read and seen much of the web. Two CPU cores cannot run that. `data/tiny-base` stands in for it: the same
# architecture, a few million weights, trained on exercises that a program makes up. Fine-tuning (04) begins from it.
#
# **Time** two to three minutes on 2 CPU cores; a GPU is not used. **Needs** nothing from earlier notebooks: weights, log
# and measured skills lie in the repository. **Synthetic**: everything here, shapes on noise. *Nothing here is for
# clinical use.*

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
from unireason_lib.config import load_profile
from unireason_lib.display import pipeline_figure
from unireason_lib.notebooks import project_root, publish

profile = load_profile(PROFILE, OVERRIDES)
smoke = PROFILE == "smoke"
BASE = project_root() / "data" / "tiny-base"
pipeline_figure()

# %% [markdown]
# ## 1 · What it must not know
#
# The study asks what fine-tuning and RL teach about scans. So the base must bring nothing of that along: no organ, no
# lesion, no patient, no volume, and not the habit of reading a crop in the middle of a reply. What it may bring is what
# any pretrained model brings: choosing one of four options, boxing shapes, telling several images apart.
#
# Exercise number *k* of a stage is a function of *k*, so everybody who runs this sees the same ones.

# %%
from unireason_lib.tiny_base import HELD_OUT, STAGES, exercise

count = 60 if smoke else 250
exercises = {stage: [exercise(stage, k, SEED) for k in range(count)] for stage in STAGES}
for stage, weights in STAGES.items():
    print(f"{stage:<16}{len(weights):>2} exercises: {', '.join(weights)}")

# %% [markdown]
# Now the check: no word of the phantom's anatomy or of the clinic, no cuboid (six numbers between box tags).

# %%
import re

from unireason_lib.boxes import Box3D, parse_boxes
from unireason_lib.dataset.sources import phantom

anatomy = {word for name in phantom.LABELS.values() for word in name.split()} - {"left", "right"}
clinic = {"organ", "patient", "scan", "slice", "slices", "volume", "axial", "CT", "MRI"}
every = [one for several in exercises.values() for one in several]
for one in every:
    text = f"{one.question} {one.reply}"
    assert not (anatomy | clinic) & set(re.findall(r"[A-Za-z]+", text)), text
    assert not any(isinstance(box, Box3D) for box in parse_boxes(text)), text
print(f"{len(every)} exercises, without any of {len(anatomy | clinic)} words")

# %% [markdown]
# What the exercises share with the study is said here: the syntax of boxes, words of place ("left", "upper"), the
# sentence that asks for an answer with boxes, and names of textures. Telling stripes from checks is a generic skill,
# like reading. Which lesion has which texture is for the study to learn.

# %%
from unireason_lib.tiny_base.shapes import TEXTURES

print("names of textures that both have:", ", ".join(t for t in TEXTURES if t in phantom.TEXTURES))

# %% [markdown]
# ## 2 · What it is taught
#
# A scene holds some shapes on noisy ground. Name, shade, texture, size, contrast and noise vary widely, so that the
# vision tower gets features for other grey images too. The box of a shape is that of its pixels.

# %%
from unireason_lib.display import show_images

scenes = [exercise("shapes", k, SEED).images[0] for k in range(8)]
show_images(
    [scene.pixels for scene in scenes],
    [[shape.box for shape in scene.shapes] for scene in scenes],
    titles=[", ".join(shape.name for shape in scene.shapes) for scene in scenes],
)

# %% [markdown]
# Beside them there are questions. One of several kinds, as the model reads and writes them:

# %%
shown = {}
for name in ("letter", "lengths of boxes", "relation", "count", "close up", "span of images"):
    shown[name] = next(one for one in every if one.name == name and len(one.reply) > 12)
    print(f"--- {name}, {len(shown[name].images)} images\n{shown[name].question}\n> {shown[name].reply}\n")

# %%
one = shown["span of images"]
show_images([scene.pixels for scene in one.images], [[one.box]] * len(one.images))

# %% [markdown]
# All of it can be settled by looking, or by comparing two numbers. Products of coordinates, such as the ratio of two
# areas, were asked once: after 4,200 steps the answers were no better than chance. So lengths are compared instead.
#
# Which exercises come when is the **plan**. Each group of a step is a forward pass of its own, so that short exercises
# are not padded to the length of long ones. The weights that ship are of an earlier plan, of 3,300 steps with the
# same stages and fewer kinds of shapes; their log and skills are what sections 3 and 6 show.

# %%
from unireason_lib.tiny_base import Plan

plan = Plan()
first = 0
for proportion, groups in plan.stages:
    last = first + round(proportion * plan.steps)
    each = ", ".join(f"{number} x {name}" for name, number in groups)
    print(f"steps {first:>4} to {last:>4}, in every step: {each}")
    first = last

# %% [markdown]
# ## 3 · The letter is a skill of its own
#
# To answer `B. Ring`, a model must find the conclusion among the options and hand on the letter that stands before it.
# That is hardly seen in the loss: of all tokens of a reply one is the letter, and the others can be copied. So the log
# also keeps the proportion of letters that are the likeliest token, with the true words before them. Chance is one in
# four. This is the log that ships with the weights; at the beginning of each stage the loss jumps, because the
# exercises become harder.

# %%
import json

import matplotlib.pyplot as plt

log = [json.loads(line) for line in (BASE / "log.jsonl").read_text(encoding="utf-8").splitlines()]
losses = [line for line in log if "loss" in line]
letters = [line for line in losses if "letter" in line]
figure, axes = plt.subplots(2, 1, figsize=(7, 4.4), sharex=True)
axes[0].plot([line["step"] for line in losses], [line["loss"] for line in losses])
axes[0].set(ylabel="loss", yscale="log")
axes[1].plot([line["step"] for line in letters], [line["letter"] for line in letters])
axes[1].axhline(0.25, color="gray", linestyle="--")
axes[1].set(ylabel="letters right", xlabel="step", ylim=(0, 1.02))
figure.tight_layout()

# %% [markdown]
# At the start, and at the last logged step before the letter comes:

# %%
before = []
for line in letters:
    if line["letter"] > 0.4:
        break
    before.append(line)
for line in (before[0], before[-1]):
    print(f"step {line['step']:>3}: loss {line['loss']:.2f}, letters right {line['letter']:.0%}")

# %% [markdown]
# Whoever watches the loss alone believes that it works, and has a model that guesses. Then, within some tens of steps,
# it comes.
#
# ## 4 · How it is made to come
#
# Left to itself the model finds the letter late, if at all: it takes four things, and each is useless without the
# others. So four attention heads are **shown** where to look wherever there are options:
#
# 1. *phrase*: the last token of an option, and of its text in the conclusion, looks at all of it;
# 2. *mark*: every token of an option looks at the letter before it;
# 3. *said*: where a letter is due, look at the end of the conclusion;
# 4. *option*: and from there at the end of the option that says the same.
#
# A fifth, *look*, looks at the shape whose box is written. These are auxiliary targets: they add one term to the loss
# of this training only, and none to the architecture. Does the shipped model look there?

# %%
import torch
from transformers.utils import logging

from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.tiny_base.guidance import HEADS, Guide
from unireason_lib.tiny_base.pretraining import Steps

logging.disable_progress_bar()
run = project_root() / "runs" / f"piece-of-tiny-base-{PROFILE}"
fresh_start = run / "start" if (run / "start").is_dir() else build_tiny(run / "start", seed=SEED)
model, processor = load_model(BASE, dtype="float32", device="cpu")
fresh, fresh_processor = load_model(fresh_start, dtype="float32", device="cpu")


# %%
def attention_on_targets(model, processor, stage, number):
    """For every head, the attention that a batch of held-out exercises gives to its targets."""
    one_step = Plan(stages=((1.0, ((stage, number),)),), seed=SEED + 1)
    ((_, batch, targets),) = Steps(one_step, processor)[0]
    guide = Guide(model, processor.tokenizer)  # switches to the attention that gives its weights
    batch.pop("labels")
    with torch.no_grad():
        output = model.model(**batch, output_attentions=True, output_hidden_states=True)
    found = {}
    for index, (name, (layer, head)) in enumerate(HEADS.items()):
        row, _, source, target = targets.attention[targets.attention[:, 1] == index].long().T
        weights = output.attentions[layer][row, head, source, target]
        pairs, place = torch.unique(torch.stack([row, source]), dim=1, return_inverse=True)
        found[name] = torch.zeros(pairs.shape[1]).index_add(0, place, weights)
    return found, guide, output, batch, targets


# %% [markdown]
# For each head the attention on its targets, averaged over all tokens that have some, in the shipped model and in one
# of random weights.

# %%
looks = {"shipped": attention_on_targets(model, processor, "one image", count // 5)}
looks["random weights"] = attention_on_targets(fresh, fresh_processor, "one image", count // 5)
means = {
    who: {name: values.mean().item() for name, values in found[0].items()} for who, found in looks.items()
}
figure, axis = plt.subplots(figsize=(7, 2.6))
for k, (who, values) in enumerate(means.items()):
    axis.barh([n + 0.4 * k for n in range(len(values))], values.values(), height=0.38, label=who)
axis.set(yticks=range(len(HEADS)), yticklabels=HEADS, xlabel="attention on the targets", xlim=(0, 1))
axis.legend()
figure.tight_layout()

# %% [markdown]
# ### The term of the loss, by hand
#
# For each head: minus the logarithm of the attention on each target, averaged. Because looking is not enough, letters
# are read off early, through the model's own final norm and output layer; so are the edges of a box, along four fixed
# directions. Image tokens also have to say what they cover (section 5).

# %%
from torch.nn.functional import cross_entropy, smooth_l1_loss

from unireason_lib.tiny_base.guidance import WEIGHT

_, guide, output, batch, targets = looks["shipped"]
norm, hidden, ids = model.model.language_model.norm, output.hidden_states, batch["input_ids"]
with torch.no_grad():
    total = torch.zeros(())
    for index, (layer, head) in enumerate(HEADS.values()):
        row, _, source, target = targets.attention[targets.attention[:, 1] == index].long().T
        total -= (output.attentions[layer][row, head, source, target] + 1e-6).log().mean()
    for layer in (1, 2):
        row, _, position, token = targets.letters[targets.letters[:, 1] == layer].long().T
        logits = model.lm_head(norm(hidden[layer + 1][row, position]))
        total += cross_entropy(logits, ids[row, token])
    row, position = targets.edges[:, :2].long().T
    read = norm(hidden[3][row, position]) @ guide.directions
    total += smooth_l1_loss(read, 4 * (targets.edges[:, 2:] - 0.5), beta=0.2)

# %% [markdown]
# The library's `Guide` on the same pass, without the targets of image tokens:

# %%
with torch.no_grad():
    by_guide = guide.loss(output, ids, targets._replace(tokens=targets.tokens[:0]))
print(f"by hand {WEIGHT * total:.6f}, by the library {by_guide:.6f}")
assert torch.isclose(WEIGHT * total, by_guide, rtol=1e-4)

# %% [markdown]
# ## 5 · What an image token covers
#
# Whoever is told only the right box has to find three things at once: which marks make a ring, that image tokens are
# worth looking at, and how a place becomes digits. But the truth is known for every pixel, so one more thing is shown:
# from every image token the name of the shape under it is read off, by comparing the token with the embeddings of the
# names, as the vision tower hands it over. Here for one scene that the model has not seen.

# %%
from unireason_lib.tiny_base.guidance import GROUPS

held_out = [exercise("shapes", HELD_OUT + k, SEED) for k in range(40)]
scene = next(o.images[0] for o in held_out if len({s.name for s in o.images[0].shapes}) == 3)
pixels = processor.image_processor([scene.image()], return_tensors="pt")
with torch.no_grad():
    tokens = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
    words = [processor.tokenizer(f" {word}").input_ids[0] for word in GROUPS[0]]
    names = (norm(tokens) @ model.get_input_embeddings().weight[words].T).argmax(-1)

# %%
rows, columns = (pixels["image_grid_thw"][0, 1:] // 2).tolist()
height, width = scene.pixels.shape
figure, axis = plt.subplots(figsize=(4, 4))
axis.imshow(scene.pixels, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
for k, index in enumerate(names.tolist()):
    x, y = (k % columns + 0.5) * width / columns, (k // columns + 0.5) * height / rows
    word = GROUPS[0][index]
    if word != "nothing":
        axis.text(x, y, word, ha="center", va="center", color="yellow", fontsize=8)
axis.set_title(", ".join(shape.name for shape in scene.shapes))
axis.set_axis_off()

# %% [markdown]
# Nothing of sections 4 and 5 is in the architecture, and it ends with the base: fine-tuning and RL are learnt without
# it. `Plan(guidance=False)` trains without it, too.
#
# ## 6 · What it can do
#
# The finished base was tested on held-out exercises, **free-running**: what it writes counts, not its loss. Every kind
# of exercise with its 95 % interval; a dashed line marks a guess among four options.

# %%
from scipy.stats import binomtest

from unireason_lib.display import plot_intervals

skills = json.loads((BASE / "skills.json").read_text(encoding="utf-8"))


def proportion(row):
    """Proportion right, and Wilson's interval."""
    interval = binomtest(round(row["right"] * row["n"]), int(row["n"])).proportion_ci(method="wilson")
    return row["right"], interval.low, interval.high


right = {name: proportion(row) for name, row in skills.items() if "right" in row}
best_first = dict(sorted(right.items(), key=lambda item: -item[1][0]))
print(f"{sum(row['n'] for row in skills.values()):.0f} exercises in all")
plot_intervals({"shipped": best_first}, "proportion right", reference=("chance", 0.25))

# %% [markdown]
# And the IoU of the first box that it writes:

# %%
ious = {
    name: (row["iou"], row["iou"] - 1.96 * row["iou_error"], row["iou"] + 1.96 * row["iou_error"])
    for name, row in skills.items()
    if "iou" in row
}
publish("tiny base, letter given text", right["letter"][0], interval=right["letter"][1:])
publish("tiny base, IoU on plain shapes", ious["point"][0], interval=ious["point"][1:])
plot_intervals({"shipped": ious}, "mean IoU of the first box")

# %% [markdown]
# The first held-out exercises that ask for a box, as they come, good or bad: box 1 is the truth, box 2 what the model
# writes. The number above each image is the IoU of the two.

# %%
from unireason_lib.tiny_base import replies

asked = [exercise("pointing", HELD_OUT + k, SEED + 1) for k in range(10 * profile.notebook.questions)]
asked = [one for one in asked if one.name == "point"][: profile.notebook.questions]
boxes, titles = [], []
for one, text in zip(asked, replies(model, processor, asked), strict=True):
    written = [box for box in parse_boxes(text)[:1] if not isinstance(box, Box3D)]
    boxes.append(dict(zip(("the truth", "written by the model"), [one.box, *written], strict=False)))
    titles.append(f"{written[0].iou(one.box) if written else 0:.2f}  {one.question[:24]}")
images = [one.images[0].pixels for one in asked]
show_images(images, boxes, titles)

# %% [markdown]
# ## 7 · A piece of it, here and now
#
# `pretrain` runs a plan from fresh weights. `until` stops it early; rates and exercises stay those of the whole plan. We
# stop it **between** two checkpoints, as a crash would, and call it again: it goes on from the last checkpoint. A run
# without a stop beside it shows that nothing was lost.

# %%
import shutil

from unireason_lib.tiny_base import pretrain

steps = 12 if smoke else 40
piece = Plan(stages=((1.0, (("words", 4), ("shapes", 8))),), steps=steps + 1, warmup=5, seed=SEED)
for name, stops in (("whole", [steps]), ("stopped", [steps // 2, steps])):
    shutil.rmtree(run / name, ignore_errors=True)
    for until in stops:
        pretrain(run / name, piece, start=fresh_start, until=until, save_steps=5, workers=0)

# %%
logs = {
    name: [json.loads(line) for line in (run / name / "log.jsonl").read_text().splitlines()]
    for name in ("whole", "stopped")
}
for name, lines in logs.items():
    print(f"{name:<8}" + ", ".join(f"step {line['step']}: {line['loss']:.4f}" for line in lines))
last = [lines[-1]["loss"] for lines in logs.values()]

# %% [markdown]
# ## 8 · The command that makes it
#
# ```bash
# python -m unireason_lib base --out runs/tiny-base
# python -m unireason_lib base --measure data/tiny-base     # only its skills, on held-out exercises
# ```
#
# The first builds random weights, runs the whole plan (killed and called again it goes on), measures the skills, and
# leaves in `runs/tiny-base/model` what lies in `data/tiny-base`.

# %%
megabytes = sum(file.stat().st_size for file in BASE.iterdir()) / 1e6
weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
print(f"{weights:.1f} M weights, {megabytes:.1f} MB with tokenizer, log and skills")
assert megabytes <= 13

# %% [markdown]
# ## Check yourself

# %%
assert abs(last[0] - last[1]) < 1e-3 * last[0]  # stopped or not, the same training
assert logs["whole"][-1]["loss of shapes"] < logs["whole"][0]["loss of shapes"]
assert before[-1]["loss"] < 0.5 * before[0]["loss"]  # the loss fell, and the letter was guessed
assert right["letter"][1] > 0.9 and ious["point"][1] > 0.4  # lower ends of the intervals
for name in HEADS:
    assert means["shipped"][name] > 2 * means["random weights"][name], name
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. The options are "left and upper", "right and upper", "left and lower" and "right and lower". What would the heads
#    *said* and *option* find without the head *phrase*?
# 2. In training up to 120 words that mean nothing stand between options and answer. How far does the letter reach? Put
#    0, 100, 200 and 400 of them there and measure the proportion of right letters.
# 3. `python -m unireason_lib base --steps 400` is much shorter than the plan. Will the letter come?
#
# <details><summary>Solutions</summary>
#
# 1. Two options end in "upper". Their last tokens would look alike, and attention would be spread over both. *phrase*
#    makes the last token stand for the whole.
# 2. Take `exercise("words", HELD_OUT + k)` with a `letter`, put the words before the last line of its question
#    (`dataclasses.replace`), ask with `replies` and compare the first character with `letter`. Beyond 120 words nothing
#    was practised: what you find is how far rotary positions carry by themselves.
# 3. Stages are proportions of the steps, so the first one would end long before the letter came in the curve above.
#    Better keep the first stages as long as they are and shorten the last one: `Plan(stages=...)`.
#
# </details>
