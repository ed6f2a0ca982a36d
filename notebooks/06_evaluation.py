# %% [markdown]
# # 06 · Evaluation you can trust
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/06_evaluation.ipynb)
#
# After this notebook you can
# - turn a reply into a letter, a box into an overlap, and many of them into numbers with intervals;
# - say what a number is worth: beside chance, beside what the words of the questions give away, and beside the same model when its
#   images or its crops are taken away;
# - ask any model about your own scans or about a public benchmark, in a run that can be killed at any time.
#
# **Where we stand.** Notebook 04 made the model that is asked here. Notebook 07 compares several models, with the same
# tools.
#
# **Time** about one minute on 2 CPU cores the first time, half a minute when the replies are there already. **Needs** a
# model; the tiny fine-tuned one ships with the project. **Synthetic**: the phantoms, none of whom was used in training.
# **Real**: the brain MRI of section 8, and a CT if you have one there. *Nothing here is for clinical use.*

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
MODEL = ""  # a folder or hub id; empty: the model of the profile
DATA = ""  # data set or the authors' release whose test is asked, a folder; empty: phantoms
M3D_ROOT = ""  # with the release: folder of the M3D volumes that you hold
RESULTS = ""  # folder for the replies; empty: one below runs/evaluation
REAL = ""  # folder with abdomen_ct.nii.gz and abdomen_seg.nii.gz; empty: data/private, if it holds them

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
pipeline_figure("evaluation")

# %% [markdown]
# ## 1 · One reply, scored by hand
#
# Three things make an evaluation: a model, questions whose answers are known, and a rule for how replies are written
# (token budget, rounds). A `Checkpoint` names a model and loads it when the first question is asked.

# %%
from unireason_lib.grounding import Settings
from unireason_lib.grounding.model import adapter_base
from unireason_lib.inference import Checkpoint

name = MODEL or profile.model.path
local = project_root() / name
found = str(local if local.is_dir() else name)
device = None if profile.model.device == "auto" else profile.model.device
base = adapter_base(local)  # of an adapter, the model it was trained on
checkpoint = Checkpoint(base or found, found if base else profile.model.adapter, profile.model.dtype, device)
writing = profile.generation
settings = Settings(
    writing.max_new_tokens, writing.max_rounds, temperature=writing.temperature, top_p=writing.top_p
)
print(f"{checkpoint.identity()['model']['name']}: at most {settings.max_new_tokens} tokens of its own")

# %% [markdown]
# The questions are about phantom patients with numbers that training never reaches: a slice of one, the volume of the
# next, two questions each. The answer prior is taken out of them as out of the training questions (notebook 01), so
# that reading them does not help. Boxes are written in pixels of this model's processor. `DATA` asks another benchmark in their place.

# %%
from collections import Counter

from unireason_lib.evaluation import open_benchmark
from unireason_lib.training.data import data_folder

shape = tuple(profile.dataset.shape)
asked = {"split": "test", "limit": profile.evaluation.questions, "frame": checkpoint.frame()}
if DATA:
    benchmark = open_benchmark(str(data_folder(DATA)), m3d_root=M3D_ROOT or None, **asked)
else:
    benchmark = open_benchmark(
        "phantom", size=shape, seed=SEED, prior_studies=min(300, profile.dataset.prior_studies), **asked
    )
item_of = {item.id: item for item in benchmark}
print(f"{len(benchmark)} questions about {len({item.patient for item in benchmark})} patients")
print(dict(Counter(item.dimension for item in benchmark)))

# %% [markdown]
# One question is asked. `ask_items` gives a line for it: the question, the reply, and how it was scored.

# %%
from unireason_lib.display import show_trace
from unireason_lib.evaluation import ask_items

generator = checkpoint.generator()
frame = generator.frame
item = next(i for i in benchmark if i.dimension == "2d" and len(i.truth_boxes) == 1)
(line,) = ask_items(generator, [item], settings=settings)
show_trace(line, item.load(), frame=frame)

# %% [markdown]
# By hand: what stands behind the thought, and the letter at its beginning. The line says the same.

# %%
import re

tail = line["text"].rpartition("</think>")[2].strip()
letter = re.match(r"([A-D])\. ", tail)
print(f"behind the thought: {tail[:60]!r}\nby hand: {letter and letter[1]}   the line: {line['prediction']}")
print(f"right: {item.answer}   scored as {'right' if line['correct'] else 'wrong'}")
assert letter is None or line["prediction"] == letter[1]
assert line["correct"] == (line["prediction"] == item.answer)

# %% [markdown]
# ### Replies that are harder to read
#
# A trained model ends with `B. liver`. Other models write what they like. Two readers: ours, and a pattern that is
# often seen (the code released with the paper has one like it), which takes any letter from a to d that stands alone.
# The English article is such a letter.

# %%
import pandas as pd

from unireason_lib.answers import extract_choice


