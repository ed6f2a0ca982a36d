# %% [markdown]
# # 06 · Evaluation: is the model right, does it look, and why does it fail?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/06_evaluation.ipynb)
#
# After this notebook you can
# - report accuracy with an interval over patients beside its baselines, and the IoU of boxes beside its floor;
# - compare two runs pairwise, and test by intervention whether a model uses its images and its crops;
# - classify wrong answers by their cause, correct a box yourself, and evaluate a model on your own scans.
#
# **Time** a minute on 2 CPU cores, less on a GPU. **Needs** no other notebook; a tiny fine-tuned Qwen2.5-VL ships in `data/tiny-sft`.
# **Synthetic**: CT-like torso phantoms, not used in training. **Real**: the brain MRI of section 8. *Not for clinical use.*
#
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
import hashlib
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from scipy.stats import t as student

from unireason_lib import display
from unireason_lib.boxes import format_box
from unireason_lib.config import load_profile
from unireason_lib.dataset.schema import box_of
from unireason_lib.display.figures import AltFigure
from unireason_lib.evaluation import as_table, compare, evaluate, mean, open_benchmark, slice_consistency
from unireason_lib.evaluation.controls import elsewhere
from unireason_lib.grounding import Script, Settings
from unireason_lib.grounding.model import adapter_base
from unireason_lib.inference import Checkpoint, read_results
from unireason_lib.notebooks import project_root, publish
from unireason_lib.training.data import data_folder

profile = load_profile(PROFILE, OVERRIDES)
display.pipeline_figure("evaluation")

# %% [markdown]
# ## 1 · A benchmark and a run
#
# The questions are about held-out phantoms, slices and volumes; the answer prior is removed (notebook 01), so that reading the question alone should
# not help (section 2 checks this). A run is a file with one JSON line per question; it can be resumed after a kill, and refuses replies of another model.

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
digest = hashlib.sha256(repr([checkpoint.identity(), settings, benchmark.identity]).encode()).hexdigest()[:8]
asking = {"settings": settings, "batch_size": wanted.batch_size, "quiet": True}
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
#
# Patient $i$ of $k$ has $n_i$ questions, $r_i$ of them answered right; $N = \sum_i n_i$. Other patients would give another accuracy $p$, and answers
# about one patient tend to be right or wrong together. So the standard error $s$ is taken over patients; $N^*$ independent questions would have the
# same $s$, and Wilson's interval for $N^*$ stays between 0 and 1 ($t$: Student's quantile, $k - 1$ degrees of freedom):
#
# $$p = \frac{\sum_i r_i}{N}, \quad s^2 = \frac{k}{k - 1} \sum_i \frac{(r_i - p \, n_i)^2}{N^2}, \quad
# N^* = \min\left(N, \frac{p (1 - p)}{s^2}\right), \quad
# \frac{p + t^2 / 2N^* \pm t \sqrt{p (1 - p) / N^* + t^2 / 4 N^{*2}}}{1 + t^2 / N^*}.$$
#
# > **Predict first.** How wide is this interval for 100 questions: 2, 5, 10 or 20 points from end to end?

# %%
def standard_error(values, patients):
    """Standard error of a mean of values that belong together within a patient."""
    total, count = pd.Series([*values]).groupby([*patients]).agg(["sum", "count"]).to_numpy().T
    k, n = len(count), count.sum()
    return np.sqrt(k / (k - 1) * ((total - total.sum() / n * count) ** 2).sum()) / n


accuracy, p, k = mean(results), results["correct"].mean(), results["patient"].nunique()
s, t = standard_error(results["correct"], results["patient"]), student.ppf(0.975, k - 1)
if s > 0:  # else all patients are alike
    worth = min(len(results), p * (1 - p) / s**2)
    half = t * np.sqrt(p * (1 - p) / worth + t**2 / (4 * worth**2))
    low, high = ((p + t**2 / (2 * worth) + x) / (1 + t**2 / worth) for x in (-half, half))
    assert np.allclose([p, low, high], [accuracy.value, accuracy.low, accuracy.high])
print(f"{accuracy.text()} %: {100 * (accuracy.high - accuracy.low):.0f} points wide, {k} patients")


