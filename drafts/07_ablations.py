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
# at any time. **Needs** nothing from earlier notebooks. All patients are **synthetic** phantoms and the model is tiny: what
# comes out speaks of this experiment, not of the paper's 7B model, and *nothing here is for clinical use.*

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
GRID = "data/ablations/claims.yaml"  # the study
STUDY = "data/results/claims"  # its results, without .json and .csv.gz; your own: runs/ablation/claims/claims
CURVE = "data/results/efficiency"  # those of data/ablations/efficiency.yaml; empty: leave the curve out

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
from unireason_lib.ablation.kept import read_kept
from unireason_lib.display import pipeline_figure
from unireason_lib.profiles import load_profile
from unireason_lib.tutorial import project_root, publish
from unireason_lib.tutorial.results import aligned

profile, root = load_profile(PROFILE, OVERRIDES), project_root()
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
told, rows = json.loads(study.read_text(encoding="utf-8")), read_kept(study.parent, study.stem).rows
print(
    aligned([tuple(map(str, row.values())) for row in [dict(zip(rows[0], rows[0], strict=True)), *rows[:3]]])
)
print(f"\n{len(rows):,} rows of {len(told['runs'])} runs, made by\n  {told['command']}")
print(f"with {', '.join(f'{name} {number}' for name, number in told['packages'].items())};")
print(
    f"{told['minutes'] / 60:.1f} hours of runs, some of which ran side by side; base {told['base']['sha256'][:12]}"
)
print("missing:", ", ".join(told["missing"]) or "nothing")
assert not told["missing"], "this study has not ended: what came out is told when it has"

# %% [markdown]
# `read_kept` has compared the table with the digest that was written beside it. The questions are those of notebook 06, so
# they can be asked for again; with them come two readers who look at nothing: one always says the letter that is right most
# often, one knows which option is right most often in training.

# %%
from collections import Counter

from unireason_lib.evaluation import open_benchmark
from unireason_lib.inference import Checkpoint

size = load_profile(grid.profile, grid.overrides)
frame = Checkpoint(str(root / size.model.base)).frame()
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
for seed, line in zip(grid.seeds, table, strict=False):
    won, lost = int((line > 0).sum()), int((line < 0).sum())
    print(f"seed {seed}: {won} won, {lost} lost, {100 * line.mean():+.1f} points")

# %% [markdown]
# How much would it be with other patients, and with other seeds? A **bootstrap** draws as many of each as there are, with
# repetition, and looks how much the mean moves. Questions about one patient are drawn together. Patients move the mean over all
# seeds, seeds move it as far as their own means differ (drawing from the whole table at once would count the luck of single
# replies twice).

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
assert abs(d.value - table.mean()) < 1e-9 and d.high - d.low > 0.9 * (high - low)

# %% [markdown]
# The library's is the wider: a handful of seeds is a small sample of all seeds, so drawing from it shrinks their spread, and the
# spread itself is hardly known. It puts both right (the docstring of `evaluation/statistics.py` says how).
#
# ## 4 · Many claims
#
# Who tests many claims at 5 % finds one by luck. **Holm's correction** multiplies the smallest p-value by the number of
# claims, the next by one less, and so on, and never lets a later one fall below an earlier:

# %%
from unireason_lib.ablation.claims import judge
from unireason_lib.evaluation.statistics import holm

verdicts = judge(rows, grid.claims)
compared = [one for one in verdicts if one.comparison is not None]
raw = [one.comparison.p for one in compared]
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

spread = float(np.std([line.mean() for line in table], ddof=1))  # of the difference over seeds, in this study
here = [
    row["id"]
    for row in rows
    if row["condition"] == claim.worse and row["seed"] == 0 and row["dimension"] == "3d"
]
patient_of = {row["id"]: row["patient"] for row in rows}


def made(effect, seeds=5, draw=0):
    """Answers of two conditions about the questions of this study; the second is right more often by the effect."""
    rng, found = np.random.default_rng(draw), []
    easy = rng.beta(2, 3, len(here))
    for seed in range(seeds):
        more = effect + rng.normal(0, spread)
        for name, shift in (("old", 0.0), ("new", more)):
            right = rng.random(len(here)) < np.clip(easy + shift, 0, 1)
            found += [
                {
                    "condition": name,
                    "seed": seed,
                    "id": i,
                    "patient": patient_of[i],
                    "dimension": "3d",
                    "correct": float(r),
                }
                for i, r in zip(here, right, strict=True)
            ]
    return found


