# %% [markdown]
# # 06 · Evaluation: is the model right, does it look, and why does it fail?
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/06_evaluation.ipynb)
#
# Accuracy alone cannot tell a model that looks from one that knows which answers are likely. After this notebook you can
# - report accuracy with an interval over patients beside its baselines, and the IoU of boxes beside its floor;
# - compare two runs pairwise, and test by intervention whether a model uses its images and its crops;
# - classify wrong answers by their cause, correct a box yourself, and evaluate a model on your own scans.
#
# **Time** a minute on 2 CPU cores, less on a GPU. **Needs** no other notebook; a tiny fine-tuned Qwen2.5-VL ships in `data/tiny-sft`.
# **Synthetic**: CT-like torso phantoms, not used in training. **Real**: the brain MRI of section 8. *Not for clinical use.*
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740); [error bars for evaluations](https://arxiv.org/abs/2411.00640);
# [Wilson's interval](https://doi.org/10.1080/01621459.1927.10502953); [questions answered without the image](https://arxiv.org/abs/1612.00837).

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
MODEL = ""  # a folder or hub id; empty: the model of the profile
DATA = ""  # data set or the authors' release whose test is asked, a folder; empty: phantoms
M3D_ROOT = ""  # with the release: folder of the M3D volumes that you hold
RESULTS = ""  # folder for the replies; empty: one below runs/evaluation
REAL = ""  # folder of your own scans (section 8); empty: the brain MRI

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
import re
from dataclasses import asdict, replace

import numpy as np
import pandas as pd

from unireason_lib import display, evaluation
from unireason_lib.config import load_profile
from unireason_lib.dataset.schema import box_of
from unireason_lib.display.figures import AltFigure
from unireason_lib.evaluation import as_table, compare, evaluate, mean, open_benchmark, slice_consistency
from unireason_lib.evaluation.controls import elsewhere
from unireason_lib.grounding import Settings
from unireason_lib.grounding.model import adapter_base
from unireason_lib.inference import Checkpoint, read_results
from unireason_lib.notebooks import project_root, publish, short_hash
from unireason_lib.training.data import data_folder

profile = load_profile(PROFILE, OVERRIDES)
display.pipeline_figure("evaluation")

# %% [markdown]
# ## 1 · A benchmark and a run
# The questions are about held-out phantoms, slices and volumes; they are debiased by an answer prior (notebook 01), so that reading the question
# alone should not help (section 2 checks this). A run is a file with one JSON line per question; it can be resumed after a kill, and refuses replies of
# another model.

# %%
name, root = MODEL or profile.model.path, project_root()
path, base = str(root / name if (root / name).is_dir() else name), adapter_base(root / name)
adapter, place = path if base else profile.model.adapter, (profile.model.dtype, profile.model.device)
checkpoint = Checkpoint(base or path, adapter, *place)  # of an adapter, with the model that it was trained on
settings, frame = Settings(**profile.generation.model_dump()), checkpoint.frame()
source, wanted = str(data_folder(DATA)) if DATA else "phantom", profile.evaluation
scans = {"size": tuple(profile.dataset.shape), "frame": frame, "seed": SEED}
phantoms = scans | {"skip_patients": wanted.skip_patients}
how = {"frame": frame, "m3d_root": M3D_ROOT or None} if DATA else phantoms
benchmark = open_benchmark(source, limit=wanted.questions, **how)
asking = {"settings": settings, "batch_size": wanted.batch_size, "quiet": True}
digest = short_hash(checkpoint.identity(), asdict(settings), dict(benchmark.identity))
folder = root / (RESULTS or f"runs/evaluation/{profile.name}-{name.split('/')[-1]}-{digest}")


def run(questions, name="replies", control="none"):
    """The results of some questions as a table; those without a reply are asked now."""
    file = folder / (f"{name}.jsonl" if control == "none" else f"{name}.{control}.jsonl")
    evaluate(questions, file, checkpoint, control=control, **asking)
    return as_table(x for x in read_results(file) if x["id"] in {item.id for item in questions})


results, blank = run(benchmark), run(benchmark, control="blank")
results[["dimension", "family", "question", "truth", "prediction", "correct"]].head(3)


# %% [markdown]
# ## 2 · Accuracy, its interval and its baselines
# Patient $i$ of $k$ has $n_i$ questions, $r_i$ of them answered right; $N = \sum_i n_i$. Other patients would give another accuracy $p$, and answers
# about one patient tend to be right or wrong together. So the standard error $s$ is taken over patients, and Wilson's interval (notebook 00) is that
# of $N^*$ independent questions, which would have the same $s$, with Student's $t$ for $k - 1$ degrees of freedom (as in notebook 01, section 4):
#
# $$p = \frac{\sum_i r_i}{N}, \quad s^2 = \frac{k}{k - 1} \sum_i \frac{(r_i - p \, n_i)^2}{N^2}, \quad
# N^* = \min\left(N, \frac{p (1 - p)}{s^2}\right).$$
# > **Predict first.** How wide is this interval for 100 questions, if most are answered right: 4, 8, 14 or 30 points from end to end?

# %%
def standard_error(values, patients):
    """Standard error of a mean of values that belong together within a patient."""
    total, count = pd.Series([*values]).groupby([*patients]).agg(["sum", "count"]).to_numpy().T
    k, n = len(count), count.sum()
    return np.sqrt(k / (k - 1) * ((total - total.sum() / n * count) ** 2).sum()) / n


accuracy, p, k = mean(results), results["correct"].mean(), results["patient"].nunique()
s = standard_error(results["correct"], results["patient"])
if s > 0:  # else all patients are alike
    worth = min(len(results), p * (1 - p) / s**2)
    assert np.allclose((accuracy.low, accuracy.high), evaluation.wilson(p * worth, worth, k - 1))
print(f"{accuracy.text()} %: {100 * (accuracy.high - accuracy.low):.0f} points wide, {k} patients")


# %% [markdown]
# Four baselines do not look: **chance**; **majority**, the letter most often right in this test (per dimension, so not below chance in those rows);
# **question-only**, the option most often right in training (notebook 01 fits a stronger one); **blank**, the model on grey images. If question-only
# is above chance, the options may give answers away.

# %%
def points(x, name="", unit="%", scale=100):
    """Value and ends of an interval, times a scale; with a name it is published."""
    value, *ends = (scale * y for y in (x.value, x.low, x.high))
    if name:
        publish(name, value, unit, interval=tuple(ends), note=f"{x.n} questions")
    return value, *ends


# %%
results["majority"] = results.groupby("dimension")["truth"].transform(lambda x: 1.0 * (x == x.mode()[0]))
results["blank"] = results["id"].map(blank.set_index("id")["correct"])
groups = {d.upper(): results["dimension"] == d for d in sorted({*results["dimension"]})}
groups |= {family: results["family"] == family for family in sorted({*results["family"]})}
ways = {"correct": "model", "blank": "blank", "question_only": "question-only", "majority": "majority"}
by_way = {w: {r: mean(results[g], c) for r, g in groups.items()} for c, w in ways.items()}
by_way = {w: {r: points(x) for r, x in rows.items() if x and x.n >= 5} for w, rows in by_way.items()}
chance = 100 * results["chance"].mean()
leaks = [row for row, (_, low, _) in by_way["question-only"].items() if low > chance]
print(f"The question alone is clearly above chance in {len(leaks)} of {len(groups)} rows:", ", ".join(leaks))
for d, part in results.groupby("dimension"):
    points(mean(part), f"accuracy, {d.upper()}")
points(mean(blank), "accuracy, images blanked")
points(mean(results, "format"), "format compliance")
table = {w: {row: round(x[0]) for row, x in rows.items()} for w, rows in by_way.items()}
print(pd.DataFrame(table).to_string())
two = {way: by_way[way] for way in ("model", "question-only")}
display.plot_intervals(two, "right answers, %", reference=("chance", chance))

# %% [markdown]
# Where the two intervals of a row are apart, the model uses more than words; where they overlap, a paired comparison is needed (section 4). In one row
# of several, question-only may exceed chance by luck, or because the prior was learnt from few patients; suspect the model if `blank` exceeds it, too.
# *NaN*: the options are boxes, none ever right in training. All intervals are about **one checkpoint**; another training may differ (notebook 07).
# ## 3 · Boxes: IoU and its floor
# A reply without a box counts as IoU 0 (notebook 00; notebook 05 leaves such replies out). Questions that state a box are left out, since it could be
# copied. The **floor** is the IoU of the structure's mean box in other patients: only a model clearly above it has shown
# that it looks. **Slice-volume consistency** is the overlap of a cuboid with the boxes that the model writes when each of its slices is shown
# alone (in the three cases that the paper shows: 0.76 to 0.83). It needs no ground truth, so it cannot tell whether boxes are right.

# %%
few = replace(benchmark, items=benchmark.items[: profile.evaluation.control_questions])
overlaps = {"boxes of the model": {}, "mean box of other patients": {}}
for d, part in results.dropna(subset="iou_average_box").groupby("dimension"):
    points(mean(part, "iou_all"), f"IoU, {d.upper()}", "", 1)
    floor, own = (part.assign(iou=part[column]) for column in ("iou_average_box", "iou_all"))
    points(compare(floor, own, "iou").difference, f"IoU above the floor, {d.upper()}", "", 1)
    for way, column in zip(overlaps.values(), ("iou_all", "iou_average_box"), strict=True):
        way[f"{d.upper()}, {len(part)} questions"] = points(mean(part, column), scale=1)
slices = slice_consistency(few, folder / "replies.jsonl", checkpoint, **asking)
if slices is not None:
    points(mean(slices, "overlap"), "slice-volume consistency", "", 1)
display.plot_intervals(overlaps, "mean IoU over the true boxes") if any(overlaps.values()) else None

# %% [markdown]
# Boxes clearly above the floor follow the patient. Compare each IoU with its floor, not 2D with 3D: a cuboid can be wrong along one more axis.
# ## 4 · Does it look? A paired comparison of two runs
# A **control** takes information away and asks the same questions again. The formula of section 2, with the difference $d_i$ between the two runs in
# place of $r_i$, gives the paired standard error. If both find the same questions hard, it is below that of independent runs, $\sqrt{s_1^2 + s_2^2}$.

# %%
paired = standard_error(results["correct"] - results["blank"], results["patient"])
apart = np.hypot(s, standard_error(results["blank"], results["patient"]))
print(f"standard error: paired {100 * paired:.1f} points, as if independent {100 * apart:.1f}")
lost = {"grey images": compare(blank, results)}
assert np.isclose(paired, lost["grey images"].standard_error)
for way, control in {"random pixels": "noise", "images of another patient": "other"}.items():
    lost[way] = compare(run(few, control=control), results)
by_way = {f"{way}, {x.questions} questions": points(x.difference) for way, x in lost.items()}
print(f"right on grey images: {100 * mean(blank).value:.0f} %, by chance: {chance:.0f} %")
display.plot_intervals({"lost": by_way}, "points of accuracy lost", reference=("nothing lost", 0))

# %% [markdown]
# Grey and random images are unlike any in training, so confusion may explain some of the loss. Images of other patients are ordinary: a loss there
# means that answers follow the image. Pairing gains little here, since guesses on grey images hardly depend on how hard a question is; it pays off when
# two similar models are compared.
# ## 5 · Does it use its crops?
# Only what a box **fetches** is changed. Textures of lesions vary from pixel to pixel; a token of the whole image averages them with what lies around.
# `no crops` never occurred in training, so part of the points lost may come from the unusual reply. The questions about lesions are not debiased,
# which does not matter here: a model is compared with itself on the same questions.
# > **Predict first.** Which questions lose most: those about texture alone, those about density and texture, or all families together?

# %%
how = {"limit": 3 * profile.evaluation.control_questions, "prior_studies": 0, "a_patient": 1, **phantoms}
lesions = open_benchmark("phantom", families=["lesion analysis"], **how)
sets = {"all families": ("replies", few)}
for kind, row, file in (("texture", "texture", "textures"), ("density", "density and texture", "densities")):
    items = tuple(item for item in lesions if item.kind == kind)
    sets[row] = file, replace(lesions, items=items, identity={**lesions.identity, "kind": kind})
crops = {"own crops": "none", "random region": "random-crop", "region beside the box": "shifted-crop"}
crops |= {"same region of another patient": "swapped-crop", "no crops": "no-crop"}
runs = {way: {row: run(x, file, c) for row, (file, x) in sets.items()} for way, c in crops.items()}
print(pd.DataFrame({w: {row: mean(x).text() for row, x in y.items()} for w, y in runs.items()}).T.to_string())
own = runs.pop("own crops")
lost = {way: {row: compare(x, own[row]).difference for row, x in one.items()} for way, one in runs.items()}
points(lost["random region"]["texture"], "textures: own crops against random ones", "points")
by_way = {way: {row: points(x) for row, x in one.items()} for way, one in lost.items()}
display.plot_intervals(by_way, "points lost against own crops, paired", reference=("nothing lost", 0))

# %% [markdown]
# With wrong crops, both kinds of lesion questions lose far more than all families together, where the whole image is mostly enough; the intervals of
# the two kinds overlap. With *no crops*, all families seem to lose more than with wrong ones, as if the unusual reply had a cost of its own.
# So wrong crops are the better control, and they show that answers about textures rest on the crops.
# ## 6 · Why is an answer wrong?
# A box *touches* a structure if their IoU is at least 0.1, whatever the reply calls it. The cause of a wrong answer is the first that applies: **no
# answer**; **wrong letter** (the reasoning ends with the right option); **missed** (a structure that the answer rests on is touched by no box);
# **invented** (some box touches none of those structures); **miscalculated** (a difference or midpoint in the reasoning does not follow from its
# numbers); **misread** (none of these). The rules name symptoms: the real cause may be a box at the edge of another structure. A right answer
# may have a wrong reason: **right, box elsewhere**, or a wrong calculation. Below the bars, the first wrong reply of each cause that has boxes is
# shown on a slice through the box to blame.

# %%
COLORS = "#009e73", "#a6dcc8", "#d55e00", "#e69f00", "#f0e442", "#cc79a7", "#0072b2", "#656d76"
CAUSES = "right|right, box elsewhere|missed|invented|miscalculated|misread|wrong letter|no answer".split("|")
STATED = re.compile(r"(\d+) and (\d+): (difference|middle) (\d+)")


def calculations(text):
    """Of every calculation in a reply, whether it is right."""
    rules = {"difference": lambda a, b: abs(a - b), "middle": lambda a, b: (a + b) // 2}
    return [rules[what](int(a), int(b)) == int(c) for a, b, what, c in STATED.findall(text or "")]


# %%
def diagnose(row, touching=0.1):
    """The cause of a reply, and its true boxes and its written boxes that touch none of the others."""
    true, written = [box for _, box in row.truth_boxes], [] if row.failed else row.boxes
    touch = [[len(a) == len(b) and box_of(a).iou(box_of(b)) >= touching for b in written] for a in true]
    missed = [a for a, touched in zip(true, touch, strict=True) if not any(touched)]
    invented = [b for k, b in enumerate(written) if not any(touched[k] for touched in touch)]
    rules = {"no answer": row.abstained == 1, "wrong letter": row.concluded == 1, "missed": missed}
    rules |= {"invented": invented, "miscalculated": not all(calculations(row.text))}
    cause = next((name for name, met in rules.items() if met), "misread")
    return CAUSES[bool(missed)] if row.correct else cause, missed, invented


# %%
results["cause"] = [diagnose(row)[0] for row in results.itertuples()]
stated = results["text"].map(calculations)
wrong = ~stated.map(all)
print(f"{stated.map(len).gt(0).sum()} replies calculate, {wrong.sum()} of them wrongly", end="; ")
print(f"{results['correct'][wrong].sum():.0f} of the latter have the right answer")
counts = pd.DataFrame({f"{row}, {g.sum()}": results["cause"][g].value_counts() for row, g in groups.items()})
counts = counts.reindex(CAUSES).fillna(0).astype(int)
figure = AltFigure(9, 3.6, f"replies by cause: {counts.to_dict()}")
axes, ends = figure.subplots(), (100 * counts / counts.sum()).cumsum()
for cause, color in [*zip(CAUSES, COLORS, strict=True)][::-1]:
    axes.barh(ends.columns, ends.loc[cause], color=color)
axes.set(xlabel="replies, %", xlim=(0, 100), ylim=(len(ends.columns) - 0.5, -0.5))
figure.legend(axes.containers[::-1], CAUSES, loc="outside upper left", ncols=4, frameon=False)
figure

# %%
item_of, images, boxes, titles = {item.id: item for item in [*benchmark, *lesions]}, [], [], []
both = results["boxes"].str.len().gt(0) & results["truth_boxes"].str.len().gt(0)
for x in results[results["correct"].eq(0) & both].drop_duplicates("cause").itertuples():
    _, missed, invented = diagnose(x)
    cause, planes = (missed or invented or x.boxes)[0], item_of[x.id].load()  # a slice through this box
    z = int(np.clip(box_of(cause).center[2], 0, len(planes) - 1)) if len(cause) == 6 else 0
    names = {f"true box {k}": box_of(box) for k, (_, box) in enumerate(x.truth_boxes, 1)}
    names |= {f"model's box {k}": box_of(box) for k, box in enumerate(x.boxes, 1)}
    boxes.append({n: b for n, b in names.items() if len(b.as_tuple()) == 4 or b.z1 <= z < b.z2})
    images.append(frame.aligned(planes[z]))
    titles.append(f"{x.cause}\n{x.question}\n{x.answer} (right: {x.truth})")
    print(f"{x.cause}; right would be {x.options[x.truth]}: {x.text}")
display.show_images(images, boxes, titles, columns=3) if images else "none"

# %% [markdown]
# A wrong calculation need not spoil an answer: the options may lie further apart than the error, or the answer may not rest on the calculation
# ([unfaithful reasoning](https://arxiv.org/abs/2305.04388)). A class is no explanation: redo the calculation of *miscalculated*; if the model's own
# edges lead to the same option, its box was the cause. A box on an invented structure may touch a larger true box; the reply then counts as *misread*.
# ## 7 · Your own box
# An intervention separates localization from interpretation: **you** give the box, and the model continues from there. Move the sliders, press *Ask
# with this box* and watch the answer. The question is the first one about a lesion that the model answers wrongly, if there is one; besides its true
# box we give one elsewhere. Exercise 3 does this for many lesions, because one right answer may be luck.
# > **Predict first.** Which of the three boxes leads to the right answer: the model's own, the one elsewhere, the true one?

# %%
own = pd.concat([own["texture"], own["density and texture"]], ignore_index=True)
row = own.sort_values(["correct", "dimension"], ascending=[True, False], kind="stable").iloc[0]
true, limits = box_of(row.truth_boxes[0][1]), [row.frame[k] for k in (1, 0, 2)]
how = {"request": item_of[row.id].request(item_of[row.id].load()), "generator": checkpoint.generator()}
viewer = display.SliceViewer(boxes={"true box": true}, **how, **asdict(settings))
for box in (None, elsewhere(true, limits[: len(true.as_tuple()) // 2], "0"), true):
    trace = viewer.ask(box)
    words = f"your box, IoU {box.iou(true):.2f}" if box else f"boxes of the model, IoU {row.iou_all:.2f}"
    print(f"{words}: {trace.answer}, {'right' if trace.choice == row.truth else 'wrong'}")
viewer.slider.value = int(true.center[2]) if row.dimension == "3d" else 0
viewer

# %% [markdown]
# If only the true box leads to the right answer, localization was the mistake; but if the IoU of the model's own box was already near 1, a few pixels
# made the difference, or the words before the box. This case was chosen because it was wrong, so a change can only help: count many (exercise 3).
# ## 8 · Your own scans
# `REAL` is a folder with `names.json` (`{"1": "liver", ...}`) and, for each scan, `images/anna.nii.gz` with its label map `labels/anna.nii.gz`; as
# a command: `python -m unireason_lib evaluate --model MODEL --benchmark folder:mine --out runs/a.jsonl --compare runs/b.jsonl`. Without `REAL`, we
# ask about the MNI152 template, the average MRI of 152 people: **one** image, so no interval and no floor. Shown is the reply with the highest IoU,
# not a typical one. The model knows the structures of phantoms only, and may name one of them in a brain.

# %%
real = open_benchmark(*(("folder", root / REAL) if REAL else ("brain",)), per_family=2, **scans)
answers = run(real, f"real-{(REAL or 'brain').split('/')[-1]}")
print(
    f"{answers['correct'].sum():.0f} of {len(answers)} right, by chance {answers['chance'].sum():.0f}",
    end="; ",
)
print(f"mean IoU of the first box {answers['iou_first'].mean():.2f}")
line = answers.sort_values("iou_all", na_position="first").iloc[-1].to_dict()
display.show_trace(line, {item.id: item for item in real}[line["id"]].load(), frame=frame)

# %% [markdown]
# ## Check yourself

# %%
assert [*run(benchmark)["id"]] == [*results["id"]], "nothing is asked twice"
assert not results["failed"].any() and counts.filter(like="D").sum().sum() == len(results)
print("all checks passed")

# %% [markdown]
# **Remember**: intervals over patients, floors, controls with ordinary images. **Next**: [07](07_ablations.ipynb) compares ways of training.
# ## Exercises ([solutions](solutions/06_evaluation.py))
# 1. In section 6 a box touches a structure if their IoU is at least 0.1. How often is a structure missed at 0.3 or 0.5?
# 2. How many patients are needed for an interval of plus or minus 1.5 points?
# 3. How accurate must a box be? Move the true box sideways by fractions of its width: how does the accuracy on texture questions fall with the IoU?