def lone_letter(text):
    """The first letter from a to d that stands alone."""
    found = re.search(r"\b([a-d])\b", text, re.IGNORECASE)
    return found[1].upper() if found else None


choices = {"A": "spleen", "B": "liver", "C": "left kidney", "D": "right kidney"}
replies = {
    "<think>I look at it.</think>B. liver": "B",
    "(C)": "C",
    "The answer is D.": "D",
    "It is the left kidney.": "C",
    "Large and round.\nB": "B",
    "A mass is seen. B. Liver": "B",
    "This shows a mass, so the answer is B.": "B",
}

# %% [markdown]
# And replies that answer nothing. Not to choose is a class of its own, an **abstention**: it counts as wrong, and it is
# counted. A thought that was never closed has not answered yet.

# %%
replies |= dict.fromkeys(
    ["A mass is seen.", "It could be A or B.", "I cannot tell.", "<think>It may be D. right kidney"]
)
readers = pd.DataFrame({"reply": list(replies), "meant": list(replies.values())})
readers["ours"] = [extract_choice(text, choices) for text in readers["reply"]]
readers["lone letter"] = readers["reply"].map(lone_letter)
readers["lone letter is wrong"] = readers["lone letter"].fillna("-") != readers["meant"].fillna("-")
assert (readers["ours"].fillna("-") == readers["meant"].fillna("-")).all()
readers

# %% [markdown]
# ## 2 · How well does a box fit?
#
# **Intersection over union** (IoU): what two boxes share, divided by what they cover together. 1 is the same box, 0 is
# no overlap. The same few lines do rectangles and cuboids:

# %%
from math import prod

from unireason_lib.boxes import Box2D, Box3D


def overlap(one, other):
    """IoU of two boxes given as their first, then their second corner."""
    n = len(one) // 2
    shared = prod(max(0, min(one[k + n], other[k + n]) - max(one[k], other[k])) for k in range(n))
    both = sum(prod(box[k + n] - box[k] for k in range(n)) for box in (one, other))
    return shared / (both - shared)


def moved(box, fraction, axes):
    """The box, moved by a fraction of its side along its first axes."""
    corners = list(box.as_tuple())
    n = len(corners) // 2
    for k in range(axes):
        side = corners[k + n] - corners[k]
        corners[k], corners[k + n] = corners[k] + fraction * side, corners[k + n] + fraction * side
    return type(box)(*corners)


# %%
from unireason_lib.display import show_images

true = item.truth_boxes[0][1]
beside, off = moved(true, 1 / 3, 1), moved(true, 1 / 3, 2)
for box in (beside, off):
    assert abs(overlap(true.as_tuple(), box.as_tuple()) - true.iou(box)) < 1e-9
boxes = {
    "true": true,
    f"moved along x, IoU {true.iou(beside):.2f}": beside,
    f"along x and y, IoU {true.iou(off):.2f}": off,
}
show_images([frame.aligned(item.load()[0])], [boxes], columns=2)

# %% [markdown]
# Moved by a third of its side along one axis, a box has an IoU of one half, the usual threshold of a hit. In a volume
# there is one axis more to be wrong about, so the same care gives a lower number. That is why 2D and 3D overlaps are
# never averaged here.

# %%
from unireason_lib.display import plot_lines

cuboid = next(box for i in benchmark if i.dimension == "3d" for _, box in i.truth_boxes)
off_3d = moved(cuboid, 1 / 3, 3)
assert abs(overlap(cuboid.as_tuple(), off_3d.as_tuple()) - cuboid.iou(off_3d)) < 1e-9
fractions = [k / 20 for k in range(21)]
plot_lines(
    {
        "rectangle": [(f, true.iou(moved(true, f, 2))) for f in fractions],
        "cuboid": [(f, cuboid.iou(moved(cuboid, f, 3))) for f in fractions],
    },
    "moved along every axis by this fraction of its side",
    "IoU",
)

# %% [markdown]
# ## 3 · A run that can be killed
#
# The result of a run is a file with one JSON line a question. A line is on the disk before the next one begins, so nothing is
# lost and nothing is asked twice. Beside the file stands what made it: model, settings and questions. Results of another model
# are refused, not mixed in. The folder of this notebook is named after all of that; a second run of the notebook reads what is
# there (and of it only what it asks: a longer run may have left more).

# %%
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from unireason_lib import __version__
from unireason_lib.evaluation import as_table, evaluate
from unireason_lib.inference import read_results

how = {"settings": settings, "batch_size": profile.evaluation.batch_size, "quiet": True}
made_by = [__version__, checkpoint.identity(), asdict(settings), benchmark.identity]
digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]
usual = f"runs/evaluation/{profile.name}-{Path(name).name}-{digest}"
folder = project_root() / (RESULTS or usual)


def run(questions, file, control="none"):
    """Ask what has not been asked yet, and give the lines of these questions."""
    evaluate(questions, folder / file, checkpoint, control=control, **how)
    ids = {item.id for item in questions}
    return [line for line in read_results(folder / file) if line["id"] in ids]


