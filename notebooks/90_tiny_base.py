# %% [markdown]
# # 90 · The tiny base: how the small model learnt to see, point and choose
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/90_tiny_base.ipynb)
#
# After this notebook you can
# - say what the shipped base was taught, what it was kept from, and how well it does what fine-tuning stands on;
# - tell a falling loss from a learnt skill: the letter of an answer comes late, and abruptly;
# - guide attention with one term of loss, and read off where a trained model really looks, and what it sees there.
#
# **Where we stand.** Before the pipeline. The paper starts from a *pretrained MLLM*, Qwen2.5-VL-7B-Instruct, which has
# read and seen much of the web. Two CPU cores cannot run that. `data/tiny-base` stands in for it: the same
# architecture, a few million weights, trained on exercises that a program makes up. Fine-tuning (04) begins from it.
#
# **Time** three to four minutes on 2 CPU cores; a GPU is not used. **Needs** nothing from earlier notebooks: weights, log
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
from unireason_lib.display import pipeline_figure
from unireason_lib.profiles import load_profile
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
# any pretrained model brings: choosing one of four options, pointing at shapes, telling several pictures apart.
#
# Its exercises are in groups. Exercise number *k* of a group is a function of *k*, so everybody who runs this sees the
# same ones.

# %%
from unireason_lib.training.base.tasks import STAGES, exercise

count = 100 if smoke else 250
exercises = {stage: [exercise(stage, k, SEED) for k in range(count)] for stage in STAGES}
for stage in STAGES:
    kinds = sorted({one.name for one in exercises[stage]})
    print(f"{stage:<17}{len(kinds):>2} kinds: {', '.join(kinds)}")

# %% [markdown]
# Now the check: no word of the phantom's anatomy or of the clinic, no form that is one, no cuboid (six numbers between
# box tags), no picture inside a reply.

# %%
import re

from unireason_lib.boxes import Box3D, parse_boxes
from unireason_lib.dataset.sources import phantom
from unireason_lib.training.base.shapes import FORMS, TEXTURES

anatomy = {word for name in phantom.LABELS.values() for word in name.split()} - {"left", "right"}
clinic = {"organ", "patient", "scan", "slice", "slices", "volume", "axial", "CT", "MRI"}
every = [one for several in exercises.values() for one in several]
for one in every:
    asked, reply = (message["content"] for message in one.messages)
    text = " ".join(part["text"] for part in asked + reply if part["type"] == "text")
    assert not (anatomy | clinic) & set(re.findall(r"[A-Za-z]+", text)), text
    assert not any(isinstance(box, Box3D) for box in parse_boxes(text)), text
    assert all(part["type"] == "text" for part in reply), one.name
assert not set(FORMS) & set(phantom.LABELS.values())
print(f"{len(every)} exercises without any of {len(anatomy | clinic)} words, cuboids, or crops in a reply")
print("shared with the phantom, names of textures:", ", ".join(t for t in TEXTURES if t in phantom.TEXTURES))

# %% [markdown]
# The last line is the honest part. Some textures of the phantom's lesions have the same names here: telling stripes
# from checks is a generic skill, like reading. Which lesion has which texture is for the study to learn. Shared are
# also the syntax of boxes, words of place ("left", "upper"), and the sentence that asks for an answer with boxes.

# %% [markdown]
# ## 2 · What it is taught
#
# A picture holds some shapes on noisy ground. Form, shade, texture, size, contrast and noise vary widely, so that the
# vision tower gets features for other grey pictures too. The truth of every box is that of the pixels.

# %%
import random

from unireason_lib.display import show_pictures
from unireason_lib.training.base.shapes import draw

scenes = [draw(random.Random(SEED + k)) for k in range(8)]
show_pictures(
    [scene.pixels for scene in scenes],
    [[shape.box for shape in scene.shapes] for scene in scenes],
    titles=[", ".join(shape.form for shape in scene.shapes) for scene in scenes],
)

# %% [markdown]
# In the group *shapes* nothing is asked: what such a picture holds is shown to the model, token by token (section 5).
# One exercise or two of each other group. Words, letters and text come without pictures; the boxes of a reply are drawn
# on the picture that it names.

# %%
from unireason_lib.display import show_exercises

WANTED = {
    "words": ["letter"],
    "letters": ["letters"],
    "text": ["letter", "option"],
    "pointing": ["point"],
    "one picture": ["relation", "close-up"],
    "several pictures": ["point in picture"],
}
shown = [
    (group, next(one for one in exercises[group] if one.name == name))
    for group, names in WANTED.items()
    for name in names
]
show_exercises([one for _, one in shown], [f"{group}: {one.name}" for group, one in shown])

