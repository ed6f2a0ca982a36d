# %% [markdown]
# # 07 · Ablations: which part makes it work?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/07_ablations.ipynb)
#
# After this notebook you can
# - turn a question ("do boxes help?") into a grid of runs that differ in one thing, and know what it costs before it runs;
# - say of a difference between two ways of training how sure it is, over seeds and questions, and after how many comparisons;
# - read the study of the paper's claims that ships with this project, its negative results included, and add a condition to it.
#
# **Where we stand.** Notebooks 04, 05 and 06 train and measure one model. Here the same three notebooks have been run many
# times, and what they found is one table.
#
# **Time** half a minute on 2 CPU cores: the study is read, not run. Running it takes hours (`make replicate`) and can be stopped
# at any time. **Needs** nothing from earlier notebooks. All patients are **synthetic** phantoms and the model is tiny: results
# hold for this experiment only, not for the paper's 7B model, and *nothing here is for clinical use.*

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
GRID = "data/ablations/claims.yaml"  # the study
STUDY = "data/results/claims"  # its results, without .json and .csv.gz; your own: runs/results/claims
CURVE = "data/results/efficiency"  # those of data/ablations/efficiency.yaml; empty: no curve

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
import json

from IPython.display import display

from unireason_lib.ablation.grid import load_grid
from unireason_lib.ablation.results import read_kept
from unireason_lib.display import pipeline_figure
from unireason_lib.profiles import load_profile
from unireason_lib.tutorial import project_root, publish
from unireason_lib.tutorial.results import aligned

profile, root = load_profile(PROFILE, OVERRIDES), project_root()
samples = profile.evaluation.samples  # of a bootstrap
grid = load_grid(root / GRID)
pipeline_figure("ablations")

# %% [markdown]
# ## 1 · From a question to runs
#
# A **condition** says with which parameters the notebooks run; nothing else differs between two of them. A **claim** names two
# conditions and which should be better. Both are written down in a grid before anything runs, so that what is compared does
# not depend on what came out.

# %%
print(grid.about, "\n")
stages = {"sft": "fine-tuning (04)", "rl": "outcome RL (05)", "test": "test (06)"}
lines = [("condition", *stages.values())]
for condition in grid.conditions.values():
    given = [condition.stages.get(stage) for stage in stages]
    words = [
        "-" if one is None else ", ".join(f"{k}={v}" for k, v in one.items()) or "as it is" for one in given
    ]
    lines.append((condition.name, *words))
print(aligned(lines))

# %% [markdown]
# A plan makes notebook runs of that. Each is named after all that decides its outcome, so two conditions with the same
# fine-tuning name the same run, and it is made once.

# %%
from unireason_lib.ablation.plan import plan
from unireason_lib.display import plot_counts

jobs = plan(grid)
alone = {stage: sum(stage in one.stages for one in grid.conditions.values()) for stage in stages}
shared = {stage: sum(job.stage == stage for job in jobs) for stage in stages}
plot_counts(
    {
        "runs, each condition by itself": {stages[k]: n * len(grid.seeds) for k, n in alone.items()},
        "runs, what is shared made once": {stages[k]: n for k, n in shared.items()},
    }
)

# %% [markdown]
# What a run needs, and the command that makes this one alone. `python -m unireason_lib ablate GRID --dry-run` lists them all
# with an estimate of the time; without `--dry-run` it runs them, `--workers 2` at a time or on a Ray cluster (`--ray`).

# %%
job = next(job for job in jobs if job.stage == "rl")
print(f"{job.name} builds on {job.needs}, is shared by {', '.join(job.conditions)}:\n")
print(job.command())

# %% [markdown]
# ## 2 · One table
#
# What comes out is a row for every condition, seed and question: right or not, in the form or not, and how well the first box
# fits. Beside it stands how it came about.

