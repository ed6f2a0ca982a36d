# %% [markdown]
# # 04 · Supervised fine-tuning: learning to point from examples
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/04_sft.ipynb)
#
# After this notebook you can
# - turn a grounded record into tokens, and say of each token whether the model is trained on it, and why;
# - fine-tune a model on images and volumes, stop it, go on with it, and read its curves without being fooled by the loss;
# - show what fine-tuning changed: the same scans and questions, before and after, with intervals.
#
# **Where we stand.** Notebook 01 made records, 03 the interface. Here a base that can see shapes and knows no anatomy learns
# both from examples. What comes out is what notebook 05 improves by reward and notebook 06 measures.
#
# **Time** twenty-odd minutes on 2 CPU cores in the profile `laptop`, nearly all of it in one cell that can be stopped and
# gone on with; seconds in `smoke`; hours on GPUs in `gpu`. **Needs** nothing from earlier notebooks: the base ships with
# the project (notebook 90 tells how it was made), and the data set is built here on first use. All patients are
# **synthetic** phantoms. *Nothing here is for clinical use.*

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
COMPONENTS = "full"  # of a reply, or fewer of them: no regions, no boxes, answer
RECORDS_2D = None  # records of slices to learn from; None takes those of the profile, 0 none
RECORDS_3D = None  # records of volumes
BASE = ""  # checkpoint to start from; empty takes that of the profile
DATA = ""  # data set or the authors' release, a folder or hub id; empty makes phantoms
M3D_ROOT = ""  # with the release: folder of the M3D volumes that you hold
RUN = ""  # folder of the run in runs/sft; empty derives it from the settings

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
import hashlib
import json
from dataclasses import asdict

from transformers.utils import logging

from unireason_lib.config import load_profile
from unireason_lib.notebooks import project_root, publish
from unireason_lib.training.encoding import injects

root = project_root()
changes = [f"sft.seed={SEED}"]
changes += [f"grounding.components={COMPONENTS}"] if COMPONENTS != "full" else []
for name, number in {"records_2d": RECORDS_2D, "records_3d": RECORDS_3D}.items():
    changes += [f"sft_data.{name}={number}"] if number is not None else []
profile = load_profile(PROFILE, "\n".join([OVERRIDES, *changes]))
components = profile.grounding.components
wanted = {"2d": profile.sft_data.records_2d, "3d": profile.sft_data.records_3d}
as_it_is = (OVERRIDES, changes, BASE) == ("", ["sft.seed=0"], "")
logging.set_verbosity_error()  # what libraries tell one another is not for readers
if PROFILE == "smoke":
    print("Profile smoke: a few steps on a handful of patients. All of this runs; the figures mean nothing.")

# %%
from unireason_lib.display import pipeline_figure

pipeline_figure("SFT")

# %% [markdown]
# ## 1 · The model to start from, and the data
#
# The base has the architecture of Qwen2.5-VL and was trained on plain shapes only: it knows letters, boxes and the form of
# a reply, and has never seen a patient.

# %%
from unireason_lib.grounding import load_profile_model
from unireason_lib.imaging import ProcessorFrame


def load_base():
    """The base with its processor, as it was before any fine-tuning."""
    return load_profile_model(profile.model, root, BASE or profile.model.base)