# %% [markdown]
# Which exercises come when is the **plan**; it has stages. Each group of a step is a forward pass of its own, so that
# short samples are not padded to the length of long ones.

# %%
from unireason_lib.training.base.pretrain import Plan

plan, stages, end = Plan(), [], 0.0
for share, groups in plan.stages:
    start, end = end, end + share * plan.steps
    stages.append((", ".join(dict.fromkeys(name for name, _ in groups)), round(start), round(end)))
    each = ", ".join(f"{number} x {name}" for name, number in groups)
    print(f"steps {round(start):>4} to {round(end):>4}, in every step: {each}")

# %% [markdown]
# ## 3 · The letter is a skill of its own
#
# To answer `B. Ring`, a model must find what was said among the options and hand on the letter that stands before it.
# That is hardly seen in the loss: of all tokens of a reply one is the letter, and the others can be copied. So the log
# also keeps the share of letters that are right, with the true words before them (chance is one in four).
#
# Here is how it went, from the log that ships with the weights. At the beginning of each stage the loss jumps, because
# the exercises become harder. It includes the terms of sections 4 and 5, which show the model how.

# %%
from unireason_lib.display import plot_stages
from unireason_lib.training.logbook import read_log

log = read_log(BASE / "log.jsonl")
curves = {
    name: [(line["step"], line[key]) for line in log if key in line]
    for name, key in (("loss", "loss"), ("all tokens", "right"), ("letters", "letter"))
}
shares = {name: curves[name] for name in ("all tokens", "letters")}
plot_stages(
    {"loss": {"loss": curves["loss"]}, "share right": shares},
    stages,
    "step",
    levels={"share right": [0.25]},
)

# %% [markdown]
# Look at the first stage, where the options are single words. At the start, and just before the letter comes:

# %%
name, start, end = stages[0]
inside = [line for line in log if start < line["step"] <= end]
flat = [line for line in inside if line["letter"] <= 0.3]
first, last = flat[0], flat[-1]
print(f"at step {first['step']:>3}: loss {first['loss']:.2f}, letters right {first['letter']:.0%}")
print(f"at step {last['step']:>3}: loss {last['loss']:.2f}, letters right {last['letter']:.0%}")
print(f"of all tokens right by then: {last['right']:.0%}")


# %% [markdown]
# Who watches the loss alone believes that it works, and has a model that guesses. Then it comes, within some tens of
# steps. The first step at which half and nine tenths of the letters are right, stage by stage (a step in the log stands
# for the ten up to it):

# %%
def first_pass(level, start, end):
    """First logged step of a stage whose share of right letters reaches a level, in words."""
    steps = [step for step, share in curves["letters"] if start < step <= end and share >= level]
    return f"at step {steps[0]}" if steps else "not in this stage"


for name, start, end in stages:
    print(f"{name:<36} 50 %: {first_pass(0.5, start, end):<20} 90 %: {first_pass(0.9, start, end)}")

# %% [markdown]
# ## 4 · How it is made to come
#
# Left to itself the look-up comes late, if at all, because it needs four things and each is useless without the others.
# So four attention heads are **shown** where to look wherever there are options:
#
# 1. *phrase*: the last token of a phrase looks at all of the phrase, so that it stands for the whole;
# 2. *mark*: every token of an option looks at the letter before it;
# 3. *said*: where a letter is due, look at the end of what was said;
# 4. *option*: and from there at the end of the option that says the same.
#
# The shortest held-out exercise whose options have several words, with these four as arrows. A letter is predicted by
# the token before it, a line break: that is where the look-up ends.

# %%
from transformers.utils import logging

from unireason_lib.grounding import load_model
from unireason_lib.training.base.guidance import HEADS, find_hops
from unireason_lib.training.base.tasks import HELD_OUT
from unireason_lib.training.encoding import Encoder

logging.disable_progress_bar()
model, processor = load_model(BASE, dtype="float32", device="cpu", attn_implementation="eager")
encode = Encoder(processor)


def tokens_and_hops(example):
    """The tokens of an encoded exercise as text, and where to look from where."""
    words = processor.tokenizer.batch_decode(example.ids[:, None])
    return words, find_hops(words, example.own)


# %%
from unireason_lib.display import show_hops

encoded = None
for k in range(count):
    candidate = encode(exercise("letters", HELD_OUT + k, SEED).messages)
    several = any(a != b for a, b in tokens_and_hops(candidate)[1]["phrase"])
    if several and (encoded is None or len(candidate) < len(encoded)):
        encoded = candidate