# %%
study = (root / STUDY).with_name(f"{(root / STUDY).name}.json")
told, kept = json.loads(study.read_text(encoding="utf-8")), read_kept(study.parent, study.stem)
rows = kept.rows
print(aligned([tuple(rows[0]), *(tuple(map(str, row.values())) for row in rows[:3])]))
print(f"\n{len(rows):,} rows of {len(told['runs'])} runs, made by")
for part in told["made"]:
    print(f"  {part['command']}")
    print(f"  with {', '.join(f'{name} {number}' for name, number in part['packages'].items())}")
hours = {what: minutes / 60 for what, minutes in told["minutes"].items()}
print("hours " + ", ".join(f"{what}: {found:.1f}" for what, found in hours.items()))
print("tests that are missing:", ", ".join(told["missing"]) or "none")

# %% [markdown]
# A study that is still going on is not looked at: if one may stop when the figures please, the intervals below mean nothing.
# `ablate` shows nothing of it before it has ended either.

# %%
assert told["verdicts"], "this study has not ended: its results are told when it has"
names = [name for name in grid.conditions if any(row["condition"] == name for row in rows)]

# %% [markdown]
# `read_kept` has compared the table with the digest that was written beside it. The questions are those of notebook 06, so
# they can be asked for again; with them come two readers who look at nothing: one always says the letter that is right most
# often, one knows which option is right most often in training.

# %%
from collections import Counter

from unireason_lib.evaluation import open_benchmark
from unireason_lib.inference import Checkpoint

size = load_profile(told["profile"], told["overrides"])
base = Checkpoint(str(root / size.model.base))
frame = base.frame()
asked = {"split": "test", "limit": size.evaluation.questions, "frame": frame, "seed": 0}
shape, census = tuple(size.dataset.shape), min(300, size.dataset.census)
benchmark = open_benchmark("phantom", size=shape, census=census, **asked)
same = {item.id for item in benchmark} == {row["id"] for row in rows}
print(f"{len(benchmark)} questions, {'those' if same else 'NOT those'} of the table")
baselines = {}
for d in ("2d", "3d"):
    mine = [item for item in benchmark if item.dimension == d]
    letter, _ = Counter(item.answer for item in mine).most_common(1)[0]
    one_letter = sum(item.answer == letter for item in mine) / len(mine)
    baselines[d] = {
        "one letter": one_letter,
        "most likely": sum(i.guess == i.answer for i in mine) / len(mine),
    }

# %% [markdown]
# ## 3 · One difference, by hand
#
# Take the first claim. Both conditions were asked the same questions with the same seeds, so the difference is taken question
# by question:

# %%
import numpy as np

from unireason_lib.evaluation.tidy import runs

claim = grid.claims[0]
where = {"dimension": claim.dimension} if claim.dimension else {}
worse, patients = runs(rows, claim.worse, claim.value, **where)
better, _ = runs(rows, claim.better, claim.value, **where)
ids = list(patients)
table = np.array(
    [[b[i] - w[i] for i in ids] for w, b in zip(worse, better, strict=True)]
)  # seeds x questions
print(
    f"{claim.name}: {claim.better} against {claim.worse}, {table.shape[1]} questions in {claim.dimension.upper()}"
)
for seed, line in zip(told["seeds"], table, strict=False):
    won, lost = int((line > 0).sum()), int((line < 0).sum())
    print(f"seed {seed}: {won} won, {lost} lost, {100 * line.mean():+.1f} points")

# %% [markdown]
# How much would it be with other patients, and with other seeds? A **bootstrap** draws as many of each as there are, with
# repetition, and looks how much the mean moves. Questions about one patient are drawn together. Patients move the mean over all
# seeds, seeds move it as far as their own means differ (drawing from the whole table at once would count the luck of single
# replies once more).

# %%
draw = np.random.default_rng(SEED)
of_patient = {}
for k, i in enumerate(ids):
    of_patient.setdefault(patients[i], []).append(k)