print(RESULTS or usual)

# %% [markdown]
# The whole benchmark, and once more with all images in plain grey. That second run is the **blank control**: what
# the model reaches from the words of the questions.

# %%
import time

started = time.perf_counter()
lines = run(benchmark, "replies.jsonl")
blank = as_table(run(benchmark, "replies.blank.jsonl", control="blank"))
print(f"{len(lines)} replies, {sum('error' in line for line in lines)} failed")
print(f"asking took {time.perf_counter() - started:.0f} s (next to nothing when all was there already)")

# %% [markdown]
# One line. Everything that follows is computed from such lines, without the model:

# %%
for key, value in next(line for line in lines if line["dimension"] == "3d").items():
    print(f"{key:<16}{json.dumps(value, ensure_ascii=False)[:95]}")

# %% [markdown]
# Now a copy of the file, with a torn last line as a kill leaves it, and the same call again. One question is asked:

# %%
import shutil
import tempfile

with tempfile.TemporaryDirectory() as place:
    file = Path(place, "replies.jsonl")
    shutil.copy(folder / "replies.jsonl.run.json", f"{file}.run.json")
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(whole[:-40], encoding="utf-8")  # killed while the last line was written
    left = len(list(read_results(file)))
    evaluate(benchmark, file, checkpoint, **how)
    after = list(read_results(file))
print(f"{left} whole lines were left; now there are {len(after)}")
assert after[:left] == lines[:left] and len(after) == left + 1 == len(lines)

# %% [markdown]
# ## 4 · How good, and how sure?
#
# The lines become one table, in which a question that **failed** counts as wrong. The mean of its column `correct` is the
# accuracy. Other patients would give another number. How different a one, the data can say themselves, by the
# **bootstrap**: draw as many patients as there are, with repetition, compute the accuracy again, and do so many times.
# Patients are drawn, not questions, because two questions about one patient succeed and fail together.

# %%
import numpy as np

results = as_table(lines)
by_patient = results.groupby("patient")["correct"].agg(["sum", "count"]).to_numpy()
draw = np.random.default_rng(SEED)
drawn = draw.integers(len(by_patient), size=(profile.evaluation.samples, len(by_patient)))
sums = by_patient[drawn].sum(axis=1)  # (samples, 2): right answers and questions
by_hand = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])

# %% [markdown]
# How far such means spread can also be computed at once: the **standard error** is the deviation of the patients' sums
# from what the overall mean gives them, and the interval is Student's t times that. With few patients, or when nearly
# all replies are right, a bootstrap is too sure of itself: the truth lies outside its interval more often than in one of
# twenty cases. The library takes the closed form, and for proportions Wilson's interval for as many questions as the patients are worth.

# %%
from unireason_lib.evaluation import mean

right, count = by_patient.T
accuracy, n, k = right.sum() / count.sum(), count.sum(), len(count)
error = np.sqrt(k / (k - 1) * ((right - accuracy * count) ** 2).sum()) / n
found = mean(results)
print(f"accuracy {found.value:.3f} over {found.n} questions about {found.patients} patients")
print(f"bootstrap          {by_hand[0]:.3f} to {by_hand[1]:.3f}")
print(f"twice the error    {accuracy - 2 * error:.3f} to {accuracy + 2 * error:.3f}")
print(f"the library        {found.low:.3f} to {found.high:.3f}")
assert abs(found.value - accuracy) < 1e-9
if k >= 50 and 0.1 < accuracy < 0.9:
    assert np.abs(by_hand - (found.low, found.high)).max() < 0.03

# %% [markdown]
# `summary` does this for every family and both dimensions:

# %%
from unireason_lib.evaluation import summary

table = summary(results, blank)
shown = ["dimension", "family", "n", "failed", "accuracy", "accuracy_low", "accuracy_high"]
table[[*shown, "blank", "question_only", "majority", "chance"]].round(3)

# %% [markdown]
# Four baselines stand beside the accuracy. **Blank** is the model itself with grey images. **Question only** knows the
# training questions by heart and takes the option that was right most often, without looking. **Majority** always gives
# the letter that is right most often in this very test. A model has learnt to see as far as it is above the best of them.

# %%
from unireason_lib.dataset.questions import FAMILIES
from unireason_lib.display import plot_intervals

rows = {(row["dimension"], row["family"]): row for row in table.to_dict("records")}
by_chance = 100 * rows["all", "all"]["chance"]
families = [family for family in FAMILIES if ("all", family) in rows]
chosen = {"2D": ("2d", "all"), "3D": ("3d", "all")} | {family: ("all", family) for family in families}


def percent(row, column):
    """A measure of a row of the report with its interval, in percent."""
    return tuple(100 * row[column + end] for end in ("", "_low", "_high"))