words, hops = tokens_and_hops(encoded)
begin = words.index("user") + 2  # behind the head of the user's turn
FOUR = ("phrase", "mark", "said", "option")  # the others that can be shown are for pictures
moved = {name: [(a - begin, b - begin) for a, b in hops[name]] for name in FOUR}
legend = {name: f"{name}: layer {layer}, head {head}" for name, (layer, head) in HEADS.items()}
show_hops(words[begin:-1], moved, encoded.own[begin:-1], legend=legend)

# %% [markdown]
# Does the shipped model look there? One forward pass with the plain ("eager") implementation of attention, the only one
# that gives its weights. The framed token looks, those in broken frames are where it should; the darker, the more it
# looks.

# %%
from statistics import fmean

import torch

from unireason_lib.display import Look, show_attention
from unireason_lib.training.base.guidance import Guide
from unireason_lib.training.encoding import Collator

guide = Guide(model, processor.tokenizer)  # it listens to every forward pass from now on
collate = Collator(processor)
inputs = {name: value for name, value in collate([encoded]).items() if name != "labels"}
with torch.no_grad():
    seen = model(**inputs, output_attentions=True, output_hidden_states=True)
due, right_end = hops["option"][0]
looks = {}
for name in FOUR:
    layer, head = HEADS[name]
    position = right_end if name in ("phrase", "mark") else due
    weights = seen.attentions[layer][0, head, position, begin : len(words) - 1].tolist()
    targets = [b - begin for a, b in hops[name] if a == position]
    looks[legend[name]] = Look(position - begin, weights, targets)
show_attention(words[begin:-1], looks)


# %% [markdown]
# One example proves little. Over many held-out exercises: the share of its attention that a token gives to what it
# should look at, in the shipped model, in one of random weights, and if attention were spread evenly over all tokens up
# to it.

# %%
def looked(model, examples):
    """For every hop, the share of attention on the targets: a value for each exercise, the mean of its tokens."""
    shares = {}
    for example, hops in examples:
        inputs = {name: value for name, value in collate([example]).items() if name != "labels"}
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions if model else None
        for name in (name for name in hops if hops[name]):
            (layer, head), there = HEADS[name], []
            for position in {a for a, _ in hops[name]}:
                targets = [b for a, b in hops[name] if a == position]
                even = len(targets) / (position + 1)
                there.append(float(attentions[layer][0, head, position, targets].sum()) if model else even)
            shares.setdefault(name, []).append(fmean(there))
    return shares


# %%
import shutil

from unireason_lib.grounding import build_tiny

run = project_root() / "runs" / f"piece-of-tiny-base-{PROFILE}"
shutil.rmtree(run, ignore_errors=True)
start_from = build_tiny(run / "start", seed=SEED)  # of the size that ships; section 7 begins here too
fresh, _ = load_model(start_from, dtype="float32", device="cpu", attn_implementation="eager")
examples = [encode(exercise("text", HELD_OUT + k, SEED).messages) for k in range(count)]
examples = [(example, tokens_and_hops(example)[1]) for example in examples]
found = {
    "shipped": looked(model, examples),
    "random weights": looked(fresh, examples),
    "spread evenly": looked(None, examples),
}

# %%
from statistics import stdev

from unireason_lib.display import plot_intervals


def with_interval(values):
    """Mean, and its 95 % interval."""
    mean, error = fmean(values), stdev(values) / len(values) ** 0.5
    return mean, mean - 1.96 * error, mean + 1.96 * error


def with_intervals(found):
    """The same for everything measured: who -> what -> mean, low, high."""
    return {
        who: {legend.get(name, name): with_interval(values) for name, values in shares.items()}
        for who, shares in found.items()
    }


plot_intervals(with_intervals(found), "share of attention on what should be looked at")

# %% [markdown]
# ### The term of loss, by hand
#
# For each hop: minus the logarithm of the attention on each target, averaged. And, because looking is not enough, the
# letter is read off early: what stands behind layer 1 at the end of an option, and behind layer 2 where the letter is
# due, must give the letter when it goes through the model's own final norm and output layer.

# %%
from torch.nn.functional import cross_entropy

from unireason_lib.training.base.guidance import WEIGHT, collate_hops

ids, body = inputs["input_ids"][0], model.model.language_model


def read_early(layer, positions, letters):
    """Cross entropy of the letters, read behind a layer."""
    hidden = body.norm(seen.hidden_states[layer + 1][0, positions])
    return cross_entropy(model.lm_head(hidden), ids[letters])


with torch.no_grad():
    total = torch.zeros(())
    for name in FOUR:
        layer, head = HEADS[name]
        there = torch.stack([seen.attentions[layer][0, head, a, b] for a, b in hops[name]])
        total -= (there + 1e-6).log().mean()
    total += read_early(HEADS["mark"][0], *map(list, zip(*hops["mark"], strict=True)))
    total += read_early(HEADS["option"][0], [due], [due + 1])
    by_hand = WEIGHT * total