groups = list(of_patient.values())
by_question, by_seed = table.mean(0), table.mean(1)
means = []
for _ in range(2000):
    columns = np.concatenate([groups[k] for k in draw.integers(len(groups), size=len(groups))])
    seeds = draw.integers(len(by_seed), size=len(by_seed))
    means.append(by_question[columns].mean() + by_seed[seeds].mean() - by_seed.mean())
low, high = np.quantile(means, [0.025, 0.975])
print(f"by hand      {100 * table.mean():+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")

# %%
from unireason_lib.evaluation.statistics import compare

found = compare(worse, better, patients, paired_seeds=True)
d = found.difference
print(
    f"the library  {100 * d.value:+.1f} points ({100 * d.low:+.1f} to {100 * d.high:+.1f}), "
    f"p {found.p:.3f}, h {found.h:+.2f}"
)
print(f"its interval is {(d.high - d.low) / (high - low):.2f} times as wide")
assert abs(d.value - table.mean()) < 1e-9 and 0.6 < (d.high - d.low) / (high - low) < 2

# %% [markdown]
# They differ, for two reasons that pull in opposite directions. A handful of seeds is a small sample of all seeds: drawing from
# it shrinks their spread, which itself is hardly known. And means of seeds differ already because single replies do, which the
# draw of patients has counted. The library puts both right (the docstring of `evaluation/statistics.py` says how).
#
# ## 4 · Many claims
#
# Whoever tests many claims at 5 % finds one by luck. **Holm's correction** multiplies the smallest p-value by the number of
# claims, the next by one less, and so on, and never lets a later one fall below an earlier:

# %%
from unireason_lib.ablation.claims import judge
from unireason_lib.evaluation.statistics import holm

verdicts = judge(rows, grid.claims)
compared = [one for one in verdicts if one.comparison is not None]
raw = [one.comparison.p for one in compared] + [1.0] * (
    len(verdicts) - len(compared)
)  # what was not run counts too
least, by_hand = 0.0, {}
for rank, k in enumerate(sorted(range(len(raw)), key=raw.__getitem__)):
    least = max(least, min(1.0, (len(raw) - rank) * raw[k]))
    by_hand[k] = least
assert [by_hand[k] for k in range(len(raw))] == holm(raw)
lines = [("claim", "p", "p, Holm")]
lines += [(one.claim.name, f"{raw[k]:.4f}", f"{by_hand[k]:.4f}") for k, one in enumerate(compared)]
print(aligned(lines))

# %% [markdown]
# ### What a verdict is worth
#
# The verdict is computed: **reproduced** if the corrected p-value is below 5 % and the interval lies above zero, **reversed** if
# it lies below, **not seen** otherwise, **cannot tell** with fewer than three seeds. Does that find what is there, and only
# that? On made data the truth is known:

# %%
from unireason_lib.ablation.grid import Claim

of_seeds, luck = (
    table.mean(1).var(ddof=1),
    table.var(1).mean() / table.shape[1],
)  # the second: of single replies
spread = float(np.sqrt(max(0.0, of_seeds - luck)))  # what seeds add in this study
print(f"seeds differ by {100 * np.sqrt(of_seeds):.1f} points, of which seeds themselves {100 * spread:.1f}")


def made(effect, seeds=5, draw=0):
    """Answers of two conditions about the questions of the claim; the second is right more often by the effect."""
    rng, found = np.random.default_rng(draw), []
    easy = rng.uniform(0.2, 0.7, len(ids))
    for seed in range(seeds):
        for name, shift in (("old", 0.0), ("new", effect + rng.normal(0, spread))):
            right = rng.random(len(ids)) < np.clip(easy + shift, 0, 1)
            head = {"condition": name, "seed": seed, "dimension": claim.dimension}
            found += [
                {**head, "id": i, "patient": patients[i], "correct": float(r)}
                for i, r in zip(ids, right, strict=True)
            ]
    return found