# %% [markdown]
# Four baselines do not look: **chance**; **majority**, the most frequent right letter of this test (hence above chance); **question-only**, the
# option most often right in training (notebook 01 fits a stronger one); **blank**, the model on grey images. If question-only is above chance, the options may give answers away.

# %%
def points(x, name="", unit="%", scale=100):
    """Value and ends of an interval, times a scale; with a name it is published."""
    value, *ends = (scale * y for y in (x.value, x.low, x.high))
    if name:
        publish(name, value, unit, interval=tuple(ends), note=f"{x.n} questions")
    return value, *ends


results["majority"] = results.groupby("dimension")["truth"].transform(lambda x: 1.0 * (x == x.mode()[0]))
results["blank"] = results["id"].map(blank.set_index("id")["correct"])
groups = {d.upper(): results["dimension"] == d for d in sorted({*results["dimension"]})}
groups |= {family: results["family"] == family for family in sorted({*results["family"]})}
ways = {"correct": "model", "blank": "blank", "question_only": "question-only", "majority": "majority"}
by_way = {w: {r: points(x) for r, g in groups.items() if (x := mean(results[g], c))} for c, w in ways.items()}
chance = 100 * results["chance"].mean()
leaks = [row for row, (_, low, _) in by_way["question-only"].items() if low > chance]
print(f"The question alone is clearly above chance in {len(leaks)} of {len(groups)} rows:", ", ".join(leaks))
for d, part in results.groupby("dimension"):
    points(mean(part), f"accuracy, {d.upper()}")
points(mean(blank), "accuracy, images blanked")
points(mean(results, "format"), "format compliance")
table = {w: {row: round(x[0]) for row, x in rows.items()} for w, rows in by_way.items()}
print(pd.DataFrame(table).to_string())
shown = {way: by_way[way] for way in ("model", "question-only")}
display.plot_intervals(shown, "right answers, %", reference=("chance", chance))


# %% [markdown]
# ## 3 · Boxes: IoU and its floor
#
# $\mathrm{IoU}(A, B) = |A \cap B| \, / \, |A \cup B|$, and 0 without a box (notebook 05 leaves such replies out). Questions that state a box are
# left out, since it could be copied. The **floor** is the IoU of the structure's mean box in other patients: a model not clearly above it has not
# shown that it looks. **Slice-volume consistency** is the overlap of a cuboid with the boxes in its slices, each shown alone (paper: 0.76 to 0.83).

# %%
def iou(one, other):
    """IoU of two rectangles or cuboids, each its first and then its second corner."""
    (low, high), (start, stop) = np.reshape(one, (2, -1)), np.reshape(other, (2, -1))
    common = np.clip(np.minimum(high, stop) - np.maximum(low, start), 0, None).prod()
    return common / ((high - low).prod() + (stop - start).prod() - common)


few = replace(benchmark, items=benchmark.items[: profile.evaluation.control_questions])
for row in results[results["iou_first"].gt(0) & results["truth_boxes"].str.len().eq(1)].itertuples():
    assert abs(iou(row.boxes[0], row.truth_boxes[0][1]) - row.iou_first) < 1e-5
    others = results[(results["patient"] != row.patient) & (results["dimension"] == row.dimension)]
    boxes = [box for some in others["truth_boxes"] for name, box in some if name == row.truth_boxes[0][0]]
    floor = iou(np.mean(boxes, axis=0), row.truth_boxes[0][1]) if boxes else np.nan
    assert np.isclose(floor, row.iou_average_box, equal_nan=True)
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
# ## 4 · Does it look? A paired comparison of two runs
#
# A **control** takes something away and asks again. The formula of section 2, with the difference $d_i$ between both runs in place of $r_i$, gives
# the paired standard error. It is smaller than that of independent runs, $\sqrt{s_1^2 + s_2^2}$, if the same questions are hard for both.

# %%
paired = standard_error(results["correct"] - results["blank"], results["patient"])
apart = np.hypot(s, standard_error(results["blank"], results["patient"]))
print(f"standard error: paired {100 * paired:.1f} points, as if independent {100 * apart:.1f}")
lost = {"grey images": compare(blank, results)}
assert np.isclose(paired, lost["grey images"].standard_error)
for way, control in {"random pixels": "noise", "images of another patient": "other"}.items():
    lost[way] = compare(run(few, control=control), results)