def of_all(column):
    """The measure for every chosen row that has it."""
    return {n: percent(rows[k], column) for n, k in chosen.items() if pd.notna(rows[k][column])}


# %%
series = {
    "with images": of_all("accuracy"),
    "blank": of_all("blank"),
    "question only": of_all("question_only"),
}
plot_intervals(series, "answered right, %", reference=("chance", by_chance))

# %% [markdown]
# ### What the blank control says
#
# If it is at chance, the words of the questions give nothing away, to this model at least; what is above it was seen.
# If it is far above chance, every accuracy in the table is that much less impressive. (Without the debiasing of
# notebook 01 it would be: the liver is on the right in nearly everybody.) The difference is taken question by
# question, which is surer than two intervals side by side:

# %%
from unireason_lib.evaluation import compare

print(compare(blank, results).text("accuracy, with images against blank ones"))

# %% [markdown]
# The figures of this project, for the table at the end of `make tutorial`:

# %%
for dimension in ("2d", "3d"):
    row = rows[dimension, "all"]
    note = f"{row['n']} questions about held-out phantoms"
    value, *ends = percent(row, "accuracy")
    publish(f"accuracy, {dimension.upper()}", value, "%", interval=tuple(ends), note=note)
    ends = (row["iou_first_low"], row["iou_first_high"])
    measured = results.loc[results["dimension"] == dimension, "iou_first"].notna().sum()
    note = f"{measured} questions that state no box"
    publish(f"IoU of the first box, {dimension.upper()}", row["iou_first"], interval=ends, note=note)
aside = {"blank": "accuracy, images blanked", "format": "format compliance"}
for column, words in aside.items():
    value, *ends = percent(rows["all", "all"], column)
    publish(words, value, "%", interval=tuple(ends), note=f"{found.n} questions")
publish(f"time for {found.n} replies", sum(line["seconds"] for line in lines), "s")

# %% [markdown]
# And what the tiny model was meant to reach, as a long line across each row:

# %%
aims = {
    "accuracy, 2D": (rows["2d", "all"], "accuracy", 80),
    "accuracy, 3D": (rows["3d", "all"], "accuracy", 60),
    "IoU of the first box, 2D": (rows["2d", "all"], "iou_first", 50),
    "IoU of the first box, 3D": (rows["3d", "all"], "iou_first", 35),
    "format compliance": (rows["all", "all"], "format", 99),
}
reached = {words: percent(row, column) for words, (row, column, _) in aims.items()}
missed = [f"{words} (aim {aim})" for words, (*_, aim) in aims.items() if reached[words][0] < aim]
print("below the aim:", ", ".join(missed) or "none")
figure = plot_intervals({"reached": reached}, "accuracy, IoU and format, %")
figure.axes[0].plot(
    [aim for *_, aim in aims.values()], range(len(aims)), "k|", markersize=20, markeredgewidth=2
)
figure

# %% [markdown]
# ## 5 · Does it point at the right place?
#
# A reply may hold several boxes, and a question may rest on several structures. The **first** box cannot be helped by
# writing many; the **best** one can; **all** takes, for each structure that was to be found, the box that fits it best,
# and averages. Where nothing was written, all three are 0. Questions that state boxes are left out: those could be copied.

# %%
measures = ["iou_first", "iou_best", "iou_all", "hit", "crop_fraction"]
costs = ["rounds", "own_tokens", "injected_tokens", "seconds"]
wanted = [f"{name}{end}" for name in measures for end in ("", "_low", "_high")] + costs
by_dimension = table[table["family"] == "all"].set_index("dimension")
by_dimension.loc[["2d", "3d"], wanted].T.round(3)

# %% [markdown]
# A model that always fetches everything would have a crop fraction of 1 and look at nothing in particular. A mean IoU hides
# whether all boxes are fair or half of them perfect and half lost; how many boxes reach which overlap shows it:

# %%
curves, bands = {}, {}
for d in ("2d", "3d"):
    boxed = results[(results["dimension"] == d) & results["iou_first"].notna()]
    for step in range(1, 20):
        part = mean(boxed.assign(enough=(boxed["iou_first"] >= step / 20).astype(float)), "enough")
        curves.setdefault(d.upper(), []).append((step / 20, 100 * part.value))
        bands.setdefault(d.upper(), []).append((100 * part.low, 100 * part.high))
plot_lines(curves, "IoU of the first box is at least", "proportion of the replies, %", band=bands)

# %% [markdown]
# ### Does a good box mean a right answer?
#
# If boxes were decoration, the answer would not care how well they fit. Accuracy among replies whose best box fits
# badly, better, well:

# %%
bars = {}
for d in ("2d", "3d"):
    boxed = results[(results["dimension"] == d) & results["iou_best"].notna()]
    for fit, part in boxed.groupby(pd.cut(boxed["iou_best"], [0, 0.1, 0.3, 0.5, 0.7, 1.01], right=False)):
        if len(part) > 1:
            found_there = mean(part)
            ends = (found_there.value, found_there.low, found_there.high)
            bars.setdefault(d.upper(), {})[f"IoU {fit.left:g} to {fit.right:.2g}"] = [100 * x for x in ends]