ONE = [Claim("new is better", "new", "old")]
for effect, seeds in ((0.1, 5), (0.0, 5), (-0.1, 5), (0.1, 2)):
    (one,) = judge(made(effect, seeds), ONE)
    print(f"true effect {100 * effect:+3.0f} points, {seeds} seeds: {one.verdict} ({one.why})")

# %% [markdown]
# And how large must an effect be for this study to see it? The same, many times over: for a claim that stands alone, and for the
# first of as many claims as there are here, which has to be that much surer.

# %%
from unireason_lib.display import plot_lines
from unireason_lib.evaluation.statistics import wilson

effects, tries = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1), 3 if PROFILE == "smoke" else 60


def p_upwards(effect, seeds, draw):
    """The p-value of a made study whose difference points up, else 1."""
    found = made(effect, seeds, draw)
    sides = [runs(found, name)[0] for name in ("old", "new")]
    one = compare(*sides, patients, paired_seeds=True, samples=300)
    return one.p if one.difference.value > 0 else 1.0


found = {n: {e: [p_upwards(e, n, k) for k in range(tries)] for e in effects} for n in (3, 5)}
series = {
    "5 seeds, one claim": (5, 1),
    f"5 seeds, first of {len(verdicts)}": (5, len(verdicts)),
    "3 seeds, one claim": (3, 1),
}
curves, bands = {}, {}
for name, (n, claims) in series.items():
    seen = {e: sum(p < 0.05 / claims for p in found[n][e]) for e in effects}
    curves[name] = [(100 * e, k / tries) for e, k in seen.items()]
    bands[name] = [wilson(k, tries) for k in seen.values()]
power = curves
plot_lines(power, "true effect, percentage points", "share of studies that see it", bands)

# %% [markdown]
# So "not seen" is no evidence that there is nothing: it says that an effect, if there is one, is smaller than what the curve
# finds. Below, each such claim is told with the largest effect that its interval still allows.

# %% [markdown]
# ## 5 · What came out: the conditions
#
# Means over seeds and questions with 95 % intervals. Beside every accuracy: the same models when they are shown grey pictures
# ("blind"), and the two readers from above.

# %%
from unireason_lib.ablation.report import means as means_of
from unireason_lib.ablation.report import table_of_conditions

measured = {
    name: means_of(rows, name, samples=samples) for name in [*names, *(f"{name}, blind" for name in names)]
}
print(aligned(table_of_conditions(rows, names, measured)))
for d, found in baselines.items():
    print(f"{d.upper()}: " + ", ".join(f"{name} {share:.1%}" for name, share in found.items()))

# %%
from unireason_lib.display import plot_intervals


def percent(name, heading):
    """A mean with its interval, in percent."""
    one = measured[name][heading]
    return 100 * one.value, 100 * one.low, 100 * one.high


for d in ("2d", "3d"):
    heading = f"{d.upper()}, %"
    series = {
        "with pictures": {name: percent(name, heading) for name in names},
        "blind": {name: percent(f"{name}, blind", heading) for name in names},
    }
    best = max(baselines[d], key=baselines[d].get)
    display(plot_intervals(series, f"right in {d.upper()}, %", reference=(best, 100 * baselines[d][best])))

# %% [markdown]
# What lies above the blind value was learnt from the pictures. Two conditions are here to be looked at and have no claim: "2D
# only" shows what volumes are worth to a model that never saw one, "answer only" what is reached without any reasoning. To
# compare conditions, do not compare their intervals: all were asked the same questions, and differences are surer than that.
#
# By family, in volumes (percent right, all seeds):

# %%
from statistics import fmean

from unireason_lib.dataset.questions import FAMILIES

asked_3d = Counter(item.family for item in benchmark if item.dimension == "3d")
lines = [("condition", *(f"{family} ({asked_3d[family]})" for family in FAMILIES))]
for name in names:
    right = {family: [] for family in FAMILIES}
    for row in rows:
        if row["condition"] == name and row["dimension"] == "3d":
            right[row["family"]].append(row["correct"])
    lines.append((name, *(f"{100 * fmean(found):.1f}" if found else "" for found in right.values())))