by_way = {f"{way}, {x.questions} questions": points(x.difference) for way, x in lost.items()}
display.plot_intervals({"lost": by_way}, "points of accuracy lost", reference=("nothing lost", 0))

# %% [markdown]
# ## 5 · Does it use its crops?
#
# Only what a box **fetches** is changed. Lesions have textures of single pixels, finer than a token of the whole image.
#
# > **Predict first.** Which questions lose most without their own crops: those about textures, those about densities, or all families together?

# %%
how = {"limit": 3 * profile.evaluation.control_questions, "prior_studies": 0, "a_patient": 1, **phantoms}
lesions = open_benchmark("phantom", families=["lesion analysis"], **how)
asked = {"all families": ("replies", few)}
for kind, file in {"texture": "textures", "density": "densities"}.items():
    items = tuple(item for item in lesions if item.kind == kind)
    asked[file] = file, replace(lesions, items=items, identity={**lesions.identity, "kind": kind})
crops = {"own crops": "none", "random region": "random-crop", "region beside the box": "shifted-crop"}
crops |= {"same region of another patient": "swapped-crop", "no crops": "no-crop"}
runs = {way: {row: run(x, file, c) for row, (file, x) in asked.items()} for way, c in crops.items()}
print(pd.DataFrame({w: {row: mean(x).text() for row, x in y.items()} for w, y in runs.items()}).T.to_string())
own = runs.pop("own crops")
lost = {way: {row: compare(x, own[row]).difference for row, x in one.items()} for way, one in runs.items()}
points(lost["random region"]["textures"], "textures: own crops against random ones", "points")
most, way, row = max((x.value, way, row) for way, one in lost.items() for row, x in one.items())
print(f"Most is lost in {row}, {way}: {100 * most:.0f} points.")
by_way = {way: {row: points(x) for row, x in one.items()} for way, one in lost.items()}
display.plot_intervals(by_way, "points lost against own crops, paired", reference=("nothing lost", 0))

# %% [markdown]
# ## 6 · Why is an answer wrong?
#
# A box *touches* a structure if their IoU is at least 0.1. The cause of a wrong answer is the first that applies: **no answer**; **wrong letter**
# (the reasoning ends with the right option); **missed** (a structure that the answer rests on is touched by no box); **invented** (some box touches
# none of those structures); **misread** (all boxes are in place). A right answer may have a wrong reason: **right, box elsewhere**.

# %%
COLORS = "#009e73", "#a6dcc8", "#d55e00", "#e69f00", "#cc79a7", "#0072b2", "#656d76"
CAUSES = ["right", "right, box elsewhere", "missed", "invented", "misread", "wrong letter", "no answer"]


def diagnose(row, touching=0.1):
    """The cause of a reply, and its true boxes and its written boxes that touch none of the others."""
    true, written = [box for _, box in row.truth_boxes], [] if row.failed else row.boxes
    touch = [[len(a) == len(b) and iou(a, b) >= touching for b in written] for a in true]
    missed = [a for a, touched in zip(true, touch, strict=True) if not any(touched)]
    invented = [b for k, b in enumerate(written) if not any(touched[k] for touched in touch)]
    rules = {"no answer": row.abstained == 1, "wrong letter": row.concluded == 1, "missed": missed}
    cause = next((name for name, met in (rules | {"invented": invented}).items() if met), "misread")
    return CAUSES[bool(missed)] if row.correct else cause, missed, invented


results["cause"] = [diagnose(row)[0] for row in results.itertuples()]
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
    true, written = box_of((missed or [x.truth_boxes[0][1]])[0]), box_of((invented or x.boxes)[0])
    images.append(frame.aligned(item_of[x.id].load()[int(true.center[2]) if x.dimension == "3d" else 0]))
    boxes.append({"true box": true, "box of the model": written})
    overlap = iou(true.as_tuple(), written.as_tuple()) if type(true) is type(written) else 0
    titles.append(f"{x.cause}, IoU {overlap:.2f}\n{x.question}\n{x.answer} (right: {x.truth})")
    print(f"{x.cause}; right would be {x.options[x.truth]}: {x.text}")
display.show_images(images, boxes, titles, columns=3) if images else "none"