ONE = [Claim("new is better", "new", "old")]
for effect, seeds in ((0.1, 5), (0.0, 5), (-0.1, 5), (0.1, 2)):
    (one,) = judge(made(effect, seeds), ONE)
    print(f"true effect {100 * effect:+3.0f} points, {seeds} seeds: {one.verdict} ({one.why})")

# %% [markdown]
# And how large must an effect be for this study to see it? The same, many times over, for a claim that stands alone (the
# correction makes it harder still):

# %%
from unireason_lib.display import plot_lines

effects, tries = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1), 4 if PROFILE == "smoke" else 40
seen = {
    n: [
        sum(judge(made(e, n, draw), ONE, samples=400)[0].verdict == "reproduced" for draw in range(tries))
        / tries
        for e in effects
    ]
    for n in (3, 5)
}
power = {
    f"{n} seeds": [(100 * e, share) for e, share in zip(effects, shares, strict=True)]
    for n, shares in seen.items()
}
plot_lines(power, "true effect, points", "share of studies that see it")

# %% [markdown]
# ## 5 · What came out: the conditions
#
# Means over seeds and questions with 95 % intervals. Beside every accuracy: the same models when they are shown grey pictures
# ("blind"), and the two readers from above.

# %%
from unireason_lib.ablation.report import means as means_of
from unireason_lib.ablation.report import table_of_conditions

names = list(grid.conditions)
print(aligned(table_of_conditions(rows, names)))
for d, found in baselines.items():
    print(f"{d.upper()}: " + ", ".join(f"{name} {share:.1%}" for name, share in found.items()))

# %%
from unireason_lib.display import plot_intervals

measured = {name: means_of(rows, name) for name in [*names, *(f"{name}, blind" for name in names)]}


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
# Each condition by itself says little about claims: intervals side by side hide that all were asked the same questions. Note
# what does not differ though: whatever is above the blind bars was seen.
#
# ## 6 · What came out: the claims
#
# A line for every claim: how much better the first condition is than the second. Two are about volumes when volumes are scarce
# (the paper's claim), four about the parts of the interface, three about outcome RL.

# %%
from unireason_lib.ablation.report import table_of_claims

print(aligned(table_of_claims(verdicts)))

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
    "right answers more, points (95 %)",
    reference=("no difference", 0),
)
if STUDY == "data/results/claims" and PROFILE != "smoke":
    figure.savefig(root / "data" / "figures" / "claims.png", dpi=150)
display(figure)

# %%
for one in verdicts:
    if one.comparison is None:
        print(f"{one.claim.name}: {one.verdict}, {one.why}")
        continue
    d, points = one.comparison.difference, one.claim.value == "correct"
    scale, unit = (100, " points") if points else (1, "")
    said = f"{scale * d.value:+.3g}{unit} ({scale * d.low:+.3g} to {scale * d.high:+.3g})"
    print(f"{one.verdict.upper():<12}{one.claim.name}: {one.claim.better} against {one.claim.worse}, {said}")
    ends = tuple(scale * end for end in (d.low, d.high))
    publish(f"claim: {one.claim.name}", scale * d.value, unit.strip(), interval=ends, note=one.verdict)

# %% [markdown]
# ## 7 · Where does it come from?
#
# The first claim about volumes, and those about regions, family by family. Nothing here was claimed beforehand and nothing is
# corrected: with so many rows, one or two leave out zero by chance. It is for asking the next question.

# %%
from unireason_lib.dataset.questions import FAMILIES


def by_family(one):
    """Family -> difference of a claim on its questions, in points; families with few questions are left out."""
    found = {}
    for family in FAMILIES:
        here = {"dimension": one.dimension, "family": family}
        asked = {row["id"] for row in rows if all(row[name] == value for name, value in here.items())}
        if len(asked) < 20:
            continue
        worse, patients = runs(rows, one.worse, one.value, **here)
        better, _ = runs(rows, one.better, one.value, **here)
        d = compare(worse, better, patients, paired_seeds=True).difference
        found[f"{family}, {one.dimension.upper()}"] = (100 * d.value, 100 * d.low, 100 * d.high)
    return found