def short_hash(*parts):
    """Eight digits that change when anything in the parts does."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=4).hexdigest()


base, processor = load_base()
base_path = base.name_or_path
tokenizer, frame = processor.tokenizer, ProcessorFrame.from_processor(processor)
print(f"{type(base).__name__}, {sum(p.numel() for p in base.parameters()) / 1e6:.2f} M parameters")

# %% [markdown]
# The data set is that of notebook 01, larger: of some phantom patients one slice is shown, of others the whole volume, and
# nobody is both. Boxes are written in the pixels of this model's processor. A folder that is finished is taken as it is; a
# build that was stopped goes on. Its name follows from the settings and from the version of this package. With `DATA` the
# notebook learns from a set of your own, or from the authors' release, and nothing else in it changes.

# %%
from unireason_lib import __version__
from unireason_lib.dataset.build import phantom_set
from unireason_lib.training.data import data_folder

folder, made = data_folder(DATA) if DATA else None, None
if not DATA:
    patients = profile.sft_data.patients_2d, profile.sft_data.patients_3d
    made_of = short_hash(patients, profile.dataset.model_dump(), asdict(frame), __version__)
    place = root / "runs" / "data" / f"phantoms-{PROFILE}-{made_of}"
    report = phantom_set(place, *patients, frame, profile.dataset, workers=2)
    folder, made = report.folder, report.manifest["settings"]
    print(f"{folder.relative_to(root)}: {report.manifest['records']:,} records")
    print(f"{report.built:,} patients made now, {report.seconds:.0f} s")

# %% [markdown]
# The same set from the command line; a finished folder answers at once, and one that was built otherwise is refused.

# %%
import shlex

from unireason_lib.cli import app

if made is not None:
    command = ["build", "--out", str(folder), "--model", base_path, "--images", made["images"]]
    for source in made["sources"]:
        command += ["--source", source]
    command += ["--size", ",".join(map(str, made["size"])), "--per-family", str(made["per_family"])]
    command += ["--prior-studies", str(made["prior_studies"]), "--workers", "2"]
    command += ["--fractions", ",".join(repr(made["fractions"][split]) for split in ("train", "val", "test"))]
    print("python -m unireason_lib", shlex.join(command).replace(f"{root}/", ""), "\n")
    app(command, standalone_mode=False)

# %% [markdown]
# What to learn from: a selection by dimension, in a random order. `RECORDS_3D` makes volumes scarce; the ablations of notebook
# 07 turn it. A smaller count is part of a larger one, so that "more data" never also means "other data".

# %%
from collections import Counter

from unireason_lib.training.callbacks import balanced
from unireason_lib.training.data import images_from, training_records

held = M3D_ROOT or None
records = training_records(folder, wanted, seed=SEED, m3d_root=held)
images = images_from(folder, m3d_root=held)
others = training_records(folder, split="val", seed=SEED, m3d_root=held)
held_out = balanced(others, profile.grounding.free_running_questions)
print("to learn from:    ", dict(Counter(record.dimension for record in records)))
print("to look after it: ", dict(Counter(record.dimension for record in held_out)), "of other patients")
assert not {record.patient for record in records if record.patient} & {record.patient for record in held_out}

# %%
import pandas as pd

kinds = {
    d: Counter(record.family or "all" for record in records if record.dimension == d) for d in ("2d", "3d")
}
pd.DataFrame({d.upper(): pd.Series(found) for d, found in kinds.items()}).plot.barh(xlabel="records");

# %% [markdown]
# One record in 2D. Boxes, crops and words are what the model shall write and get; the numbers are those of the true boxes.

# %%
from unireason_lib.display import show_record


def example_of(dimension):
    """The first record of a dimension that points, about a lesion where there is one."""
    mine = [record for record in everything if record.dimension == dimension and record.boxes]
    deepest = {record.id: max(getattr(box, "depth", 1) for box in record.boxes) for record in mine}
    return max(mine, key=lambda record: (record.family == "lesion analysis", min(2, deepest[record.id])))


everything = training_records(folder, seed=SEED)
flat, deep = example_of("2d"), example_of("3d")
show_record(flat, images(flat))

# %% [markdown]
# And one in 3D: a box is a cuboid and fetches its rectangle from every slice that it spans.

# %%
show_record(deep, images(deep))

# %% [markdown]
# ## 2 · From record to tokens: what carries loss
#
# A grounded reply is **one** assistant turn in which text and images alternate. The model generated the text; the images were
# injected. It must learn to generate what it generates, and must not be asked to predict the pixels that it will be given. So
# the loss is on model-generated tokens only. Once by hand, on a conversation short enough to read:

# %%
from unireason_lib.grounding import crop_region
from unireason_lib.training.encoding import Encoder

image = frame.aligned(images(flat)[0])
crop = crop_region([image], flat.boxes[0])[0]
conversation = [
    {
        "role": "user",
        "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "<think>I look.<|box_start|>[8,8,40,40]<|box_end|>"},
            {"type": "image", "image": crop},
            {"type": "text", "text": " A lesion.</think>A. lesion"},
        ],
    },
]
encoded = Encoder(processor)(conversation)
print(tokenizer.decode(encoded.ids).replace("<|image_pad|>", "·"))

# %% [markdown]
# The rule: everything after the assistant's header carries loss, except an image with its two delimiters, and the line break
# that the template adds behind `<|im_end|>`. The end itself does: a model that never learns to stop never stops.

# %%
words = tokenizer.convert_ids_to_tokens(encoded.ids)
begin = len(words) - words[::-1].index("<|im_start|>") + 2  # behind <|im_start|>, assistant, line break
by_hand, in_image = [], False
for at, word in enumerate(words):
    in_image = in_image or word == "<|vision_start|>"
    by_hand.append(at >= begin and not in_image)
    in_image = in_image and word != "<|vision_end|>"
by_hand[-1] = False
assert by_hand == encoded.loss_mask.tolist()
print("loss on:", repr(tokenizer.decode(encoded.ids[by_hand])))

# %% [markdown]
# The library finds the same positions another way, from marks in the chat template (`Encoder`), and agrees token by token.
# Now the 2D record as it is trained on. The first row counts the tokens:

# %%
from unireason_lib.display import token_strip
from unireason_lib.training.encoding import conversation as conversation_of

encoder = Encoder(processor)
one = encoder(conversation_of(flat, images(flat)))
assert tokenizer.decode(one.ids[one.loss_mask]) == flat.reply + "<|im_end|>"
token_strip(one, tokenizer)

# %% [markdown]
# And the one in 3D, with its slices and crops: most of it is given.

# %%
other = encoder(conversation_of(deep, images(deep)))
token_strip(other, tokenizer)

# %% [markdown]
# How that is over many records:

# %%
from unireason_lib.display import token_owners

sample = records[: profile.evaluation.questions]
owners = {record.dimension: Counter() for record in sample}
for record in sample:
    found = encoder(conversation_of(record, images(record)))
    owners[record.dimension].update(token_owners(found, tokenizer)[1])
with_loss = {d: found["own"] / found.total() for d, found in sorted(owners.items())}
for d, part in with_loss.items():
    print(f"{d.upper()}: {part:.0%} of the tokens carry loss")

# %%
named = {
    "prompt": "question",
    "image": "its images",
    "own": "reply: loss",
    "injected": "injected regions",
}
sampled = Counter(record.dimension for record in sample)
panels = {
    f"tokens a record, {d.upper()}": {named[who]: round(owners[d][who] / sampled[d], 1) for who in named}
    for d in with_loss
}
pd.DataFrame(panels).plot.barh(subplots=True, layout=(1, 2), sharex=False, legend=False, figsize=(9, 2));

# %% [markdown]
# ## 3 · What learns
#
# As in the paper, vision tower and merger stay as they are; the language model learns in full. On two cores that also
# means: what the tower makes of a picture need be computed only once.

# %%
from unireason_lib.training.sft import freeze

learns, frozen = freeze(base, profile.grounding.freeze_vision)
parts = {"learns": Counter(), "frozen": Counter()}
for name, parameter in base.named_parameters():
    part = "vision tower and merger" if "visual" in name else "embedding" if "embed" in name else "layers"
    parts["learns" if parameter.requires_grad else "frozen"][part] += parameter.numel()
print(f"{learns:,} parameters learn, {frozen:,} do not")
assert sum(parts["learns"].values()) == learns
assert not profile.grounding.freeze_vision or not any(p.requires_grad for p in base.model.visual.parameters())
pd.DataFrame({name: pd.Series(found) for name, found in parts.items()}).plot.barh(xlabel="parameters");

# %% [markdown]
# The tokens of the interface are single tokens, so pointing is one decision and not a spelling exercise. A tokenizer that
# lacks `<think>` gets it, without touching rows that are there (the embedding is tied to the output layer, and
# checkpoints are padded: cutting it to the tokenizer's length would throw rows away).

# %%
from unireason_lib.training.sft import add_think_tokens

print("tokens added:", add_think_tokens(base, processor))
for token in ("<think>", "</think>", "<|box_start|>", "<|box_end|>", "<|vision_start|>", "<|vision_end|>"):
    print(f"{token:<18}{tokenizer.encode(token)}")
    assert len(tokenizer.encode(token)) == 1

# %% [markdown]
# ## 4 · A data path that does not keep the model waiting
#
# A step should never wait for its data. So all records are decoded, cropped and tokenized **before** the first step and kept,
# images as 8-bit arrays. And because the tower is frozen, so is what it makes of an image: several questions are about
# one patient, and each image goes through the tower once, however often it is shown.

# %%
import time

from unireason_lib.training.data import Examples

began = time.perf_counter()
limits = {"components": components, "max_length": profile.sft.max_length}
examples = Examples(sample, images, processor, **limits)
encoding = time.perf_counter() - began
size = sum(one.ids.nbytes + one.loss_mask.nbytes + sum(i.nbytes for i in one.images) for one in examples)
print(f"{len(examples)} examples: {size / 1e6:.1f} MB, {encoding / len(examples) * 1e3:.1f} ms each")

# %%
from unireason_lib.training.encoding import with_features

shown = [image for one in examples for image in one.images]
began = time.perf_counter()
cached = with_features(examples, processor, base)
vision_time = time.perf_counter() - began
features = {id(tensor): tensor for one in cached for tensor in one.features}.values()
features_size = sum(tensor.nbytes for tensor in features)
print(f"{len(features)} different images of {len(shown)}, {vision_time:.1f} s: {features_size / 1e6:.1f} MB")
scale = len(records) / len(examples)
both = size * scale / 1e6, features_size * scale / 1e6
print(f"all {len(records):,} records: about {both[0]:,.1f} and {both[1]:,.1f} MB")

# %% [markdown]
# At the scale of the paper neither fits into memory; then examples are made in the loader's worker processes, and batches
# carry pixels (`feature_cache: false`).
#
# A batch is as long as its longest example, and the rest is padding. A volume beside a slice makes the slice pay for eight
# images that it does not have. Batches of similar length avoid that:

# %%
import random

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

lengths = examples.lengths
rows = profile.sft.per_device_train_batch_size


def padding(order):
    """Percentage of padding when examples are put into batches in this order."""
    batches = [[lengths[k] for k in order[first : first + rows]] for first in range(0, len(order), rows)]
    return 100 * (1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches))


draw = torch.Generator().manual_seed(SEED)
a_step = rows * profile.sft.gradient_accumulation_steps
grouped = list(LengthGroupedSampler(a_step, lengths=lengths, generator=draw))
mixed = random.Random(SEED).sample(grouped, len(grouped))
paddings = {"random batches": padding(mixed), "similar lengths": padding(grouped)}
pd.Series(paddings).plot.barh(xlabel="padding, % of all tokens", figsize=(7, 1.4));

# %% [markdown]
# ## 5 · One step by hand
#
# Everything is ready: a batch, labels where the model-generated tokens are, `-100` elsewhere. The output at a position
# predicts the **next** token, hence the shift. The loss is the mean cross entropy over the labelled tokens. The model's own
# loss is the same number, and so is a shorter way: logits only where somebody looks at them. (The library makes TRL's trainer
# do that on a CPU too; of a tiny model the output layer costs as much as all layers.)

# %%
from torch.nn import functional

from unireason_lib.training.encoding import IGNORED, Collator


def labelled_token_loss(model, batch):
    """The mean cross entropy over labelled tokens, from their logits alone."""
    inputs, labels = {k: v for k, v in batch.items() if k != "labels"}, batch["labels"][:, 1:]
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    kept = labels != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[kept]).float(), labels[kept])


def on_device(batch):
    """The tensors of a batch where the model is."""
    return {k: v.to(base.device) if torch.is_tensor(v) else v for k, v in batch.items()}


# %%
batch = on_device(Collator(processor)([examples[k] for k in range(min(rows, len(examples)))]))
with torch.no_grad():
    logits = base(**{name: value for name, value in batch.items() if name != "labels"}).logits
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORED
    loss = functional.cross_entropy(logits[:, :-1][labelled].float(), targets[labelled])
    for other_loss in (base(**batch).loss, labelled_token_loss(base, batch)):
        torch.testing.assert_close(loss, other_loss.float(), rtol=1e-3, atol=1e-3)
print(f"loss {loss:.3f} on {int(labelled.sum())} of {labelled.numel()} positions; the same three times")

# %% [markdown]
# Backward, and a few steps of AdamW on this one batch: the loss on it falls, and the vision tower has not even a gradient.
# The batch carries the cached features of the tower in place of pixels now; the loss is the same.

# %%
lean = on_device(Collator(processor)([cached[k] for k in range(min(rows, len(examples)))]))
learning = [parameter for parameter in base.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(learning, lr=profile.sft.learning_rate / 10)
base.train()
falling, began = [], time.perf_counter()
for _ in range(4):
    loss_now = labelled_token_loss(base, lean)
    falling.append(loss_now.item())
    loss_now.backward()
    optimizer.step()
    optimizer.zero_grad()
step_time = (time.perf_counter() - began) / 4
print("loss:", " ".join(f"{value:.3f}" for value in falling))
torch.testing.assert_close(falling[0], loss.item(), rtol=1e-2, atol=1e-2)
assert falling[-1] < falling[0]
assert not profile.grounding.freeze_vision or all(p.grad is None for p in base.model.visual.parameters())

# %% [markdown]
# What an example costs in each of its stations on this machine. (The batch mixes slices and volumes, so the last bar holds
# their padding too.)

# %%
cost = {
    "ahead: decode, crop, tokenize": encoding / len(examples),
    "ahead: vision tower": vision_time / len(examples),
    "in the step: language model": step_time / len(lean["labels"]),
}
base = optimizer = learning = lean = loss_now = None  # trained on one batch: of no further use
pd.Series(cost).mul(1e3).plot.barh(xlabel="milliseconds an example", figsize=(7, 1.8));

# %% [markdown]
# `make bench` compares the whole trainer with a bare loop like this one, in tokens a second.
#
# ## 6 · Training
#
# The trainer is TRL's `SFTTrainer`, and the section `sft` of the profile holds arguments of its `SFTConfig`; ours are the
# batches of similar length and the loss on labelled tokens. Beside the loss, the log holds **free-running** replies: now and
# then, patients who are not trained on are asked, the model generates a whole reply (boxes a region, gets its tokens, goes
# on), and letter, boxes and format are scored.

# %%
from unireason_lib.grounding import Settings
from unireason_lib.training.callbacks import FreeRunning, read_log

generation, every = profile.generation, profile.grounding.free_running_steps
how = Settings(generation.max_new_tokens, generation.max_rounds * injects(components))


class Aloud(FreeRunning):
    """Free-running tests whose result is also a line below the cell."""

    def measure(self, model, processor):
        found = super().measure(model, processor)
        accuracy = [f"{d.upper()} {part['accuracy']:.0%} right" for d, part in found.items()]
        print(f"{(time.perf_counter() - began) / 60:5.1f} min: {', '.join(accuracy)}", flush=True)
        return found


free_running = Aloud(held_out, every, images, how, profile.grounding.keep_best)
for name in ("max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size"):
    print(f"{name:<30}{getattr(profile.sft, name)}")

# %% [markdown]
# The folder of the run has a name that follows from everything that decides its outcome (settings, records, base), so that
# two runs never share one.
# A run that is finished is taken as it is; one that was stopped (with *interrupt kernel*, or by a power cut) goes on from
# its last checkpoint when this cell runs again. (A 7B model is trained by the command further down, under `accelerate
# launch`; give its folder as `RUN`, and this notebook reads it.)

# %%
from unireason_lib.inference import model_identity
from unireason_lib.training.checkpoints import run_settings
from unireason_lib.training.sft import train_sft

settings = run_settings(profile, "sft")
learnt_from = [(record.id, record.reply) for record in records]
identity = short_hash(settings, learnt_from, model_identity(base_path))
run = RUN or f"{PROFILE}-{components.replace(' ', '-')}-seed{SEED}-{identity}"
out = root / "runs" / "sft" / run
print(f"runs/sft/{run}:", "finished before" if (out / "model").is_dir() else "trains now")
began = time.perf_counter()
tuned_path = train_sft(load_base()[0], processor, records, images, out, profile, callbacks=[free_running])
spent = read_log(out / "log.jsonl", "train_runtime")[-1]["train_runtime"] / 60
print(f"{tuned_path.relative_to(root)}: {spent:.1f} min of training since its last stop")

# %% [markdown]
# The model that ships, `data/tiny-sft`, was made by this recipe in the profile `laptop` with seed 0, before rationales about
# sides stated the centres that they compare. The same run from the command line:

# %%
command = ["sft", "--data", str(folder), "--model", base_path, "--out", str(out)]
command += ["--profile", PROFILE]
for change in [OVERRIDES, *changes]:
    command += ["--set", change] if change else []
print("python -m unireason_lib", shlex.join(command).replace(f"{root}/", ""))

# %% [markdown]
# ### Reading the curves
#
# First the loss, on the tokens that carry it:

# %%
from unireason_lib.display import plot_lines

log, asked = read_log(out / "log.jsonl"), read_log(out / "log.jsonl", "free_running")
points = [(line["step"], line["loss"]) for line in log]
plot_lines({"loss": points}, "step", "loss, nats a token")

# %% [markdown]
# It tells little about what we want. Here is the proportion of tokens that are predicted right **when the text before them is
# given**, from the same log, beside the letters that the model gives free-running, when it generates the text itself:

# %%
chance = sum(1 / len(record.options) for record in held_out) / len(held_out)


def over_steps(key):
    """Curves of a free-running value, one a dimension; what was not measured is left out."""
    return {
        d: [(line["step"], part[key]) for line in asked if (part := line["free_running"][d])[key] is not None]
        for d in asked[-1]["free_running"]
    }


curves = {"tokens, text given": [(line["step"], line["mean_token_accuracy"]) for line in log]}
curves |= {f"{d.upper()} letters, free": points for d, points in over_steps("accuracy").items()}
plot_lines(curves, "step", "proportion right", reference=("letters by chance", chance))


# %% [markdown]
# The letter is one token among many in a reply. So the loss can fall a long way while the letters stand still, and look
# nearly finished while they are guesses. In numbers, from this log: where the loss had most of its way behind it, and the
# end.

# %%
def progress_at(step):
    """What the log says of a step: tokens right when those before are given, and letters right alone."""
    given = max((line for line in log if line["step"] <= step), key=lambda line: line["step"])
    found = next(line["free_running"] for line in asked if line["step"] == step)
    letters = ", ".join(f"{d.upper()} {part['accuracy']:.0%}" for d, part in found.items())
    fall = (log[0]["loss"] - given["loss"]) / (log[0]["loss"] - log[-1]["loss"] or 1)
    text = f"step {step}: the loss has come {fall:.0%} of its way, {given['mean_token_accuracy']:.0%} of the tokens"
    return fall, f"{text} are right, letters {letters} (chance {chance:.0%})"


stories = [progress_at(line["step"]) for line in asked]
print(next((text for fall, text in stories if fall > 0.8), stories[-1][1]))
print(stories[-1][1])
for d in with_loss:
    print(
        f"{d.upper()}: the letter is one of {owners[d]['own'] / sampled[d]:.0f} generated tokens of a reply"
    )

# %% [markdown]
# That is why no run is judged by its loss here. Boxes (overlap with the true ones) and format, free-running too:

# %%
fitting = {f"IoU, {d.upper()}": points for d, points in over_steps("iou").items() if points}
fitting |= {f"format, {d.upper()}": points for d, points in over_steps("format").items()}
plot_lines(fitting, "step", "IoU, format compliance")

# %% [markdown]
# ## 7 · Before and after
#
# The same scans, the same questions, patients of the test split whom neither training nor validation has seen. Which ones
# are shown is not chosen by the outcome: the first question of each dimension about a lesion.

# %%
from unireason_lib.evaluation import open_benchmark

shape, prior_studies = profile.dataset.shape, min(300, profile.dataset.prior_studies)
limit = profile.grounding.test_questions
if DATA:
    test = open_benchmark(str(folder), split="test", limit=limit, frame=frame, m3d_root=held)
else:
    known = {"size": shape, "prior_studies": prior_studies}
    test = open_benchmark("phantom", split="test", limit=limit, frame=frame, **known)


def first_lesion(dimension):
    """The first question about a lesion, else the first that has something to point at."""
    mine = [item for item in test if item.dimension == dimension]
    return min(mine, key=lambda item: (item.family != "lesion analysis", not item.truth_boxes))


shown = {d: first_lesion(d) for d in ("2d", "3d")}
for d, item in shown.items():
    boxes = "; ".join(f"{name} {[int(n) for n in box.as_tuple()]}" for name, box in item.truth_boxes)
    print(f"{d.upper()}: {item.question} {item.answer}. {item.options[item.answer]}; {boxes}")

# %%
from unireason_lib.inference import Checkpoint

device = None if profile.model.device == "auto" else profile.model.device
adapted = (tuned_path / "adapter_config.json").is_file()
tuned = (base_path, str(tuned_path)) if adapted else (str(tuned_path), None)
models = {
    "base": Checkpoint(base_path, dtype=profile.model.dtype, device=device),
    "fine-tuned": Checkpoint(*tuned, dtype=profile.model.dtype, device=device),
}
requests = [item.request(item.load()) for item in shown.values()]
traces = {name: model.generator().generate(requests, **asdict(how)) for name, model in models.items()}

# %%
from unireason_lib.display import show_trace

show_trace(traces["base"][0], shown["2d"].load(), frame=frame)

# %%
show_trace(traces["fine-tuned"][0], shown["2d"].load(), frame=frame)

# %% [markdown]
# And the volume, before and after:

# %%
show_trace(traces["base"][1], shown["3d"].load(), frame=frame)

# %%
show_trace(traces["fine-tuned"][1], shown["3d"].load(), frame=frame)

# %% [markdown]
# One reply is an anecdote. So both models are asked a sample of the test, with intervals over patients. Notebook 06 asks many
# more, and asks what a model reaches that sees nothing.

# %%
from unireason_lib.display import plot_intervals
from unireason_lib.evaluation import evaluate, read_table, summary

tables = {}
for name, model in models.items():
    file = out / f"test-{name}-{short_hash(asdict(how))}.jsonl"
    evaluate(test, file, model, settings=how, batch_size=profile.evaluation.batch_size, quiet=True)
    table = summary(read_table(file))
    tables[name] = table[table["family"] == "all"].set_index("dimension")
by_chance = sum(1 / len(item.options) for item in test) / len(test)


def measured(name, measure, scale=1):
    """Dimension -> value and ends of the interval of a measure, where it applies."""
    columns = [measure, f"{measure}_low", f"{measure}_high"]
    rows = tables[name].loc[[d for d in ("2d", "3d") if d in tables[name].index], columns]
    return {d.upper(): tuple(scale * row.to_numpy()) for d, row in rows.iterrows() if row.notna().any()}


right = {name: measured(name, "accuracy", 100) for name in tables}
plot_intervals(right, f"right of {len(test)} questions, %", reference=("chance", 100 * by_chance))

# %% [markdown]
# The boxes, against the true ones (intersection over union, the mean over all structures that should be boxed):

# %%
overlaps = {name: found for name in tables if (found := measured(name, "iou_all"))}
plot_intervals(overlaps, "IoU")

# %%
import math

asked_of = Counter(item.dimension.upper() for item in test)
notes = {d: f"{n} questions on held-out phantoms" for d, n in asked_of.items()}
for d, (value, *ends) in right["fine-tuned"].items():
    note = f"{notes[d]}, chance {by_chance:.0%}"
    publish(f"SFT: {d} accuracy", value, "%", interval=tuple(ends), note=note)
for d, (value, *ends) in overlaps.get("fine-tuned", {}).items():
    interval = None if any(map(math.isnan, ends)) else tuple(ends)
    publish(f"SFT: {d} IoU", value, interval=interval, note=notes[d])
compliance = {d: value for d, (value, *_) in measured("fine-tuned", "format").items()}

# %% [markdown]
# ## 8 · Adapters, and a run that is killed
#
# A 7B model in full needs several large GPUs. LoRA trains small matrices beside the frozen ones instead: one setting
# (`grounding.sft_lora_r`). They sit in the language model only; a careless list of layer names would put them into the vision
# tower, whose layers have the same names. A few steps on a few records:

# %%
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore", FutureWarning)  # of adapters about the next transformers
scratch = Path(tempfile.mkdtemp())
small = "grounding.sft_lora_r=8, sft.max_steps=4, sft.per_device_train_batch_size=2, sft.save_steps=2"
small += ", sft.gradient_accumulation_steps=2, sft.logging_steps=1"
short = load_profile(PROFILE, "\n".join([OVERRIDES, *changes, small]))


def short_run(name, callbacks=()):
    """A run of four steps from the base into a folder of its own; gives the model."""
    model, _ = load_base()
    train_sft(model, processor, everything[:16], images, scratch / name, short, callbacks=callbacks)
    return model


adapted_model = short_run("whole")
adapters = {name: p.numel() for name, p in adapted_model.named_parameters() if p.requires_grad}
assert adapters and all("lora_" in name and "language_model" in name for name in adapters)
sizes = [file.stat().st_size for file in (scratch / "whole" / "model").glob("adapter_model.*")]
print(
    f"{sum(adapters.values()):,} parameters learn instead of {learns:,}; the adapter has {sum(sizes) / 1e3:.0f} kB"
)

# %% [markdown]
# The same run again, killed in its third step and gone on with. A checkpoint holds weights, optimizer, schedule and the
# place in the order of the data, so the losses are those of the run that was left alone:

# %%
import shutil

from transformers import TrainerCallback


class Kill(TrainerCallback):
    """What a power cut does, after the third step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