print(aligned(lines))

# %% [markdown]
# Does a model that writes cuboids point at the same place when it is shown the slices alone (notebook 06)? The overlap, over
# the seeds:

# %%
agreement = {name: [] for name in names}
for run in told["runs"]:
    overlap = kept.consistency.get(run["key"], {}).get("overlap")
    for name in run["conditions"] if overlap else ():
        agreement[name].append(overlap["value"])
for name, found in agreement.items():
    if found:
        print(f"{name:<32}IoU {fmean(found):.2f}, seeds from {min(found):.2f} to {max(found):.2f}")

# %% [markdown]
# ## 6 · What came out: the claims
#
# How much better is the first condition of a claim than the second? Claims of the **mixture** are the paper's: slices help when
# volumes are scarce. Claims of the **components** are about boxes and regions, those of the **stages** about outcome RL, which
# is paid on slices only here, so that what it does to volumes is carried over.

# %%
parts = {"mixture": "slices beside volumes", "components": "boxes, regions", "stages": "outcome RL"}


def effect(one):
    """The difference of a verdict with its interval, in points."""
    d = one.comparison.difference
    return 100 * d.value, 100 * d.low, 100 * d.high


shown = [one for one in verdicts if one.comparison is not None and one.claim.value == "correct"]
series = {
    words: {f"{one.claim.name}: {one.verdict}": effect(one) for one in shown if one.claim.part == part}
    for part, words in parts.items()
}
figure = plot_intervals(
    {name: lines for name, lines in series.items() if lines},
    "more right answers, percentage points (95 %)",
    reference=("no difference", 0),
)
if STUDY == "data/results/claims" and PROFILE != "smoke":
    figure.savefig(root / "data" / "figures" / "claims.png", dpi=150)
display(figure)

# %% [markdown]
# In words, with the claim about boxes that is measured in IoU and so has no place in the figure:

# %%
for one in verdicts:
    if one.comparison is None:
        print(f"{one.verdict.upper():<12}{one.claim.name}: {one.why}")
        continue
    d, points = one.comparison.difference, one.claim.value == "correct"
    scale, unit = (100, " points") if points else (1, "")
    said = f"{scale * d.value:+.2g}{unit} ({scale * d.low:+.2g} to {scale * d.high:+.2g})"
    print(f"{one.verdict.upper():<12}{one.claim.name}: {one.claim.better} against {one.claim.worse}, {said}")
    more = "" if one.p is None else f"p {one.p:.2g} after Holm" if one.p >= 0.001 else "p below 0.001 after Holm"
    h, d_size = one.comparison.h, one.comparison.d
    more += f", Cohen's d {d_size:+.2f}" if h is None else f", Cohen's h {h:+.2f}"
    more += f"; up to {scale * d.high:+.2g}{unit} cannot be ruled out" if one.verdict == "not seen" else ""
    print(f"{'':<12}{more}")
    ends = tuple(scale * end for end in (d.low, d.high))
    publish(f"claim: {one.claim.name}", scale * d.value, unit.strip(), interval=ends, note=one.verdict)


# %% [markdown]
# ## 7 · Where does it come from?
#
# The same differences, family by family. Nothing here was claimed beforehand and nothing is corrected: one row in twenty leaves
# out zero by chance. It is for asking the next question.

# %%
def by_group(one, column, groups):
    """Group of questions -> difference of a claim on them, in points; groups with few questions are left out."""
    found = {}
    for group in groups:
        here = {"dimension": one.dimension, column: group}
        asked = {row["id"] for row in rows if all(row[name] == value for name, value in here.items())}
        if len(asked) < 20:
            continue
        worse, patients = runs(rows, one.worse, one.value, **here)
        better, _ = runs(rows, one.better, one.value, **here)
        d = compare(
            worse, better, patients, paired_seeds=len(worse) == len(better), samples=samples
        ).difference
        found[group] = (100 * d.value, 100 * d.low, 100 * d.high)
    return found