chosen = ("slices help volumes", "regions help slices", "regions help volumes")
families = {one.name: by_family(one) for one in grid.claims if one.name in chosen}
plot_intervals(families, "right answers more, points (95 %)", reference=("no difference", 0))

# %% [markdown]
# **Do crops show anything new?** A lesion's texture can be read when it is enlarged and hardly in the whole picture (notebook 03
# measures that). If regions help anywhere it must be there:

# %%
forms = [name for name in ("answer only", "no boxes", "no regions", "joint") if name in names]


def on_kind(name, kind, dimension):
    """Right answers of a condition to one kind of question, over its seeds."""
    from unireason_lib.evaluation.statistics import mean_over_runs

    one = mean_over_runs(*runs(rows, name, kind=kind, dimension=dimension))
    return 100 * one.value, 100 * one.low, 100 * one.high


kinds = {"texture": "texture, 2D", "density": "density, 2D", "quadrant": "quadrant, 2D"}
series = {name: {words: on_kind(name, kind, "2d") for kind, words in kinds.items()} for name in forms}
plot_intervals(series, "right, %")

# %% [markdown]
# **Does it point, before it answers?** The overlap of the first box with the true one, for those that write boxes. A model that
# points badly gets crops of something else:

# %%
series = {}
for heading in ("IoU 2D", "IoU 3D"):
    found = {name: measured[name][heading] for name in names if heading in measured[name]}
    series[heading] = {name: (one.value, one.low, one.high) for name, one in found.items() if one.value > 0}
plot_intervals(series, "overlap of the first box (IoU)")

# %% [markdown]
# ## 8 · How many volumes does it take?
#
# Beyond the paper: right answers about volumes against the number of records about volumes learnt from, with 10,000 records of
# slices beside them and without. (The right-most points are conditions of the study above, with the same seeds.)

# %%
curves, bands = {}, {}
if CURVE:
    other = read_kept((root / CURVE).parent, (root / CURVE).name).rows
    seeds = {row["seed"] for row in other}
    every = [*other, *(row for row in rows if row["seed"] in seeds)]
    most = size.sft.counts_3d
    points = {
        "volumes alone": {400: "400 samples", 1200: "1200 samples", most: "3D only, as many volumes seen"},
        "slices beside": {400: "400 samples and slices", 1200: "1200 samples and slices", most: "joint"},
    }
    for line, at in points.items():
        found = {n: means_of(every, name)["3D, %"] for n, name in at.items()}
        curves[line] = [(n, 100 * one.value) for n, one in found.items()]
        bands[line] = [(100 * one.low, 100 * one.high) for one in found.values()]
    reference = ("one letter", 100 * baselines["3d"]["one letter"])
    display(plot_lines(curves, "records about volumes", "right in 3D, %", bands, reference=reference))

# %%
if CURVE:
    curve_grid = load_grid(root / "data" / "ablations" / "efficiency.yaml")
    print(aligned(table_of_claims(judge(other, curve_grid.claims))))

# %% [markdown]
# Two things differ between the curves besides the slices, and pull in opposite directions: without slices a run sees volumes only
# and has 400 steps; with them it has 1,500 steps, of which volumes get their share of the records.
#
# ## 9 · How far does this carry?
#
# - **Size.** 2.9 million parameters learn letters, boxes and anatomy in minutes. What a pretrained 7B model brings along (it has
#   seen chests and sentences) has to be learnt here, and what is limited by that says nothing about the paper.
# - **Volumes are near their slices.** A phantom volume is eight slices made by the same generator as the single ones. If slices
#   help volumes anywhere, then here; real 3D scans differ more from 2D images than that.
# - **Crops.** 64 x 64 pixels make 16 tokens. A crop multiplies what a lesion gets, which makes regions more useful than in a model
#   that sees a picture at a thousand tokens; a model that points badly gets nothing from them.
# - **RL** has 30 steps on about 800 slices, the paper's thousands. Notebook 05 trains five times as long, on its own.
# - **Volumes alone, in as many steps** go over their records 6.7 times, the joint mixture 1.8 times; "as many volumes seen" has
#   the same share of the records and fewer steps. No schedule matches all three, so there are two claims.
#
# ## 10 · The protocol, and what was changed
#
# Everything was chosen on validation patients with seed 100, which no condition uses; the seeds of the study were then run once
# and looked at when all had ended (`ablate` shows nothing before). What the pilot said, as it was kept:

# %%
from unireason_lib.evaluation.tidy import read_tidy

pilot = read_tidy(root / "data" / "results" / "pilot.csv.gz")
print(aligned(table_of_conditions(pilot)))

# %% [markdown]
# | what | was | became | why |
# | --- | --- | --- | --- |
# | steps of fine-tuning | 2,000 | 1,500 | the pilot separates joint from volumes alone at both; the study has to fit into hours |
# | records about volumes | all of 600 patients | 3,600 of them | a round number for the curve, whose smaller ones are parts of it |
# | questions of the test | 500 | 1,000 | intervals of differences; it costs minutes |
# | steps of RL | 60 | 30 | the study has to fit into hours |
# | claim about a reward for boxes | none | IoU in 2D | the contrast that the paper does without should be judged, not only shown |
# | arithmetic | bfloat16 where fast | float32 | a study whose seeds are made on several machines is one study |
#
# All of that before a single outcome was known. A first start of the study was lost with its machine after 33 of 90 runs, unseen;
# since then a study keeps what it has after every test (`--keep`) and can go on from there on another machine (`--parts`). The
# questions of its test are those of notebook 06, which had been looked at, with other models, while notebooks 04 to 06 were
# written; no setting was chosen by them.
#
# ## 11 · A condition of your own
#
# Three lines of YAML. Does the model need to see the regions when it is *tested*, if it had them in training?

# %%
import tempfile
from pathlib import Path

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
before = {job.key for job in jobs}
new = [job for job in plan(larger) if job.key not in before]
print(f"{len(new)} runs are new, {len(before)} are there already:")
print(aligned([("run", "seed", "builds on"), *((job.name, str(job.seed), job.needs) for job in new[:5])]))

# %% [markdown]
# Save it as `data/ablations/mine.yaml` under a name of its own (`name: mine`), add a claim if you have one, and
#
# ```bash
# python -m unireason_lib ablate data/ablations/mine.yaml --seeds 1 --profile smoke   # does it run at all?
# python -m unireason_lib ablate data/ablations/mine.yaml --workers 2
# ```
#
# At the scale of the paper it is the same grid with `--profile gpu --set sft.steps=3000 --ray auto`; what that costs is in
# `python -m unireason_lib plan --grid data/ablations/mine.yaml` before it is spent.
#
# ## Check yourself

# %%
assert same, "the table is of other questions"
assert {one.verdict for one in verdicts} <= {"reproduced", "reversed", "not seen", "cannot tell"}
for one, kept in zip(
    verdicts, told["verdicts"], strict=True
):  # what was written then is what follows from the table now
    assert (one.claim.name, one.verdict) == (kept["claim"], kept["verdict"])
assert all(low <= value <= high for lines in series.values() for value, low, high in lines.values())
assert {job.stage for job in new} == {"test"}  # nothing is trained again for it
power_at_most = max(seen[5][0], seen[3][0])
assert power_at_most <= 0.25, "where there is nothing, little may be seen"
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. **Two seeds.** Keep two seeds of the table and judge again. Which verdicts change, and to what?
# 2. **Unpaired.** Call `compare` with `paired_seeds=False`. Whose interval grows, and why is pairing allowed here?
# 3. **Your claim.** Boxes may help 3D more than 2D. That is a difference of differences: compute it with an interval.
# 4. **Answer only.** No claim compares it. Is that wise? What would you have to do before you add one now?
#
# <details><summary>Solutions</summary>
#
# 1. `judge([row for row in rows if row["seed"] < 2], grid.claims)`: "cannot tell", all of them; the differences are still shown.
# 2. The spread of both conditions over seeds then counts in full. A seed decides the order of the records for both, so the k-th
#    runs share it and may be drawn together; how much that takes away is what you see.
# 3. For every seed and patient, the difference of "no regions" and "no boxes" in 3D minus that in 2D. Patients differ between
#    the dimensions, so draw them apart: `draw` as in section 3, twice, with the same seeds in both.
# 4. A claim added after looking is an exploration. Write it into a grid with a new name, give it seeds that were not used
#    (`seeds: [5, 6, 7, 8, 9]`), and run it; the corrected p-values of that study count.
#
# </details>