# %% [markdown]
# ## 7 · Your own box
#
# An intervention separates finding from reading: **you** give the box, and the model continues from there. Move the sliders, press *Ask with this
# box* and watch the answer. Then all lesions get their true box: where that corrects answers, the model can read but did not find.
#
# > **Predict first.** Of the questions whose lesion the model missed, what fraction is answered right when it is given the true box?

# %%
own = pd.concat([own["textures"], own["densities"]], ignore_index=True)
own["lesion"] = ["missed" if diagnose(row)[1] else "touched by a box" for row in own.itertuples()]
row = own.sort_values(["lesion", "correct", "dimension"], ascending=[True, True, False]).iloc[0]
true, limits = box_of(row.truth_boxes[0][1]), [row.frame[k] for k in (1, 0, 2)]
how = {"request": item_of[row.id].request(item_of[row.id].load()), "generator": checkpoint.generator()}
viewer = display.SliceViewer(boxes={"true box": true}, **how, **asdict(settings))
for box in (None, elsewhere(true, limits[: len(true.as_tuple()) // 2], "0"), true):
    trace = viewer.ask(box)
    words = f"your box, IoU {box.iou(true):.2f}" if box else "boxes of the model"
    print(f"{words}: {trace.answer}, {'right' if trace.choice == row.truth else 'wrong'}")
viewer.slider.value = int(true.center[2]) if row.dimension == "3d" else 0
viewer

# %%
generator, boxes = viewer.generator, [format_box(box_of(some[0][1])) for some in own["truth_boxes"]]
how = {"scripts": [Script(generator.tokenizer, (f"<think>{box}",)) for box in boxes], **asdict(settings)}
requests = [item_of[name].request(item_of[name].load()) for name in own["id"]]
traces = generator.generate(requests, batch_size=profile.evaluation.batch_size, **how)
given = own.assign(correct=[float(x.choice == truth) for x, truth in zip(traces, own["truth"], strict=True)])
points(compare(own, given).difference, "lesions: the true box against the model's", "points")
ways = {"box of the model": own, "true box given": given}
by_way = {w: {f"{g}, {len(x)}": points(mean(x)) for g, x in y.groupby("lesion")} for w, y in ways.items()}
display.plot_intervals(by_way, "right answers, %", reference=("chance", chance))

# %% [markdown]
# ## 8 · Your own scans
#
# `REAL` is a folder with `names.json` (`{"1": "liver", ...}`) and, for each scan, `images/anna.nii.gz` with its label map `labels/anna.nii.gz`; as
# a command: `python -m unireason_lib evaluate --model MODEL --benchmark folder:mine --out runs/a.jsonl --compare runs/b.jsonl`. Without `REAL`, we
# ask about the MNI152 template, the average MRI of 152 people: **one** image, so no interval. The floor here is that of **phantoms**.

# %%
real = open_benchmark(*(("folder", root / REAL) if REAL else ("brain",)), per_family=2, **scans)
answers = run(real, f"real-{(REAL or 'brain').split('/')[-1]}")
print(f"{answers['correct'].sum():.0f} of {len(answers)} right, {answers['patient'].nunique()} patients")
both = as_table([*results.to_dict("records"), *answers.to_dict("records")]).iloc[len(results) :]
both = both.assign(structure=[boxes[0][0] if boxes else "none" for boxes in both["truth_boxes"]])
print(both.groupby("structure")[["iou_first", "iou_average_box", "correct"]].mean().round(2).to_string())
line = answers.sort_values("iou_all", na_position="first").iloc[-1].to_dict()
display.show_trace(line, {item.id: item for item in real}[line["id"]].load(), frame=frame)

# %% [markdown]
# ## Check yourself

# %%
assert [*run(benchmark)["id"]] == [*results["id"]], "nothing is asked twice"
assert not results["failed"].any() and counts.filter(like="D").sum().sum() == len(results)
print("all checks passed")

# %% [markdown]
# ## Exercises ([solutions](solutions/06_evaluation.py))
# 1. In section 6 a box touches a structure if their IoU is at least 0.1. How often is a structure missed at 0.3 or 0.5?
# 2. How many patients are needed for an interval of plus or minus 1.5 points?
# 3. How accurate must a box be? Move the true box sideways by fractions of its width: how does the accuracy on texture questions fall with the IoU?