for part, d in (("mixture", "3d"), ("components", "2d"), ("components", "3d")):
    mine = [v.claim for v in shown if (v.claim.part, v.claim.dimension) == (part, d)]
    families = {one.name: by_group(one, "family", FAMILIES) for one in mine}
    xlabel = f"more right answers in {d.upper()}, percentage points (95 %)"
    if families:
        display(plot_intervals(families, xlabel, reference=("no difference", 0)))

# %% [markdown]
# **Do crops show anything new?** A lesion's texture can be read when it is enlarged and hardly in the whole picture, so regions
# should help most there (notebook 06 tests one model for that, with crops from elsewhere). By kind of question:

# %%
mine = [v.claim for v in shown if {v.claim.better, v.claim.worse} == {"joint", "no regions"}]
kinds = sorted({row["kind"] for row in rows})
gained = {one.dimension.upper(): by_group(one, "kind", kinds) for one in mine}
plot_intervals(gained, "more right answers with regions, points (95 %)", reference=("no difference", 0))

# %% [markdown]
# **Does it point, before it answers?** The overlap of the first box with the true one, of the conditions that learnt to write
# boxes (none counts as zero). A model that points badly gets crops of something else:

# %%
writes = [
    name
    for name in names
    if grid.conditions[name].stages["sft"].get("FORM", "full") in ("full", "no regions")
]
series = {}
for heading in ("IoU 2D", "IoU 3D"):
    found = {name: measured[name][heading] for name in writes if heading in measured[name]}
    series[heading] = {name: (one.value, one.low, one.high) for name, one in found.items()}
plot_intervals(series, "overlap of the first box (IoU)")

# %% [markdown]
# ## 8 · How many volumes does it take?
#
# Beyond the paper: right answers about volumes against the number of volumes learnt from, with slices beside them and without.
# Few volumes are gone over more often, so that every condition sees as many; what differs is how many different ones, and what
# stands beside them. (The right-most points are conditions of the study above, with the same seeds.)

# %%
curve = (root / CURVE).with_name(f"{(root / CURVE).name}.json") if CURVE else None
ended = curve is not None and curve.exists() and json.loads(curve.read_text(encoding="utf-8"))["verdicts"]
if ended:
    other = read_kept(curve.parent, curve.stem).rows
    seeds = {row["seed"] for row in other}
    every = [*other, *(row for row in rows if row["seed"] in seeds)]
    most = size.sft.patients_3d
    points = {
        "volumes alone": {40: "40 volumes", 150: "150 volumes", most: "3D only, as many volumes seen"},
        "slices beside": {40: "40 volumes and slices", 150: "150 volumes and slices", most: "joint"},
    }
    curves, bands = {}, {}
    for line, at in points.items():
        found = {n: means_of(every, name, samples=samples)["3D, %"] for n, name in at.items()}
        curves[line] = [(n, 100 * one.value) for n, one in found.items()]
        bands[line] = [(100 * one.low, 100 * one.high) for one in found.values()]
    reference = (best, 100 * baselines["3d"][best])
    display(
        plot_lines(curves, "volumes learnt from", "right in 3D, %", bands, reference=reference, log_x=True)
    )
else:
    print(
        "not run, or not ended: python -m unireason_lib ablate data/ablations/efficiency.yaml --keep data/results"
    )

# %%
from unireason_lib.ablation.report import table_of_claims

if ended:
    curve_grid = load_grid(root / "data" / "ablations" / "efficiency.yaml")
    print(aligned(table_of_claims(judge(other, curve_grid.claims))))

# %% [markdown]
# (Its two claims are a family of their own, corrected by themselves.)