try:
    short_run("killed", [Kill()])
except KeyboardInterrupt:
    print("killed; left:", ", ".join(sorted(path.name for path in (scratch / "killed").glob("checkpoint-*"))))
short_run("killed")
logs = [read_log(scratch / name / "log.jsonl") for name in ("whole", "killed")]
unbroken, resumed = ([line["loss"] for line in lines] for lines in logs)
for step, (a, b) in enumerate(zip(unbroken, resumed, strict=True), start=1):
    print(f"step {step}: {a:.6f} {b:.6f}")
assert len(unbroken) == 4 and max(abs(a - b) for a, b in zip(unbroken, resumed, strict=True)) < 1e-5
shutil.rmtree(scratch)

# %% [markdown]
# ## Check yourself

# %%
assert json.loads((out / "settings.json").read_text())["settings"] == settings
assert not any(
    one.loss_mask[one.ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")].any() for one in examples
)
assert all(0 < part < 1 for part in with_loss.values())
assert PROFILE == "smoke" or padding(grouped) <= padding(mixed)  # a handful of batches proves nothing
assert len(asked) >= 1 and asked[-1]["step"] >= log[-1]["step"]  # the last test is of the finished model
if PROFILE != "smoke" and as_it_is:
    assert right["fine-tuned"]["2D"][1] > 100 * by_chance, "2D is not clearly above chance"
    assert right["fine-tuned"]["2D"][0] > right["base"]["2D"][0]
    assert compliance["2D"] >= 0.9
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. Put the injected tokens into the loss by mistake (`loss_mask[begin:] = True` for an `Encoded`). What becomes of the number, and
#    what would the model learn?
# 2. How much of the loss is the letter? Compute the cross entropy at the letters alone, in the batch of section 5.
# 3. Train without region tokens, and without volumes. Which of the curves moves? (Two runs of some minutes.)
#
# <details><summary>Solutions</summary>
#
# 1. `wrong = dataclasses.replace(one, loss_mask=np.arange(len(one)) >= one.loss_mask.argmax())`, then
#    `labelled_token_loss(load_base()[0], Collator(processor)([wrong]))`. Labels would be `<|image_pad|>` for every token of a crop: trivial to predict after the
#    first, so the mean loss *falls* and looks better. The model learns to write image tokens, and generation forbids them.
# 2. The letter is the token behind `</think>`: `letter = torch.roll(batch["input_ids"] == end, 1, 1)[:, 1:] & labelled` with
#    `end = tokenizer.convert_tokens_to_ids("</think>")`, then the cross entropy of `logits[:, :-1][letter]`. Times its
#    proportion of the generated tokens, that is all that the loss knows of the answers.
# 3. `python -m unireason_lib tutorial 04 -p COMPONENTS="no regions"`, and `-p RECORDS_3D=0`. Each run has a folder of its own in
#    `runs/sft`. Notebook 07 does this with several seeds.
#
# </details>