plot_intervals(bars, "answered right, %", reference=("chance", by_chance))

# %% [markdown]
# Where accuracy climbs with the overlap, both go together. That does not prove that the box *makes* the answer: a hard
# scan may spoil both. For cause and effect something has to be taken away: section 6.

# %% [markdown]
# ### Does the letter follow from the reasoning?
#
# A rationale names an option last, and then a letter is given. `concluded` asks whether the option that is named last
# is right, `followed` whether the letter is that option's: the **rationale-answer consistency**. A model that concludes
# well and writes another option's letter loses points that no box can explain (one of five models of the first study
# did), so both stand beside every accuracy.

# %%
columns = [f"{name}{end}" for name in ("accuracy", "concluded", "followed") for end in ("", "_low", "_high")]
by_dimension[columns].T.round(3)

# %% [markdown]
# ### The same place in a volume and in its slices?
#
# One model, two kinds of boxes: they can be held against each other without any truth. For each cuboid that the model
# wrote, every slice it spans is shown to the model alone, as an image. The rectangle of the cuboid should be the box
# that it writes there.

# %%
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation import slice_benchmark
from unireason_lib.evaluation.table import consistency


def first(count):
    """The first questions of the benchmark."""
    return replace(benchmark, items=benchmark.items[:count])


few = {item.id for item in first(profile.evaluation.control_questions)}
alone = []
try:
    raised = slice_benchmark(benchmark, [line for line in lines if line["id"] in few])
    alone = run(raised, "replies.slices.jsonl")
    cuboids = consistency(alone)
    agreement = mean(cuboids, "overlap")
    print(f"{len(raised)} slices of {len(cuboids)} cuboids, boxes on {cuboids['boxed'].mean():.0%}")
    print("IoU of both boxes:", agreement and agreement.text(1))
except DatasetError as nothing:
    print(nothing)

# %%
from unireason_lib.display import show_images


def slice_by_slice(alone):
    """The cuboid that spans most slices, and what was written on each of them alone."""
    spans = Counter(line["about"]["parent"] for line in alone)
    parent = max(spans, key=spans.get)
    mine = [line for line in alone if line["about"]["parent"] == parent]
    mine.sort(key=lambda line: line["about"]["slice"])
    across = Box3D(*mine[0]["about"]["cuboid"]).xy
    scans = [frame.aligned(image) for image in item_of[parent].load()]
    shown = [scans[line["about"]["slice"]] for line in mine]
    alone = [[Box2D(*box) for box in line["boxes"][:1] if len(box) == 4] for line in mine]
    names = ("of the cuboid", "of the slice alone")
    boxes = [dict(zip(names, [across, *one], strict=False)) for one in alone]
    return show_images(shown, boxes, [f"slice {line['about']['slice']}" for line in mine])


slice_by_slice(alone) if alone else "no cuboid was written"

# %% [markdown]
# ## 6 · Does it look?
#
# **Controls** take something away and ask again. Whoever does not use what was taken away answers as before. First the images:
# those of *another patient* in their place, and plain grey from above.

# %%
asked_few = first(profile.evaluation.control_questions)
other = as_table(run(asked_few, "replies.other.jsonl", control="other"))
compared = {"blank images": compare(blank, results), "other images": compare(other, results)}
lost = {
    words: tuple(100 * x for x in (c.difference.value, c.difference.low, c.difference.high))
    for words, c in compared.items()
}
plot_intervals({"lost": lost}, "points of accuracy that are lost", reference=("nothing lost", 0))

# %% [markdown]
# ### Textures, which must be looked at closely
#
# Averaged over all questions, crops may matter little: where the liver lies is seen at first sight. The texture of a
# lesion is not. It is one pixel wide, and in the whole image falls into few tokens. So these questions are asked by
# themselves, about other patients, and what a box fetches is changed: a *random* region of its size, the *same region of
# another patient*, or *nothing*.

# %%
closely = open_benchmark(
    "phantom",
    split="test",
    families=["lesion analysis"],
    a_patient=1,
    limit=2 * profile.evaluation.control_questions,
    size=shape,
    frame=frame,
    seed=SEED,
    prior_studies=0,  # a texture follows from nothing else
)
of_texture = tuple(item for item in closely if item.kind == "texture")
textures = replace(closely, items=of_texture, identity={**closely.identity, "kind": "texture"})
print(f"{len(textures)} of {len(closely)} questions about lesions are about texture")

# %%
looks = {
    "its crops": "none",
    "random crops": "random-crop",
    "of another": "swapped-crop",
    "no crops": "no-crop",
}
texture_runs = {
    words: as_table(run(textures, f"textures.{control}.jsonl", control=control))
    for words, control in looks.items()
}