# %% [markdown]
# ## 9 · How far does this carry?

# %%
weights = sum(parameter.numel() for parameter in base.generator().model.parameters())
depth, height, width = size.dataset.shape
print(f"parameters           {weights / 1e6:.1f} million")
print(
    f"a slice              {height} x {width} pixels, {frame.tokens(height, width)} tokens; a volume has {depth}"
)
print(
    f"fine-tuning          {size.sft.steps} steps of {size.sft.batch_size}; of {size.sft.patients_2d} slices, "
)
print(f"                     {size.sft.patients_3d} volumes, several questions each")
print(f"outcome RL           {size.rl.steps} steps of {size.rl.prompts} questions; notebook 05: {profile.rl.steps}")

# %% [markdown]
# - **Size.** So few parameters learn letters, boxes and anatomy in minutes. What a pretrained 7B model brings along has to be
#   learnt here, and what is limited by that says nothing about the paper.
# - **Volumes are near their slices.** A phantom volume is made by the generator of the single slices. If slices help volumes
#   anywhere, then here; real 3D scans differ more from 2D images than that.
# - **Crops.** A slice of so few tokens leaves a lesion hardly one; a crop multiplies that. A large model sees a picture at many
#   more tokens, and may need a crop less. And a model that points badly gets nothing from crops.
# - **RL** is short here, on slices only. Notebook 05 trains longer, on its own.
# - **What is matched.** Three things cannot be equal at once: steps, volumes seen, and passes over each volume. In as many steps,
#   volumes alone are seen several times as often as in the mixture; with as many volumes seen, there are fewer steps. So there
#   are two claims about the mixture, and they bracket the question.
# - **Seeds** are those of fine-tuning and RL. All start from one base, and all are asked one set of questions.
#

# %% [markdown]
# ## 10 · The protocol, and what was changed
#
# The size of the study was chosen on validation patients with seed 100, which no condition uses. The table of that pilot, one
# seed of each, and what it says of the claim:

# %%
from unireason_lib.evaluation.tidy import read_tidy

pilot = read_tidy(root / "data" / "results" / "pilot.csv.gz")
print(aligned(table_of_conditions(pilot)))
alone, whose = runs(pilot, "3D only, 2,000 steps", dimension="3d")
for name in ("joint, 2,000 steps", "joint, 1,500 steps"):
    d = compare(alone, runs(pilot, name, dimension="3d")[0], whose).difference
    print(
        f"{name} against 3D only, 2,000 steps: {100 * d.value:+.1f} points ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
    )

# %% [markdown]
# So the number of steps was chosen where the pilot pointed the way of the claim, at 2,000 steps surely and at 1,500 not. What was
# changed since the first plan, all before an outcome was known:
#
# | what | was | became | why |
# | --- | --- | --- | --- |
# | steps of fine-tuning | 2,000 | 1,500 | the study has to fit into hours |
# | volumes | of 300 patients | 3,600 records of 600 patients | the pilot: volumes alone hardly learnt from fewer |
# | "as many volumes seen" | not there | a condition | in as many steps, volumes alone are seen more often |
# | both conditions with RL, three claims | not there | there | the issue of stages, and the contrast the paper does without |
# | steps of RL | 60 | 30 | the study has to fit into hours |
# | questions of the test | 500 | 1,000 | narrower intervals; it costs minutes |
# | precision | bfloat16 where it is fast | float32 | seeds may be made on different machines |
# | curve: records of volumes | 400, 1,200; each seen less often beside slices | 40, 150 volumes, seen equally often | else fewer volumes would also mean less practice |
# | p-values | share of resamples | Student's t | the former are too small where the correction looks |
#
# A first start was lost with its machine after 33 of 90 runs, unseen; since then a study keeps what it has after every test
# (`--keep`) and can go on from there on another machine (`--parts`). The questions of the test are those of notebook 06, on
# which the models of notebooks 04 to 06 were measured while those were written.
#
# ## 11 · A condition of your own
#
# Three lines of YAML. Does a model that had regions in training need them when it is *tested*?