# %% [markdown]
# The library's `Guide` watches the layers while they work, for whole batches. Ask it about the same pass:

# %%
with torch.no_grad():
    model(**inputs)
    by_guide = guide.loss(collate_hops([hops]), inputs["input_ids"])
print(f"by hand {by_hand:.6f}, by the guide {by_guide:.6f}")
assert torch.isclose(by_hand, by_guide, rtol=1e-4)

# %% [markdown]
# ## 5 · Seeing is shown as well
#
# Pictures need the same help, and more of it. Who is told only the right box has to find three things at once: which
# marks make a form, that picture tokens are worth looking at, and how a place becomes digits. Until all three are there
# the loss says nothing, and a model of this size can end up with one box for every picture. But the truth is known for
# every pixel, so each can be shown by itself: in the group *shapes* to the vision tower alone, from the first step on,
# and in all other exercises with pictures.
#
# First, **what a token covers**. One token stands for a small square of the picture. From it the form, shade and texture
# of the shape that lies there should be read off, or that nothing does, and the edges of that shape's box.

# %%
from unireason_lib.training.base.seeing import WORDS, find_sights, picture_tokens


def with_sights(messages):
    """A conversation encoded; its pictures' truth, and grids, places and sights of their tokens."""
    encoded, side = encode(messages), encode.frame.factor
    truth = [part["truth"] for part in messages[0]["content"] if part["type"] == "image"]
    grids = [(p.shape[0] // side, p.shape[1] // side) for p in encoded.pictures]
    places = picture_tokens(encoded.ids, collate.image_token, grids)
    return encoded, truth, grids, places, find_sights(places, grids, truth)


held_out = [with_sights(exercise("shapes", HELD_OUT + k, SEED).messages) for k in range(count)]
shapes = [one[1][0].shapes for one in held_out]
three = [len(several) == len({shape.form for shape in several}) == 3 for several in shapes].index(True)
encoded, (picture,), (grid,), _, sights = held_out[three]  # the first picture of three shapes, all different
print(f"{picture.pixels.shape[0]} x {picture.pixels.shape[1]} pixels, {grid[0]} x {grid[1]} tokens")
print("position, form, shade, texture, x1, y1, x2, y2, middle x, y, picture")
for row in sights[:4]:
    print("  ".join(f"{value:.3g}" for value in row))

# %% [markdown]
# Words are numbers here, their places in three lists (`WORDS`); places are shares of the picture.
#
# How does a token tell? The model gets no new parts for it. The token's state goes through the model's own final norm; a
# word is read off by comparing with the embeddings of all words of its list, and the edges along four directions that
# were drawn once and never learnt. This is done at two depths:
#
# - as the vision tower hands the tokens over, with edges counted from the middle of the token, because a tower cannot
#   know where in the picture it is;
# - behind layer 1, with edges counted from the corner of the picture, as they are to be written; where there are
#   several pictures, also the number of the token's picture.

# %%
NOTHING, directions = len(FORMS), guide.sights.directions
lists = [[processor.tokenizer(f" {word}").input_ids[0] for word in several] for several in WORDS]


def read_off(who, layer, encoded, sights):
    """Words, and edges in shares of the picture, read off every picture token before a layer."""
    inputs = {name: value for name, value in collate([encoded]).items() if name != "labels"}
    with torch.no_grad():
        hidden = who(**inputs, output_hidden_states=True).hidden_states[layer][0, sights[:, 0].astype(int)]
        state, table = who.model.language_model.norm(hidden), who.get_input_embeddings().weight
        words = torch.stack([(state @ table[ids].T).argmax(-1) for ids in lists], 1)
    origin = sights[:, [8, 9, 8, 9]] if layer == 0 else 0.5
    return words.numpy(), (state @ directions / 4).numpy() + origin


# %% [markdown]
# A picture that the model has not seen. Left what each token covers, in the middle the words that are read off as the
# tower hands it over (wrong ones with a cross), on the right the boxes, one from each token that covers a shape.

# %%
from unireason_lib.boxes import Box2D


def in_words(what):
    """Shade, texture and form in three lines; where nothing is, only that."""
    form, shade, texture = (several[int(place)] for several, place in zip(WORDS, what, strict=True))
    return form if what[0] == NOTHING else f"{shade}\n{texture}\n{form}"


def in_pixels(edges):
    """A box in pixels of the picture."""
    height, width = picture.pixels.shape
    return Box2D(*(edges * (width, height, width, height)).round().tolist())


words, edges = read_off(model, 0, encoded, sights)
true = [shape.box for shape in picture.shapes]
votes = [
    (true.index(in_pixels(what[4:8])), in_pixels(box))
    for what, box in zip(sights, edges, strict=True)
    if what[1] != NOTHING
]

# %%
from unireason_lib.display import show_picture_tokens

right, said = ([in_words(what) for what in several] for several in (sights[:, 1:4], words))
silent = [""] * len(right)
show_picture_tokens(
    [picture.pixels] * 3,
    [grid] * 3,
    [right, said, silent],
    right=[right, right, silent],
    boxes=[list(enumerate(true)), [], votes],
    titles=["what each token covers", "words read off", "boxes read off"],
)

# %% [markdown]
# Over many such pictures: how often is it right? Beside it the same readings from random weights, and what one guess
# for all tokens would reach: the most frequent words, and the mean box around the middle of the token.

# %%
import numpy as np

covered = np.concatenate([sights[sights[:, 1] != NOTHING] for *_, sights in held_out])
common = [np.bincount(covered[:, k].astype(int)).argmax() for k in (1, 2, 3)]
around = (covered[:, 4:8] - covered[:, [8, 9, 8, 9]]).mean(0)
mostly = (
    fmean((sights[:, 1] != NOTHING).mean() for *_, sights in held_out) > 0.5
)  # of a picture cover a shape


def one_guess(sights):
    """The same for every token, without looking at it."""
    return np.tile(common, (len(sights), 1)), sights[:, [8, 9, 8, 9]] + around


def scores(sights, words, edges, there):
    """Shares of a picture's tokens that are read right; for boxes, the mean IoU."""
    right, covers = words == sights[:, 1:4], sights[:, 1] != NOTHING
    found = {"shape or nothing": (there == covers).mean()}
    found |= {name: right[covers, k].mean() for k, name in enumerate(("form", "shade", "texture"))}
    both = zip(edges[covers].tolist(), sights[covers, 4:8].tolist(), strict=True)
    return found | {"box, IoU": fmean(Box2D(*read).iou(Box2D(*true)) for read, true in both)}


# %%
def read_all(who, layer):
    """The scores of every held-out picture."""
    found = []
    for encoded, _, _, _, sights in held_out:
        words, edges = read_off(who, layer, encoded, sights) if who else one_guess(sights)
        there = words[:, 0] != NOTHING if who else np.full(len(sights), mostly)
        found.append(scores(sights, words, edges, there))
    return {name: [one[name] for one in found] for name in found[0]}


readings = {
    "vision tower": read_all(model, 0),
    "behind layer 1": read_all(model, 2),
    "tower, random weights": read_all(fresh, 0),
    "one guess for all": read_all(None, 0),
}
plot_intervals(with_intervals(readings), "share of tokens read right; for boxes, mean IoU")

# %% [markdown]
# The term of loss is again short. By hand, for the tower's tokens of the picture above: cross entropies of the words, how
# far the edges are off, and a price for tokens that are longer or shorter than words, on which the layers behind could
# not write well.

# %%
from torch.nn.functional import smooth_l1_loss

from unireason_lib.training.base.seeing import collate_sights

with torch.no_grad():
    inputs = {name: value for name, value in collate([encoded]).items() if name != "labels"}
    tower = model(**inputs, output_hidden_states=True).hidden_states[0]
    tokens = tower[0, sights[:, 0].astype(int)]
    state, table = body.norm(tokens), model.get_input_embeddings().weight
    what = torch.from_numpy(sights)
    there = what[:, 1] != NOTHING
    term = cross_entropy(state @ table[lists[0]].T, what[:, 1].long())
    for k in (1, 2):
        term += cross_entropy(state[there] @ table[lists[k]].T, what[there, 1 + k].long())
    edges = what[there, 4:8] - what[there, 8:10].repeat(1, 2)
    term += smooth_l1_loss(state[there] @ directions, 4 * edges, beta=0.2)
    length = tokens.norm(dim=-1) / table.norm(dim=-1).mean()
    term += 0.1 * (length - 1).square().mean()
    by_sights = guide.sights.loss(tower, **collate_sights([sights]), relative=True)
print(f"by hand {term:.6f}, by the library {by_sights:.6f}")
assert torch.isclose(term, by_sights, rtol=1e-4)

# %% [markdown]
# Second, **where to look** while a box is written: a head of layer 2 (*look*) is shown the tokens of that shape, and the
# head *said* of layer 1 its name, wherever that was said. What the head brings is read off behind layer 2: the edges of
# the box that is being written. The same head looks at a shape before the number of its picture is written (*number*,
# which is then read off in the same way) and before the shape is named (*glance*). Here is one picture and three questions. The stronger the
# colour, the more the head looks at a token while the box is written, with the share on the shape's own tokens above;
# what the picture does not get goes to the text.

# %%
from PIL import Image

from unireason_lib.boxes import format_box
from unireason_lib.training.base.seeing import find_looks


def pointing(messages):
    """A conversation encoded, where to look while its boxes are written, and its first picture's tokens."""
    encoded, truth, _, places, sights = with_sights(messages)
    words = processor.tokenizer.batch_decode(encoded.ids[:, None])
    return encoded, find_looks(words, encoded.own, sights, places, truth), places[0]


def point_at(picture, shape):
    """A question about one shape of a picture, and the right box as the reply."""
    shown = {"type": "image", "image": Image.fromarray(picture.pixels).convert("RGB"), "truth": picture}
    asked = {"type": "text", "text": f"Point at the {shape.form}."}
    reply = {"type": "text", "text": format_box(shape.box)}
    return [{"role": "user", "content": [shown, asked]}, {"role": "assistant", "content": [reply]}]


# %%
layer, head = HEADS["look"]
weights, titles = [], []
for who, name in ((model, "shipped"), (fresh, "random weights")):
    for shape in picture.shapes:
        encoded, hops, tokens = pointing(point_at(picture, shape))
        inputs = {key: value for key, value in collate([encoded]).items() if key != "labels"}
        with torch.no_grad():
            attention = who(**inputs, output_attentions=True).attentions[layer][0, head]
        writing = sorted({start for start, _ in hops["look"]})
        weights.append(attention[writing][:, tokens].mean(0).tolist())
        share = sum(attention[start, end] for start, end in hops["look"]) / len(writing)
        titles.append(f"{name}, the {shape.form}: {share:.0%}")
boxes = 2 * [[(k, shape.box)] for k, shape in enumerate(picture.shapes)]
show_picture_tokens([picture.pixels] * 6, [grid] * 6, weights=weights, boxes=boxes, titles=titles)

# %% [markdown]
# And over many held-out exercises that ask for a box:

# %%
points = [exercise("pointing", HELD_OUT + k, SEED) for k in range(count)]
points = [pointing(one.messages)[:2] for one in points if one.name == "point"]
watched = {
    "shipped": looked(model, points),
    "random weights": looked(fresh, points),
    "spread evenly": looked(None, points),
}
guide.watch(False)  # the fast attention again, for what follows
plot_intervals(with_intervals(watched), "share of attention on what should be looked at")

# %% [markdown]
# Nothing of sections 4 and 5 is in the architecture, and it ends with the base: fine-tuning and RL are learnt without it.
#
# ## 6 · What it can do
#
# While it learnt, it was tested on held-out exercises **free-running**: what it writes counts, not its loss. A test
# during training is small, so the bands (95 %) are wide. Exercises that test one skill are taken together here.

# %%
from unireason_lib.evaluation.statistics import wilson

CHOICES = (
    "form, texture, shade and texture, which box, place, relation, compare, extent, presence, odd one, count"
)
BOXES = ["place of box", "largest box", "nearest box"]
SKILLS = {
    "letter given text": (["letter"], "right"),
    "choice by boxes in words": ([f"{name} of boxes" for name in ("relation", "ratio")] + BOXES, "right"),
    "choice about one picture": ([*CHOICES.split(", "), "close-up"], "right"),
    "which of several pictures": (["which picture"], "right"),
    "boxes, IoU": (["point", "point at all", "where from", "point in picture"], "iou"),
}


def pooled(skills, names, key):
    """Value of several exercises together, and its 95 % interval."""
    rows = [skills[name] for name in names if key in skills.get(name, {})]
    n = sum(row["n"] for row in rows)
    value = sum(row["n"] * row[key] for row in rows) / n
    if key == "right":
        return value, *wilson(value * n, n)
    error = sum((row["n"] * row["iou_error"]) ** 2 for row in rows) ** 0.5 / n
    return value, value - 1.96 * error, value + 1.96 * error


# %%
tests = read_log(BASE / "log.jsonl", "skills")
measured = {name: [pooled(test["skills"], *what) for test in tests] for name, what in SKILLS.items()}
steps = [test["step"] for test in tests]
plot_stages(
    {
        "share right, or IoU": {
            name: list(zip(steps, [value for value, _, _ in values], strict=True))
            for name, values in measured.items()
        }
    },
    stages,
    "step",
    bands={name: [(low, high) for _, low, high in values] for name, values in measured.items()},
)

# %% [markdown]
# And what the finished model does, on a larger test of exercises that it has never seen. Every kind of exercise, with
# its interval:

# %%
import json

skills = json.loads((BASE / "skills.json").read_text(encoding="utf-8"))
by_kind = {
    f"{name}{note}": pooled(skills, [name], key)
    for key, note in (("right", ""), ("iou", ": IoU of the first box"))
    for name, row in skills.items()
    if key in row
}
best_first = dict(sorted(by_kind.items(), key=lambda item: -item[1][0]))
print(f"{sum(row['n'] for row in skills.values()):.0f} exercises in all")
plot_intervals({"shipped": best_first}, "share right, or mean IoU")

# %% [markdown]
# Three of them are what fine-tuning stands on, and had targets from the start. A bar that misses its target says so;
# fine-tuning (04) has to begin from what is there. Who guesses also finds the right one of several pictures now and
# then; how often is computed first.

# %%
from unireason_lib.display import plot_bars
from unireason_lib.training.base.skills import summary

several = [exercise("several pictures", HELD_OUT + k, SEED + 1) for k in range(4 * count)]
several = [one for one in several if one.name == "which picture"]
guessed = fmean(0.25 if one.letter else 1 / (len(one.messages[0]["content"]) - 1) for one in several)
print(f"which of several pictures, when guessed: {guessed:.2f}")
TARGETS = {"letter given text": 0.99, "which of several pictures": 0.90, "IoU on plain shapes": 0.60}
headline = summary(skills)
for name, (value, low, high) in headline.items():
    verdict = "reached" if value >= TARGETS[name] else "missed"
    note = f"held-out exercises; target {TARGETS[name]:g} {verdict}"
    publish(f"tiny base, {name}", value, interval=(low, high), note=note)
plot_bars(
    {name: value for name, (value, _, _) in headline.items()},
    "share right, or mean IoU",
    targets=TARGETS,
    intervals={name: (low, high) for name, (_, low, high) in headline.items()},
)

# %% [markdown]
# The first held-out exercises that ask for a box, as they come, good or bad: box 1 is the truth, box 2 what the model
# writes.

# %%
from unireason_lib.training.base.skills import replies

asked = [exercise("pointing", HELD_OUT + k, SEED + 1) for k in range(10 * profile.notebook.questions)]
asked = [one for one in asked if one.name == "point"][: profile.notebook.questions]
pictures, boxes, titles = [], [], []
for one, text in zip(asked, replies(model, processor, asked), strict=True):
    written = [box for box in parse_boxes(text)[:1] if not isinstance(box, Box3D)]
    overlap = written[0].iou(one.box) if written else 0.0
    pictures.append(one.messages[0]["content"][0]["image"])
    boxes.append([one.box, *written])
    asked_for = one.messages[0]["content"][1]["text"].partition(" the ")[2].rstrip(".?")
    titles.append(f"{overlap:.2f}  the {asked_for}")
show_pictures(pictures, boxes, titles, foot={0: "the truth", 1: "written by the model"})

# %% [markdown]
# The number above each picture is the IoU of the two.
#
# ## 7 · A piece of it, here and now
#
# `pretrain` runs the plan from fresh weights. `until` stops it early; rates and exercises stay those of the whole plan.
# We stop it **between** two checkpoints, as a crash would, and call it again: it goes on from the last checkpoint and
# repeats the steps after it.

# %%
import contextlib
import io

from unireason_lib.training.base.pretrain import pretrain

if smoke:
    piece = Plan(stages=((1.0, (("words", 2), ("shapes", 4))),), steps=60, warmup=5, seed=SEED)
    saved, killed, finish = 20, 30, 40
else:
    piece = Plan(seed=SEED)
    saved, killed, finish = 60, 90, min(stages[0][2], 200) // 10 * 10  # the first stage
for until in (killed, finish):
    with contextlib.redirect_stdout(io.StringIO()):  # the trainer prints every line of its log
        pretrain(start_from, run, piece, save_steps=saved, until=until)
    print(f"stopped at step {until}; checkpoints: {sorted(p.name for p in run.glob('checkpoint-*'))}")

# %% [markdown]
# The log has the repeated steps twice. If the run went on exactly, both times the losses are the same:

# %%
lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
by_step = {}
for line in lines:
    if "loss" in line:
        by_step.setdefault(line["step"], []).append(line["loss"])
twice = {step: losses for step, losses in by_step.items() if len(losses) == 2}
for step, (before, again) in twice.items():
    print(f"step {step}: loss {before:.5f}, and again {again:.5f}")
assert list(twice) == list(range(saved + 10, killed + 1, 10))
assert all(abs(before - again) < 1e-3 * before for before, again in twice.values())

# %% [markdown]
# `read_log` gives each step once. Beside it, the first steps of the log that ships. With `SEED = 0` both begin with the
# same weights and see the same exercises, so the curves should nearly coincide. Not to the last digit: machines round
# differently (number of threads, instructions, bfloat16 where it is fast), and where the letter is about to come a
# small difference can move it by some steps.

# %%
here = read_log(run / "log.jsonl")
assert [line["step"] for line in here] == list(range(10, finish + 1, 10))
shipped = [line for line in log if line["step"] <= finish]


def both(key):
    """The curve that ships and the one made here."""
    pair = {"shipped": shipped, "made here": here}
    return {name: [(line["step"], line[key]) for line in lines] for name, lines in pair.items()}


plot_stages(
    {"loss": both("loss"), "letters right": both("letter")},
    stages[:1],
    "step",
    levels={"letters right": [0.25]},
)

# %%
apart = [abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(shipped, here, strict=True)]
print(
    f"losses apart by {apart[0]:.1%} at first, by {fmean(apart):.1%} on average, by {max(apart):.1%} at most"
)
print(f"letters right at step {finish}: {here[-1]['letter']:.0%} here, {shipped[-1]['letter']:.0%} shipped")

# %% [markdown]
# ## 8 · The command that made it
#
# ```bash
# python -m unireason_lib base --out runs/tiny-base
# python -m unireason_lib base --measure data/tiny-base     # only its skills, on held-out exercises
# ```
#
# The first builds random weights, runs the whole plan (killed and called again it goes on), measures the skills, and
# leaves in `runs/tiny-base/model` what lies in `data/tiny-base`. How long that took, how much it read, and how large it
# is:

# %%
minutes = sum(line["train_runtime"] for line in read_log(BASE / "log.jsonl", "train_runtime")) / 60
per_stage = [sum(number for _, number in groups) for _, groups in plan.stages]
seen_in_all = sum(n * (end - start) for n, (_, start, end) in zip(per_stage, stages, strict=True))
megabytes = sum(file.stat().st_size for file in BASE.iterdir()) / 1e6
weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
print(
    f"{plan.steps} steps, {seen_in_all:,} exercises; {minutes:.0f} minutes with its tests, since its last start"
)
print(f"{weights:.1f} M weights, {megabytes:.1f} MB with tokenizer, log and skills")
assert megabytes <= 12

# %% [markdown]
# ## Check yourself

# %%
assert not set(FORMS) & anatomy
assert torch.isclose(by_hand, by_guide, rtol=1e-4) and torch.isclose(term, by_sights, rtol=1e-4)
assert here[-1]["step"] == finish and here[-1]["loss"] < here[0]["loss"]
if not smoke:  # what the finished base must show; smoke only checks that all of it runs
    assert last["loss"] < 0.5 * first["loss"] and last["letter"] <= 0.3  # the loss fell, and it guessed
    for shares in (found, watched):
        for name, values in shares["shipped"].items():
            assert fmean(values) > 2 * fmean(shares["spread evenly"][name]), name
    for name, values in readings["vision tower"].items():
        assert fmean(values) > fmean(readings["one guess for all"][name]), name
    # lower ends of the intervals, far above chance
    assert headline["letter given text"][1] > 0.9 and headline["IoU on plain shapes"][1] > 0.4
    assert SEED != 0 or apart[0] < 0.05  # the same weights and the same exercises
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. The options are "left and upper", "right and upper", "left and lower" and "right and lower". What would the hops
#    *said* and *option* find without the hop *phrase*? Draw the attention of the shipped base for such a question.
# 2. In training up to 90 words that mean nothing stand between options and answer. How far does the look-up reach? Put
#    0, 100, 200 and 400 of them there and measure the share of right letters.
# 3. `python -m unireason_lib base --steps 400` is much shorter than the plan. Will the letter come?
#
# <details><summary>Solutions</summary>
#
# 1. Two options end in "upper". Their last tokens would look alike, and attention would be spread over both. *phrase*
#    makes the last token stand for the whole. Encode messages of your own with `encode`, find the hops, and go on as in
#    section 4.
# 2. Take `exercise("words", HELD_OUT + k)` with `name == "letter"`, put the filler before the last line of the
#    question, ask with `replies` and compare the first character with `letter`. Up to 90 words it says how well the
#    base does what it practised. Beyond that nothing was practised: what you find is how far rotary positions carry by
#    themselves.
# 3. Stages are shares of the steps, so the first one would end long before the letter came in the curves above, and all
#    that follows would be learnt without letters. Better keep the first stages as long as they are and shorten the last
#    one: `Plan(stages=...)`.
#
# </details>