def by_dimension_of(one):
    """Accuracy in 2D, in 3D and in both, in percent."""
    names, there = {"2d": "2D", "3d": "3D", "all": "both"}, summary(one)
    there = there[there["family"] == "all"].to_dict("records")
    return {names[row["dimension"]]: percent(row, "accuracy") for row in there}


by_look = {words: by_dimension_of(one) for words, one in texture_runs.items()}
plot_intervals(by_look, "textures answered right, %", reference=("chance", by_chance))

# %% [markdown]
# How to read it: *random crops* and those *of another patient* are the fair comparisons, for the reply looks the same and only the
# pixels are others. *No crops* is harder on the model than that, since in training a box always fetched something. (Models that
# were *trained* without region tokens are compared in notebook 07.)
#
# Is a difference more than luck? **p** comes from Student's t: how often the difference would be at least this many standard errors
# from zero if there were none (where nothing varies, nobody can tell, and it is NaN). Whoever makes five comparisons finds
# something by luck more easily than with one; **Holm** corrects for that.

# %%
from unireason_lib.evaluation import holm

own = texture_runs["its crops"]
compared |= {f"textures, {words}": compare(one, own) for words, one in texture_runs.items() if one is not own}
tests = pd.DataFrame([vars(c) for c in compared.values()], index=list(compared))
tests["p_holm"] = holm([c.p for c in compared.values()])
tests["points (95 %)"] = [c.difference.text(sign="+") for c in compared.values()]
tests[["questions", "points (95 %)", "standard_error", "df", "p", "p_holm"]].round(4)

# %%
gain = compared["textures, random crops"]
d = gain.difference
publish(
    "textures: own crops against random ones",
    100 * d.value,
    "points",
    interval=(100 * d.low, 100 * d.high),
    note=f"{gain.questions} questions",
)

# %% [markdown]
# These are statements about *this checkpoint*. That one way of training is better than another takes several models of
# each (notebook 07).

# %% [markdown]
# ## 7 · Where it goes wrong
#
# Means are made of cases. Two kinds are worth a look. **Found and wrong**: everything that was to be found was found,
# and the answer is wrong all the same. Options, choice and right letter stand above.

# %%
from unireason_lib.dataset.schema import box_of


def worst(wanted, order):
    """Up to two replies of each dimension, the most extreme ones first."""
    known = [line for line in lines if line.get("iou_best") is not None and wanted(line)]
    known.sort(key=order)
    return [line for d in ("2d", "3d") for line in [x for x in known if x["dimension"] == d][:2]]


def draw_replies(some):
    """Replies over the slice in the middle of the true box, or a word when there are none."""
    images, boxes, titles = [], [], []
    for line in some:
        found = [box_of(box) for box in (line["truth_boxes"][0][1], *line["boxes"][:1])]
        z = int(found[0].center[2]) if isinstance(found[0], Box3D) else 0
        images.append(frame.aligned(item_of[line["id"]].load()[z]))
        boxes.append(dict(zip(("true box", "first box written"), found, strict=False)))
        end = f"chosen: {line['prediction']}, right: {line['truth']}; IoU {line['iou_best']:.2f}"
        titles.append("\n".join([line["question"], *(f"{x}. {o}" for x, o in line["options"].items()), end]))
    return show_images(images, boxes, titles, columns=3) if some else "there is no such reply"


wrong = worst(lambda line: not line["correct"] and line["iou_all"] >= 0.5, lambda line: -line["iou_all"])
draw_replies(wrong)

# %%
show_trace(wrong[-1], item_of[wrong[-1]["id"]].load(), frame=frame) if wrong else "no such reply"

# %% [markdown]
# **Right for the wrong reason**: the answer is right and the box is somewhere else. No accuracy ever shows these.

# %%
lucky = worst(lambda line: line["correct"] and line["iou_best"] < 0.1, lambda line: line["iou_best"])
correct = [line for line in lines if line["correct"] and line["iou_best"] is not None]
elsewhere = sum(line["iou_best"] < 0.1 for line in correct)
print(f"{elsewhere} of {len(correct)} right answers point elsewhere (IoU below 0.1)")
draw_replies(lucky)

# %%
show_trace(lucky[-1], item_of[lucky[-1]["id"]].load(), frame=frame) if lucky else "no such reply"

# %% [markdown]
# ## 8 · Real scans
#
# Any scan with a label map can be asked about. First a real brain MRI, the MNI152 template, which comes with a Python
# package: its volume, and some of its slices. **Expect nothing.** The tiny model has seen schematic torsos and nothing
# else; what a thalamus looks like it cannot know.

# %%
brain = {"size": shape, "frame": frame, "seed": SEED, "limit": 2 * profile.notebook.questions}
real = {
    "brain MRI, slices": open_benchmark("brain", dimension="2d", every_mm=20, **brain),
    "brain MRI, volume": open_benchmark("brain", per_family=6, **brain),
}
for words, questions in real.items():
    print(f"{words}: {len(questions)} questions, such as: {questions.items[0].question}")