# %%
import tempfile
from pathlib import Path

from unireason_lib.ablation.ledger import estimate
from unireason_lib.ablation.results import still_needed

text = (root / GRID).read_text(encoding="utf-8")
mine = """
  joint, no crops at the test:
    sft: {}
    test: {OVERRIDES: generation.max_rounds=0}
"""
text = text.replace("\nclaims:\n", f"{mine}\nclaims:\n")
with tempfile.TemporaryDirectory() as place:
    file = Path(place, "mine.yaml")
    file.write_text(text, encoding="utf-8")
    larger = load_grid(file)
new = still_needed(plan(larger), kept) if told["name"] == grid.name else plan(larger)
minutes = {
    s: fmean(run["seconds"] for run in told["runs"] if run["stage"] == s) / 60 for s in ("sft", "test")
}
print(Counter(job.stage for job in new), f"about {estimate(new, minutes):.0f} minutes, one run at a time")
print(
    aligned([("run", "seed", "builds on"), *((job.name, str(job.seed), job.needs or "-") for job in new[:4])])
)

# %% [markdown]
# Only the new tests are to be made, and again the models that they ask: results are kept, checkpoints are not. With the text
# above in `mine.yaml`:
#
# ```bash
# python -m unireason_lib ablate mine.yaml --seeds 1 --profile smoke --look    # does it run at all?
# python -m unireason_lib ablate mine.yaml --parts data/results --workers 2 --keep runs/mine
# ```
#
# (If the code has changed since the study, `--parts` says so, and `--mixed` keeps the old results all the same. A study with
# other questions, seeds or steps is another one: give it another `name`.) At the scale of the paper it is the same grid with
# `--profile gpu --set sft.steps=3000 --ray auto`, and `python -m unireason_lib plan --grid mine.yaml` says what that costs
# before it is spent.
#
# ## Check yourself

# %%
assert same, "the table is of other questions"
for one, was in zip(
    verdicts, told["verdicts"], strict=True
):  # what was written then follows from the table now
    assert (one.claim.name, one.verdict) == (was["claim"], was["verdict"])
for lines in (*gained.values(), *series.values()):
    assert all(low <= value <= high for value, low, high in lines.values())
assert {job.stage for job in new} <= {"sft", "test"} and len({job.seed for job in new}) == len(grid.seeds)
if PROFILE != "smoke":
    assert max(curve[0][1] for curve in power.values()) <= 0.15, "where there is nothing, little may be seen"
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. **Two seeds.** Keep two seeds of the table and judge again. Which verdicts change, and to what?
# 2. **Unpaired.** Call `compare` with `paired_seeds=False` for a claim of each part. Which intervals change, and which way?
# 3. **Your claim.** Boxes may help 3D more than 2D. That is a difference of differences: compute it with an interval.
# 4. **Answer only.** No claim compares it. What would you have to do before you add one now?
#
# <details><summary>Solutions</summary>
#
# 1. `judge([row for row in rows if row["seed"] < 2], grid.claims)`: "cannot tell", all of them; the differences are still shown.
# 2. RL starts from the very model that it is compared with, so a lucky seed lifts both and pairing takes that out. Conditions of
#    the mixture share a seed's number and little else: pairing may gain nothing there, and costs degrees of freedom, since five
#    differences tell less of their spread than two times five means.
# 3. For every seed and patient, the difference of "no regions" and "no boxes" in 3D minus that in 2D. Patients differ between
#    the dimensions, so draw them apart, as in section 3, twice, with the same seeds in both.
# 4. A claim added after looking is an exploration. Write it into a grid with a new name, give it seeds that were not used
#    (`seeds: [5, 6, 7, 8, 9]`), and run it; the corrected p-values of that study count.
#
# </details>