# %% [markdown]
# Then a real CT of the abdomen, if one is there: with `REAL`, or in `data/private`, which git ignores. It is shown in the
# window of the phantoms. A folder of your own is read by the same source; see notebook 01.

# %%
from unireason_lib.dataset.sources import PhantomConfig

place = project_root() / (REAL or "data/private")
if (place / "abdomen_ct.nii.gz").is_file() and (place / "abdomen_seg.nii.gz").is_file():
    files = {"image": "*_ct", "label": "*_seg", "names": "abdomen_seg_labels.json", "modality": "CT"}
    window = PhantomConfig().window
    ct = open_benchmark("folder", place, per_family=6, window=window, **files, **brain)
    real["abdomen CT, volume"] = ct
    print(f"abdomen CT: {len(ct)} questions, such as: {ct.items[0].question}")
else:
    print("abdomen CT: none here, so it is left out")

# %%
real_lines, outcome = {}, {}
for words, questions in real.items():
    found_there = run(questions, f"{words.replace(', ', '-').replace(' ', '-').lower()}.jsonl")
    real_lines[words] = [line for line in found_there if "error" not in line]
    of_real = summary(as_table(found_there)).iloc[0]
    outcome[words] = percent(of_real, "accuracy")
    print(f"{words}: {of_real['n']} questions, IoU of the best box {of_real['iou_best']:.2f}")
plot_intervals({"accuracy": outcome}, "answered right, %", reference=("chance", by_chance))

# %% [markdown]
# The intervals are this wide on purpose. All questions are about **one** patient, so strictly they may all be one
# question, and however many one asks, that does not change. And some of these questions can be answered from anatomy
# alone: of a single scan everything is known, so no prior could be taken out.

# %%
at = next(
    (line for line in real_lines["brain MRI, volume"] if line["boxes"]), real_lines["brain MRI, volume"][0]
)
asked_there = next(item for item in real["brain MRI, volume"] if item.id == at["id"])
show_trace(at, asked_there.load(), frame=frame)

# %% [markdown]
# Outside of what it was trained on, a model goes on in the form that it has learnt: it points, in whole pixels of the
# frame, and names an option, and no word of it says that it has no idea. The picture says so at once, which is one
# good reason to let models point.

# %% [markdown]
# ## 9 · Public benchmarks
#
# Tables of questions and folders of scans, as their authors hand them out. You hold the files; nothing is downloaded.
#
# | name | its table | asked |
# | --- | --- | --- |
# | `m3d-vqa` | CSV: Image Path, Question, Choice A-D (`NA`: none), Answer, Answer Choice | choice, or `open=True` |
# | `3d-rad` | CSV: VolumeName, Question, Answer, AnswerChoice, Choice A-D (`-`: none) | choice, open |
# | `vqa-rad` | JSON: image_name, question, answer, answer_type, phrase_type | yes or no, open |
# | `slake` | JSON: img_name, question, answer, q_lang, content_type | yes or no, open |
# | `pathvqa` | Parquet, CSV or JSON: image, question, answer | yes or no, open |
# | `pmc-vqa` | CSV: Figure_path, Question, Choice A-D, Answer_label | choice |
# | `omnimedvqa` | JSON: image_path, question, gt_answer (text), option_A-D | choice |
# | a folder with `rl/` or `sft/` | Parquet in the form of the released UniMed-CoT | choice |
#
# A table in the form of M3D-VQA, with three volumes in its form. The patients are phantoms again, so that something can
# be expected of our model.

# %%
import csv

from unireason_lib.dataset import phantom

organs = ("liver", "spleen", "left kidney")
patients = (phantom(900_000 + k) for k in range(100))
single = (p for p in patients if len(p.lesions) == 1 and p.lesions[0].name.removesuffix(" lesion") in organs)
cases = [next(single) for _ in range(3)]
here = tempfile.TemporaryDirectory()
low, high = PhantomConfig().window
table = []
for number, case in enumerate(cases, start=1):
    scan = Path(here.name, "M3D_Cap_npy", f"case_{number}", "Axial.npy")
    scan.parent.mkdir(parents=True)
    np.save(scan, np.clip((case.scan.array[None] - low) / (high - low), 0, 1).astype(np.float32))
    host = case.lesions[0].name.removesuffix(" lesion")
    row = {
        "Image Path": str(scan.relative_to(here.name)),
        "Question Type": 3,
        "Question": "Which organ has the lesion?",
    }
    row |= {f"Choice {letter}": organ for letter, organ in zip("ABCD", (*organs, "NA"), strict=True)}
    table.append(row | {"Answer": host, "Answer Choice": "ABC"[organs.index(host)]})

# %% [markdown]
# A fourth row says that the right option is one that is not there. Real tables have such rows. It is skipped and named,
# not guessed.

# %%
table.append(table[0] | {"Answer": "", "Answer Choice": "D"})
listed = Path(here.name, "M3D_VQA_test.csv")
with listed.open("w", encoding="utf-8", newline="") as stream:
    writer = csv.DictWriter(stream, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
reading = {"size": shape, "window": "minmax", "frame": frame}
closed = open_benchmark("m3d-vqa", listed, **reading)
freely = open_benchmark("m3d-vqa", listed, open=True, **reading)
print("\n".join(f"skipped: {row.name}: {row.reason}" for row in closed.skipped))
assert len(closed) == 3 and all(list(item.options) == ["A", "B", "C"] for item in closed)

# %% [markdown]
# Asked with options and without. Open answers are compared word for word, case and marks aside, and by the F1 of
# their words, which gives half a point for half an answer. Our model was never trained to answer without options;
# what it says then is shown as it is:

# %%
from unireason_lib.answers import plain_words


def word_f1(answer, truth):
    """Harmonic mean of the precision and recall of the words of an answer, as SQuAD scores it."""
    written, true = (Counter(plain_words(text).split()) for text in (answer, truth))
    return 2 * (written & true).total() / (written.total() + true.total())


asked = [*closed.items, *(replace(item, id=f"open {item.id}") for item in freely)]
said = as_table(ask_items(generator, asked, settings=settings))
said["word F1"] = [
    word_f1(answer, truth) for answer, truth in zip(said["answer"], said["truth"], strict=True)
]
said[["id", "truth", "answer", "correct", "word F1"]].round(2)

# %% [markdown]
# The rule itself, on answers that somebody might give:

# %%
truth = "left kidney"
answers = ["Left kidney.", "left kidney, lower pole", "kidney", "right kidney", "I cannot tell"]
scored = pd.DataFrame({"answer": answers, "truth": truth})
scored["the same"] = [plain_words(answer) == plain_words(truth) for answer in answers]
scored["word F1"] = [round(word_f1(answer, truth), 2) for answer in answers]
here.cleanup()
scored

# %% [markdown]
# Look at the fourth line: the wrong side earns half a point. Scores of words know nothing of medicine; read them beside
# the strict ones, and never alone.
#
# The same from the command line, for any model and benchmark; it goes on where it was stopped:
#
# ```bash
# python -m unireason_lib evaluate --model data/tiny-sft --benchmark phantom --limit 500 --with-blank \
#     --out runs/result.jsonl
# python -m unireason_lib evaluate --model Qwen/Qwen2.5-VL-7B-Instruct --benchmark m3d-vqa:M3D_VQA_test.csv \
#     --option open=true --out runs/m3d-open.jsonl
# python -m unireason_lib evaluate --out runs/result.jsonl --compare runs/other.jsonl
# ```

# %% [markdown]
# ## Check yourself

# %%
assert {line["id"] for line in lines} == set(item_of) and not results["failed"].any()
assert all(line["correct"] == (line["prediction"] == line["truth"]) for line in lines)
for line in (line for line in lines if line["boxes"] and line["iou_first"] is not None):
    one = line["boxes"][0]
    fits = [overlap(one, other) for _, other in line["truth_boxes"] if len(other) == len(one)]
    assert abs(max(fits, default=0) - line["iou_first"]) < 1e-5
assert run(benchmark, "replies.jsonl") == lines  # nothing is asked twice
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. **Another way to show nothing.** `run(benchmark, "replies.noise.jsonl", control="noise")` shows random pixels in place
#    of grey. Is it the same? Compare the two as in section 6.
# 2. **How many patients?** You want to tell 80 % from 83 %. How many patients do you need for an interval of plus or
#    minus one point and a half?
# 3. **Which family?** In which family does the model lose most when its crops come from elsewhere, and is that more
#    than luck when you look at six families?
# 4. **Somebody else.** Ask `data/tiny-base`, which has seen no phantom. What does it get, and in what does it fail
#    first: the format, the boxes or the letters?
#
# <details><summary>Solutions</summary>
#
# 1. `noise = as_table(run(benchmark, "replies.noise.jsonl", control="noise"))`, then `compare(blank, noise)`.
#    Where a grey image makes a model fall back on one letter, noise may make it choose at random: both are at
#    chance, and not in the same way. Look at `noise["prediction"].value_counts()`.
# 2. The half width shrinks with the square root of the number of patients. From the table of section 4:
#    `found.patients * ((found.high - found.low) / 0.03) ** 2`. Comparing two models on the *same* questions takes fewer, since
#    only the questions on which they disagree count.
# 3. For every family `compare` of `results[results["family"] == family]` and the same of a control `random-crop` of all questions,
#    and `holm` over the six. With 100 questions a family has less than twenty: expect wide intervals.
# 4. The command line above, with `--model data/tiny-base --limit 100`. It has learnt to point at plain shapes and to
#    bind letters, so see first whether it writes the form at all.
#
# </details>
