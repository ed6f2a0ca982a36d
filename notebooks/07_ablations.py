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
# **Time** under a minute on 2 CPU cores: the study is read, not run. Running it takes hours (`make replicate`) and can be stopped
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
# The paper makes three claims. **Mixture**: scarce volumes are answered better by a model that also learnt from plentiful slices.
# **Components**: it helps to write boxes, and it helps to get the boxed regions back. **Stages**: outcome RL, paid for answer and
# form only, improves on fine-tuning.
#
# Each becomes a comparison of two **conditions**. A condition says with which parameters the notebooks run. It differs from
# "joint" in what its row says, and in nothing else: base, patients, questions and seeds are the same.

# %%
print(grid.about, "\n")
stages = {"sft": "fine-tuning (04)", "rl": "outcome RL (05)", "test": "test (06)"}
lines = [("condition", "what it is", *stages.values())]
for one in grid.conditions.values():
    given = [one.stages.get(stage) for stage in stages]
    words = ["-" if g is None else ", ".join(f"{k}={v}" for k, v in g.items()) or "unchanged" for g in given]
    lines.append((one.name, one.about, *words))
print(aligned(lines))

# %% [markdown]
# ("-": this stage is left out. A region that comes back is also called a *crop*.) A **claim** names two conditions and says which
# should be better, in what, and on which questions. **IoU** is how far two boxes overlap, from 0 (apart) to 1 (the same).

# %%
measures = {
    "correct": "right answers",
    "iou_first": "IoU of the first box",
    "in_format": "replies in the form",
}
lines = [("claim", "better", "worse", "asked in", "measured by")]
for one in grid.claims:
    lines.append((one.name, one.better, one.worse, (one.dimension or "both").upper(), measures[one.value]))
print(aligned(lines))

# %% [markdown]
# Grid and claims were written down before anything ran, so that what is compared does not depend on what came out. So was how to
# read them. About the **mixture** there are two claims, since steps, volumes seen and passes over each volume cannot all be
# matched at once. In as many *steps*, volumes alone are gone over several times as often as in the mixture; with as many
# *volumes seen*, there are fewer steps. The two bracket the question:
#
# - both reproduced: slices help, whichever way one counts;
# - only the second: slices help as practice, but no more than going over the same volumes again;
# - only the first: what helps are the fewer passes; neither: no help was seen.
#
# For **RL**, the two conditions differ by more than a reward: RL adds steps, and questions about patients that fine-tuning did not
# see. The grid says what follows from its numbers:

# %%
text = (root / GRID).read_text(encoding="utf-8")
print("\n".join(line for line in text.split("name:")[0].splitlines() if line.startswith("#")))

# %% [markdown]
# A **plan** makes notebook runs of that. Each is named after all that decides its outcome, so two conditions with the same
# fine-tuning name the same run, and it is made once.

# %%
from unireason_lib.ablation.plan import plan

jobs = plan(grid)
alone = {stage: sum(stage in one.stages for one in grid.conditions.values()) for stage in stages}
lines = [("runs", "each condition by itself", "what is shared made once")]
for stage, words in stages.items():
    made_once = sum(job.stage == stage for job in jobs)
    lines.append((words, str(alone[stage] * len(grid.seeds)), str(made_once)))
lines.append(("all", str(sum(alone.values()) * len(grid.seeds)), str(len(jobs))))
print(aligned(lines))

# %% [markdown]
# What a run needs, and the command that makes this one alone. `python -m unireason_lib ablate GRID --dry-run` lists them all
# with an estimate of the time; without `--dry-run` it runs them, `--workers 2` at a time or on a Ray cluster (`--ray`).

# %%
job = next((job for job in jobs if job.stage == "rl"), jobs[-1])
print(f"{job.name} builds on {job.needs}, is shared by {', '.join(job.conditions)}:\n")
print(job.command())

# %% [markdown]
# ## 2 · One table
#
# What comes out is a row for every condition, seed and question: right or not, written as asked or not (thought, boxes, one
# letter), the IoU of the first box with the true one, and two columns that section 7 explains. A second file says how it was made. `read_kept` reads both, and
# compares the table with the digest that was written beside it.

# %%
study = (root / STUDY).with_name(f"{(root / STUDY).name}.json")
told, kept = json.loads(study.read_text(encoding="utf-8")), read_kept(study.parent, study.stem)
rows = kept.rows
print(aligned([tuple(rows[0]), *(tuple(map(str, row.values())) for row in rows[:3])]))
print(f"\n{len(rows):,} rows of {len(told['runs'])} runs, made by")
for part in told["made"]:
    print(f"  {part['command']}")
    print(f"  with {', '.join(f'{name} {number}' for name, number in part['packages'].items())}")

# %% [markdown]
# Besides the questions of the test, each model was asked with grey pictures ("blind"), and some questions with crops taken away
# (section 7). All of that is in the table, as conditions of their own:

# %%
from collections import Counter

names = [name for name in grid.conditions if any(row["condition"] == name for row in rows)]
per = Counter(
    row["condition"].removeprefix(names[0]) for row in rows if row["condition"].startswith(names[0])
)
asked = {row["id"] for row in rows if row["condition"] in names}
print(f"{len(asked)} questions, {len(told['seeds'])} seeds; failed replies: {sum(kept.failed.values())}")
summed, clock = told["minutes"].values()
print(
    f"{summed / 60:.1f} hours summed over runs, {clock / 60:.1f} on the clock (of a broken-off run: its last part)"
)
versions = {(run["code"], run["base"]) for run in told["runs"]}
print(
    f"made with {len(versions)} version of code and base; tests that are missing: {told['missing'] or 'none'}"
)

# %% [markdown]
# A study that is still going on is not looked at: if one may stop when the figures please, the intervals below mean nothing.
# `ablate` shows nothing of it before it has ended either.

# %%
assert told["verdicts"] and not told["missing"], "this study has not ended: its results are told when it has"
assert len(versions) == 1, "runs of several versions of the code or of the base are mixed in this table"

# %% [markdown]
# ## 3 · One difference, by hand
#
# Take the first claim of the table above. Both conditions were asked the same questions with the same seeds, so the difference is
# taken question by question:

# %%
import numpy as np

from unireason_lib.evaluation.tidy import paired_runs

claim = grid.claims[0]
where = {"dimension": claim.dimension} if claim.dimension else {}
worse, better, patients, seeds = paired_runs(rows, claim.worse, claim.better, claim.value, **where)
ids = [i for i in patients if all(i in run for run in (*worse, *better))]
table = np.array(
    [[b[i] - w[i] for i in ids] for w, b in zip(worse, better, strict=True)]
)  # seeds x questions
print(
    f"{claim.name}: {claim.better} against {claim.worse}, {len(ids)} questions in {claim.dimension or 'both'}"
)
for seed, line in zip(seeds, table, strict=True):
    print(f"seed {seed}: {(line > 0).sum()} won, {(line < 0).sum()} lost, {100 * line.mean():+.1f} points")

# %% [markdown]
# (A *point* is one percentage point.) Other seeds and other patients would give another number. To see how far it moves, we
# draw again from those that we have, with repetition, many times: a **bootstrap**. Patients are drawn, not questions, since
# questions about one patient are right or wrong together. Seeds are drawn as well. The new mean is that of the drawn patients,
# plus how far the drawn seeds lie from the mean of all. The middle 95 % of these means is the **interval**.

# %%
draw, of_patient = np.random.default_rng(SEED), {}
for k, i in enumerate(ids):
    of_patient.setdefault(patients[i], []).append(k)
sizes = np.array([len(group) for group in of_patient.values()])
sums = np.array([[line[group].sum() for group in of_patient.values()] for line in table])  # seeds x patients
off = table.mean(1) - table.mean()  # of each seed
P, S = len(sizes), len(table)
by_patients, by_seeds = [], []
for _ in range(4000):
    chosen = draw.integers(P, size=P)
    by_patients.append(sums.mean(0)[chosen].sum() / sizes[chosen].sum())
    by_seeds.append(off[draw.integers(S, size=S)].mean())
by_patients, by_seeds = np.array(by_patients), np.array(by_seeds)
low, high = np.quantile(by_patients + by_seeds, [0.025, 0.975])
print(
    f"{100 * table.mean():+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), width {100 * (high - low):.1f}"
)

# %% [markdown]
# Two things are not right yet, and they pull in opposite directions.
#
# **Seeds differ partly because single replies do.** That luck is already in the draw of patients, so it must be taken out of the
# seeds: what is left over when the patient's mean and the seed's mean are subtracted says how large it is.
#
# **Five seeds are few.** Drawing from them makes their spread look smaller than it is (by 4/5, as a variance), and the spread is
# hardly known, so the interval is stretched: Student's t in place of the normal curve.

# %%
from scipy.stats import norm, t

from unireason_lib.evaluation.statistics import compare

found = compare(worse, better, patients, paired_seeds=True)
left = sums - sums.mean(0) - np.outer(off, sizes)
luck = (left**2).sum() / sizes.sum() ** 2 * P / (P - 1) / (S - 1)
apart, of_seeds = off.var(ddof=1), max(0.0, off.var(ddof=1) - luck)
print(
    f"seeds differ by {100 * np.sqrt(apart):.1f} points, of which seeds themselves {100 * np.sqrt(of_seeds):.1f}"
)
means = by_patients + by_seeds * np.sqrt(of_seeds / apart * S / (S - 1))
stretch = t.ppf(0.975, found.freedom) / norm.ppf(0.975)
by_hand = table.mean() + stretch * (np.quantile(means, [0.025, 0.975]) - table.mean())
d = found.difference
print(f"by hand      {100 * table.mean():+.1f} points ({100 * by_hand[0]:+.1f} to {100 * by_hand[1]:+.1f})")
print(
    f"the library  {100 * d.value:+.1f} points ({100 * d.low:+.1f} to {100 * d.high:+.1f}), p {found.p:.3f}"
)
assert abs(d.value - table.mean()) < 1e-9 and abs((by_hand[1] - by_hand[0]) / (d.high - d.low) - 1) < 0.1

# %% [markdown]
# **p** says how often luck alone would give a difference at least this large if there were none. Here it comes from Student's t,
# since seeds are few (notebook 06, with one checkpoint, counts resamples).
#
# ## 4 · Many claims
#
# Whoever tests many claims at 5 % finds one by luck. **Holm's correction** multiplies the smallest p-value by the number of
# claims, the next by one less, and so on, and never lets a later one fall below an earlier. A claim that could not be judged
# still counts as one.

# %%
from unireason_lib.ablation.claims import judge

verdicts = judge(rows, grid.claims)
raw = [1.0 if one.p is None else one.comparison.p for one in verdicts]
least, corrected = 0.0, {}
for rank, k in enumerate(sorted(range(len(raw)), key=raw.__getitem__)):
    least = max(least, min(1.0, (len(raw) - rank) * raw[k]))
    corrected[k] = least
lines = [("claim", "p", "p, Holm")]
lines += [(one.claim.name, f"{raw[k]:.2g}", f"{corrected[k]:.2g}") for k, one in enumerate(verdicts)]
print(aligned(lines))
assert all(one.p is None or abs(corrected[k] - one.p) < 1e-12 for k, one in enumerate(verdicts))

# %% [markdown]
# ### What a verdict is worth
#
# The verdict is computed: **reproduced** if the corrected p-value is below 5 % and the interval lies above zero, **reversed** if
# it lies below, **not seen** otherwise, **cannot tell** with fewer than three seeds. Does that find what is there, and only
# that? On made data the truth is known:

# %%
from unireason_lib.ablation.grid import Claim


def made(effect, seeds=5, draw=0):
    """Answers of two conditions about the questions of the claim; the second is right more often by the effect."""
    rng, found = np.random.default_rng(draw), []
    easy = rng.uniform(0.2, 0.7, len(ids))
    for seed in range(seeds):
        for name, shift in (("old", 0.0), ("new", effect + rng.normal(0, np.sqrt(of_seeds)))):
            right = rng.random(len(ids)) < np.clip(easy + shift, 0, 1)
            head = {"condition": name, "seed": seed, "dimension": claim.dimension}
            answers = zip(ids, right, strict=True)
            found += [{**head, "id": i, "patient": patients[i], "correct": float(r)} for i, r in answers]
    return found


ONE = [Claim("new is better", "new", "old")]
for effect, count in ((0.1, 5), (0.0, 5), (-0.1, 5), (0.1, 2)):
    (one,) = judge(made(effect, count), ONE)
    print(f"true effect {100 * effect:+3.0f} points, {count} seeds: {one.verdict} ({one.why})")

# %% [markdown]
# And how large must an effect be for this study to see it? That follows from how far differences move by luck, the standard
# error, and from how small p has to be. Claims differ a lot in the first, so here are the surest, the least sure, and the root
# mean square of all (from five seeds, the error of one is known only roughly).

# %%
from unireason_lib.display import plot_lines
from unireason_lib.evaluation.statistics import power

shown = [one for one in verdicts if one.comparison is not None and one.claim.value == "correct"]
errors = np.array([one.comparison.error for one in shown])
middle = float(np.sqrt(np.mean(errors**2)))
for one in shown:
    print(f"standard error {100 * one.comparison.error:.1f} points  {one.claim.name}")
strict = 0.05 / len(verdicts)
lines = {
    f"surest, {100 * errors.min():.1f}": (errors.min(), 0.05),
    f"all, {100 * middle:.1f}": (middle, 0.05),
    f"least sure, {100 * errors.max():.1f}": (errors.max(), 0.05),
    f"all, strictest of {len(verdicts)} claims": (middle, strict),
}
effects = np.arange(0, 13) / 100
sees = {
    name: [(100 * e, power(error, S - 1, e, level)) for e in effects]
    for name, (error, level) in lines.items()
}
plot_lines(sees, "true effect, percentage points", "share of studies that see it")

# %% [markdown]
# So "not seen" does not mean "not there". Below, each such claim is told with the effects that its interval still allows.
#
# ## 5 · What came out: the conditions
#
# How much is an accuracy worth? First, what is reached without looking: by lot, by saying the letter that is right most often,
# and by knowing which option is right most often in training. (The last falls below the others here: questions were thinned
# until that no longer helps, see notebook 01.) The questions are those of notebook 06, so they can be asked for again:

# %%
from unireason_lib.evaluation import open_benchmark
from unireason_lib.inference import Checkpoint

size = load_profile(told["profile"], told["overrides"])
base = Checkpoint(str(root / size.model.base))
frame, shape = base.frame(), tuple(size.dataset.shape)
how = {"split": "test", "limit": size.evaluation.questions, "frame": frame, "seed": 0, "size": shape}
benchmark = open_benchmark("phantom", census=min(300, size.dataset.census), **how)
same = {item.id for item in benchmark} == asked
print(f"{len(benchmark)} questions, {'those' if same else 'NOT those'} of the table")
unseeing = {}
for dimension in ("2d", "3d"):
    mine = [item for item in benchmark if item.dimension == dimension]
    (_, most), *_ = Counter(item.answer for item in mine).most_common(1)
    unseeing[dimension] = {
        "by lot": 100 * np.mean([1 / len(item.options) for item in mine]),
        "one letter": 100 * most / len(mine),
        "most likely": 100 * np.mean([item.guess == item.answer for item in mine]),
    }
    print(
        f"{dimension.upper()}: "
        + ", ".join(f"{name} {share:.1f} %" for name, share in unseeing[dimension].items())
    )

# %% [markdown]
# Means over seeds and questions, with 95 % intervals, and the same models when they are shown grey pictures:

# %%
from unireason_lib.ablation.report import means as means_of
from unireason_lib.ablation.report import table_of_conditions

both = [told_as for name in names for told_as in (name, f"{name}, blind")]
measured = {name: means_of(rows, name, samples=samples) for name in both}
print(aligned(table_of_conditions(rows, both, measured)))

# %%
from unireason_lib.display import plot_intervals


def percent(name, heading):
    """A mean with its interval, in percent."""
    one = measured[name][heading]
    return 100 * one.value, 100 * one.low, 100 * one.high


for dimension, found in unseeing.items():
    heading = f"{dimension.upper()}, %"
    series = {
        "with pictures": {name: percent(name, heading) for name in names},
        "blind": {name: percent(f"{name}, blind", heading) for name in names},
    }
    best = max(found, key=found.get)
    line = (f"best without looking ({best})", found[best])
    display(plot_intervals(series, f"right in {dimension.upper()}, %", reference=line, form=".1f"))

# %% [markdown]
# A condition has learnt to look if it passes all of these. Two conditions have no claim and are here to be looked at: "2D only"
# shows how well a model answers about volumes that learnt from slices alone, "answer only" what is reached without reasoning.
# To compare conditions, do not compare their intervals: all were asked the same questions, and differences are surer than that.
#
# By family of questions, in volumes:

# %%
from unireason_lib.dataset.questions import FAMILIES
from unireason_lib.evaluation.statistics import mean_over_runs
from unireason_lib.evaluation.tidy import runs

number = Counter(item.family for item in benchmark if item.dimension == "3d")
series = {}
for name in [name for name in ("joint", "3D only", "answer only") if name in names] or names[:3]:
    series[name] = {}
    for family in (family for family in FAMILIES if number[family]):
        one = mean_over_runs(*runs(rows, name, dimension="3d", family=family), samples=samples)
        series[name][f"{family} ({number[family]})"] = (100 * one.value, 100 * one.low, 100 * one.high)
plot_intervals(series, "right in 3D, %", reference=("by lot", unseeing["3d"]["by lot"]), form=".0f")

# %% [markdown]
# ## 6 · What came out: the claims
#
# How much better is the first condition of a claim than the second? Outcome RL was paid on slices only here, so what it does to
# volumes is carried over. Bars are 95 % intervals of each claim alone. The verdict also counts how many claims there are, so a bar
# may miss zero and still be "not seen".

# %%
parts = {"mixture": "slices beside volumes", "components": "boxes, regions", "stages": "outcome RL"}


def effect(one):
    """The difference of a verdict with its interval, in points."""
    d = one.comparison.difference
    return 100 * d.value, 100 * d.low, 100 * d.high


series = {}
for one in shown:
    part = parts.get(one.claim.part, one.claim.part)
    series.setdefault(part, {})[f"{one.claim.name}: {one.verdict}"] = effect(one)
xlabel_points = "more right answers, percentage points (95 %)"
figure = plot_intervals(series, xlabel_points, reference=("no difference", 0), form="+.1f")
if STUDY == "data/results/claims" and PROFILE != "smoke":
    figure.savefig(root / "data" / "figures" / "claims.png", dpi=150)
display(figure)

# %%
for one in verdicts:
    if one.comparison is not None and one.claim.value != "correct":
        d = one.comparison.difference
        line = {one.claim.part: {f"{one.claim.name}: {one.verdict}": (d.value, d.low, d.high)}}
        xlabel = f"{measures[one.claim.value]}, more by"
        display(plot_intervals(line, xlabel, reference=("no difference", 0), form="+.3f"))

# %% [markdown]
# In words. **Cohen's h** is a difference of two shares on a scale on which 0.2 is called small and 0.5 medium; **d** is the same for
# other measures.

# %%
for one in verdicts:
    print(f"{one.verdict.upper():<12}{one.claim.name}: {one.claim.better} against {one.claim.worse}")
    print(f"{'':<12}{one.why}")
    if one.comparison is None:
        continue
    c, is_share = one.comparison, one.claim.value == "correct"
    scale, unit, form = (100, "points", "+.1f") if is_share else (1, "", "+.3f")
    value, *ends = (scale * x for x in (c.difference.value, c.difference.low, c.difference.high))
    p = (
        ""
        if one.p is None
        else f", p {one.p:.2g} after Holm"
        if one.p >= 0.001
        else ", p below 0.001 after Holm"
    )
    size_of = f"Cohen's d {c.d:+.2f}" if c.h is None else f"Cohen's h {c.h:+.2f}"
    print(f"{'':<12}{value:{form}} {unit} ({ends[0]:{form}} to {ends[1]:{form}}){p}, {size_of}")
    publish(f"claim: {one.claim.name}", value, unit, interval=tuple(ends), note=one.verdict)

# %% [markdown]
# What section 1 said beforehand about the two claims of the mixture:

# %%
readings = {
    (True, True): "slices help, whichever way one counts",
    (False, True): "slices help as practice, but no more than going over the same volumes again",
    (True, False): "what helps are the fewer passes",
    (False, False): "no help was seen",
}
mixture = [one.verdict == "reproduced" for one in verdicts if one.claim.part == "mixture"]
if len(mixture) == 2:
    print(readings[tuple(mixture)])
form = {one.claim.worse: measured[one.claim.worse]["form, %"].value for one in shown}
for name, share in form.items():
    if share < 0.8:
        print(
            f"note: {name!r} writes {share:.0%} of its replies in the form; it is compared before it has learnt that"
        )

# %% [markdown]
# What to make of it. The verdicts are computed; what might explain a difference from the paper, and what would settle it, was
# written before the study had ended.

# %%
from IPython.display import Markdown

because = {
    "mixture": (
        "a phantom volume is made like the slices, so help is easy to give; with enough volumes none is needed",
        "fewer volumes (section 8); real volumes beside slices of another source",
    ),
    "components": (
        "a tiny model sees much at first sight; a crop helps only if the box is right and shows something new",
        "section 7; a better pointer; pictures of more tokens, where details are lost at first sight",
    ),
    "stages": (
        "few steps, on slices only; a model that is nearly as good as it gets is paid for luck",
        "notebook 05",
    ),
}
head = "| claim | here | difference (95 %) | if it differs from the paper, why? | what would settle it |\n"
cells = []
for one in verdicts:
    d = one.comparison.difference if one.comparison else None
    scale, form = (100, "+.1f") if one.claim.value == "correct" else (1, "+.3f")
    said = f"{scale * d.value:{form}} ({scale * d.low:{form}} to {scale * d.high:{form}})" if d else ""
    why, next_step = ("", "") if one.verdict == "reproduced" else because.get(one.claim.part, ("", ""))
    cells.append(f"| {one.claim.says or one.claim.name} | **{one.verdict}** | {said} | {why} | {next_step} |")
display(Markdown(head + "| --- | --- | --- | --- | --- |\n" + "\n".join(cells)))


# %% [markdown]
# ## 7 · Where does it come from?
#
# From here on nothing was claimed beforehand and nothing is corrected: it is for asking the next question. The first one is asked
# by the widest bar above. **Why is that claim so unsure?** Here are its two conditions, seed by seed. Reasoning ends in a
# conclusion ("hence the left kidney"), and the reply in a letter. *Conclusion right*: the words at the end of the reasoning are
# those of the right option. *Letter follows*: the letter is the one that stands before those words in the question.

# %%
def by_seed(name, value, dimension):
    """Mean of a column for each seed of a condition, in percent."""
    return [100 * np.mean(list(run.values())) for run in runs(rows, name, value, dimension=dimension)[0]]


def width(one):
    """Of the interval of a verdict."""
    return one.comparison.difference.high - one.comparison.difference.low


unsure = max(shown, key=width).claim
columns = {"correct": "right answers", "concluded": "conclusion right", "followed": "letter follows"}
lines = [("condition", f"in {unsure.dimension.upper()}, %", *(f"seed {seed}" for seed in told["seeds"]))]
for name in (unsure.better, unsure.worse):
    for value, words in columns.items():
        lines.append((name, words, *(f"{share:.0f}" for share in by_seed(name, value, unsure.dimension))))
print(f"{unsure.name}\n\n{aligned(lines)}\n")
lines = [("letter follows, in 3D, %", *(f"seed {seed}" for seed in told["seeds"]))]
for name in names:
    if any(row["followed"] is not None for row in rows if row["condition"] == name):  # it reasons
        lines.append((name, *(f"{share:.0f}" for share in by_seed(name, "followed", "3d"))))
print(aligned(lines))

# %% [markdown]
# Two different things have to be learnt: to come to the right conclusion, and to look up its letter. A model may have the first
# and lack the second; its answers are then those of a lot, and say nothing of its reasoning. The second comes with practice ("3D only" has more steps than the condition below it), and a fixed
# number of steps may end before. RL does not bring it either, it starts from the same model. A mean over seeds shows nothing of
# this: look at seeds.
#
# What if the letter were looked up for the model? Take the conclusion where there is one, and the letter where there is none. This
# is another measure than the one the study was made for, chosen after its outcome was known, so it reproduces nothing; it says what
# to measure next time.

# %%
for row in rows:
    row["looked up"] = row["correct"] if row["followed"] is None else row["concluded"]
series = {"as answered": {one.claim.name: effect(one) for one in shown}, "letter looked up": {}}
for one in shown:
    where = {"dimension": one.claim.dimension} if one.claim.dimension else {}
    a, b, patients, _ = paired_runs(rows, one.claim.worse, one.claim.better, "looked up", **where)
    d = compare(a, b, patients, paired_seeds=True, samples=samples).difference
    series["letter looked up"][one.claim.name] = (100 * d.value, 100 * d.low, 100 * d.high)
plot_intervals(series, xlabel_points, reference=("no difference", 0), form="+.1f")


# %% [markdown]
# **Which questions?** The same differences, as answered, family by family (with the number of questions; groups of fewer than 20
# are left out).

# %%
def by_group(one, column, groups):
    """Group of questions -> difference of a claim on them, in points."""
    found = {}
    for group in groups:
        here = {"dimension": one.dimension, column: group}
        if (
            sum(r["condition"] == one.better and all(r[k] == v for k, v in here.items()) for r in rows)
            < 20 * S
        ):
            continue
        worse, better, patients, _ = paired_runs(rows, one.worse, one.better, one.value, **here)
        d = compare(worse, better, patients, paired_seeds=True, samples=samples).difference
        found[f"{group} ({d.n})"] = (100 * d.value, 100 * d.low, 100 * d.high)
    return found


every = []
for part, dimension in (("mixture", "3d"), ("components", "2d"), ("components", "3d")):
    mine = [v.claim for v in shown if (v.claim.part, v.claim.dimension) == (part, dimension)]
    families = {one.name: by_group(one, "family", FAMILIES) for one in mine}
    every += [ends for group in families.values() for ends in group.values()]
    if any(families.values()):
        xlabel = f"more right answers in {dimension.upper()}, percentage points (95 %)"
        display(plot_intervals(families, xlabel, reference=("no difference", 0), form="+.1f"))

# %%
outside = sum(low > 0 or high < 0 for _, low, high in every)
print(
    f"{outside} of {len(every)} intervals leave out zero; {0.05 * len(every):.1f} would if there were nothing"
)

# %% [markdown]
# **Do crops show anything new?** A lesion's texture is one pixel wide: it can be read when it is enlarged and hardly in the whole
# picture (notebook 06). If crops show detail, the row of texture lies to the right of the others:

# %%
mine = [v.claim for v in shown if {v.claim.better, v.claim.worse} == {"joint", "no regions"}]
kinds = sorted({row["kind"] for row in rows}, key=lambda kind: (kind != "texture", kind))
gained = {}
for one in mine:
    found = by_group(one, "kind", kinds)
    print(f"questions in {one.dimension.upper()}:", ", ".join(found))
    gained[f"in {one.dimension.upper()}"] = {kind.split(" (")[0]: ends for kind, ends in found.items()}
if any(gained.values()):
    xlabel = "more right answers with regions, points (95 %)"
    display(plot_intervals(gained, xlabel, reference=("no difference", 0), form="+.1f"))


# %% [markdown]
# **Does a model use what comes back?** Those were two models, trained apart. Now take *one* trained model and change only what
# comes back: a crop from elsewhere, nothing, or (for scale) other pictures altogether. Notebook 06 did so with one checkpoint;
# here are those of all seeds. Few questions were asked this way, so expect wide bars.

# %%
def given(own, other):
    """By how many points a condition is better than another one, on what both were asked; and how many questions."""
    a, b, patients, _ = paired_runs(rows, other, own)
    d = compare(a, b, patients, paired_seeds=True, samples=samples).difference
    return d.n, (100 * d.value, 100 * d.low, 100 * d.high)


there, taken = {row["condition"] for row in rows}, ("random crops", "no crops", "other pictures")
used = {}
for words, own in (("of the test", "joint"), ("about textures", "joint, textures")):
    found = {what: given(own, f"{own}, {what}") for what in taken if f"{own}, {what}" in there}
    if found:
        count = next(iter(found.values()))[0]
        used[f"{count} questions {words}"] = {f"against {what}": ends for what, (_, ends) in found.items()}
if used:
    xlabel = "more right with its own crops, points (95 %)"
    display(plot_intervals(used, xlabel, reference=("no difference", 0), form="+.1f"))
else:
    print("this study did not keep what its models say when something is taken away")

# %%
if {"joint, textures", "no regions, textures"} <= there:
    count, (value, low, high) = given("joint, textures", "no regions, textures")
    print(
        f"textures, joint against no regions: {value:+.1f} points ({low:+.1f} to {high:+.1f}), {count} questions"
    )
    publish(
        "textures: with region tokens against without",
        value,
        "points",
        interval=(low, high),
        note="all seeds",
    )

# %% [markdown]
# **Does it point, before it answers?** The overlap of the first box with the true one, of the conditions that learnt to write
# boxes. A model that points badly gets crops of something else. For scale: the box of another question. (No box counts as zero,
# and so does a box of the other kind: a model that learnt volumes alone writes cuboids about slices as well, and the reverse.)

# %%
forms, lines_of = {name: one.stages["sft"].get("FORM", "full") for name, one in grid.conditions.items()}, {}
pointing = [name for name in names if forms[name] in ("full", "no regions")]
for dimension in ("2d", "3d"):
    heading = f"IoU {dimension.upper()}"
    found = {name: measured[name][heading] for name in pointing if heading in measured[name]}
    boxes = [item.truth_boxes[0][1] for item in benchmark if item.dimension == dimension and item.truth_boxes]
    another = float(np.mean([a.iou(b) for a, b in zip(boxes, boxes[1:] + boxes[:1], strict=True)]))
    one = {heading: {name: (i.value, i.low, i.high) for name, i in found.items()}}
    lines_of[dimension] = line = (f"another question's ({another:.2f})", another)
    display(plot_intervals(one, f"{heading} of the first box", reference=line, form=".2f"))

# %% [markdown]
# The paper's third claim has a second half: boxes stay sensible under RL, though nothing pays for them. No verdict was planned
# for that; here is the difference to the model that RL started from:

# %%
if {"joint", "joint + RL"} <= set(names):
    for dimension in ("2d", "3d"):
        a, b, patients, _ = paired_runs(rows, "joint", "joint + RL", "iou_first", dimension=dimension)
        d = compare(a, b, patients, paired_seeds=True, samples=samples).difference
        print(
            f"IoU in {dimension.upper()}, after RL against before: {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})"
        )

# %% [markdown]
# Read the two pictures together with the dashed lines: how much better than another question's box is the model's own?

# %%
for dimension in ("2d", "3d"):
    heading, (_, scale) = f"IoU {dimension.upper()}", lines_of[dimension]
    best = max(pointing, key=lambda name: measured[name][heading].value)
    value = measured[best][heading].value
    print(
        f"{heading}: at best {value:.2f} ({best}), {value / scale:.1f} times that of another question's box"
    )

# %% [markdown]
# **Is it one place?** A model that writes a box through a volume is shown each slice of that box alone (notebook 06). Does it point at
# the same place there? 1: the same. If it is low, what it learnt about slices does not reach volumes by pointing.

# %%
agreement = {name: [] for name in pointing}
for run in told["runs"]:
    overlap = kept.consistency.get(run["key"], {}).get("overlap")
    for name in run["conditions"] if overlap else ():
        agreement.get(name, []).append(overlap["value"])
for name, found in agreement.items():
    if found:
        each = ", ".join(f"{value:.2f}" for value in sorted(found))
        print(f"{name:<32}IoU {np.mean(found):.2f}; by seed, sorted: {each}")

# %% [markdown]
# ## 8 · How many volumes does it take?
#
# Beyond the paper: right answers about volumes against the number of volumes learnt from, with slices beside them and without.
# Few volumes are gone over more often, so that every condition sees as many; what differs is how many different ones, and what
# stands beside them. If slices stand in for volumes, the two curves are far apart where volumes are few, and meet where there are
# enough. (The right-most points are conditions of the study above, with the same seeds.)

# %%
curve = (root / CURVE).with_name(f"{(root / CURVE).name}.json") if CURVE else None
other = json.loads(curve.read_text(encoding="utf-8")) if curve is not None and curve.exists() else {}
ended = bool(other.get("verdicts")) and not other["missing"]
points = {
    "volumes alone": {40: "40 volumes", 150: "150 volumes", 600: "3D only, as many volumes seen"},
    "slices beside": {40: "40 volumes and slices", 150: "150 volumes and slices", 600: "joint"},
}
if ended:
    assert {(run["code"], run["base"]) for run in other["runs"]} == versions, "made by other code"
    few = read_kept(curve.parent, curve.stem).rows
    few += [row for row in rows if row["seed"] in other["seeds"]]
    found = {
        line: {n: means_of(few, name, samples=samples)["3D, %"] for n, name in at.items()}
        for line, at in points.items()
    }
    curves = {line: [(n, 100 * one.value) for n, one in at.items()] for line, at in found.items()}
    bands = {line: [(100 * one.low, 100 * one.high) for one in at.values()] for line, at in found.items()}
    best = max(unseeing["3d"], key=unseeing["3d"].get)
    line = (f"best without looking ({best})", unseeing["3d"][best])
    display(plot_lines(curves, "volumes learnt from", "right in 3D, %", bands, reference=line, log_x=True))
else:
    print(
        "not run, or not ended: python -m unireason_lib ablate data/ablations/efficiency.yaml --keep data/results"
    )

# %% [markdown]
# The distance between the curves, seed by seed (bands may overlap and the difference be sure). The first two are claims of that
# study, which are corrected apart from the nine above:

# %%
from unireason_lib.ablation.report import table_of_claims

if ended:
    for n in points["volumes alone"]:
        a, b, patients, _ = paired_runs(few, *(at[n] for at in points.values()), dimension="3d")
        d = compare(a, b, patients, paired_seeds=True, samples=samples).difference
        print(f"{n:>4} volumes: {100 * d.value:+.1f} points ({100 * d.low:+.1f} to {100 * d.high:+.1f})")
    print(
        "\n" + aligned(table_of_claims(judge(few, load_grid(root / "data/ablations/efficiency.yaml").claims)))
    )

# %% [markdown]
# ## 9 · How far does this carry?

# %%
weights = sum(parameter.numel() for parameter in base.generator().model.parameters())
depth, height, width = shape
tokens = frame.tokens(height, width)
lesions = [
    box
    for item in benchmark
    if item.kind == "texture"
    for _, box in item.truth_boxes
    if item.dimension == "2d"
]
covered = np.median([box.area for box in lesions]) / (height * width) * tokens
spent = {stage: [run["seconds"] / 60 for run in told["runs"] if run["stage"] == stage] for stage in stages}
print(f"parameters      {weights / 1e6:.1f} million")
print(f"a slice         {height} x {width} pixels, {tokens} tokens; a volume has {depth}")
print(f"a lesion        {covered:.1f} tokens (the median of those whose texture is asked about, in 2D)")
print(f"fine-tuning     {size.sft.steps} steps of {size.sft.batch_size}, {np.mean(spent['sft']):.0f} minutes")
print(
    f"outcome RL      {size.rl.steps} steps of {size.rl.prompts} questions; notebook 05: {profile.rl.steps}"
)

# %% [markdown]
# - **Size.** So few parameters learn letters, boxes and anatomy in minutes. What a pretrained 7B model brings along has to be
#   learnt here, and what is limited by that says nothing about the paper.
# - **Volumes are near their slices.** Phantom volumes and single slices come from one generator. If slices help volumes
#   anywhere, then here; real 3D scans differ more from 2D images than that.
# - **Crops.** A lesion covers few tokens of a slice; its crop is enlarged. A large model sees a picture at many more tokens, and
#   may need a crop less. And a model that points badly gets nothing from crops.
# - **RL** is short here, on slices only. It adds steps and patients besides its reward. Notebook 05 trains longer, on its own.
# - **Seeds** are those of fine-tuning and RL. All start from one base, and all are asked one set of questions. Five tell that a
#   training may end before letters are learnt (section 7), but not how often.
#
# ## 10 · The protocol, and what was changed
#
# The size of the study was chosen on validation patients with seed 100, which no condition uses. The table of that pilot, one
# seed of each, and what it says of the first claim:

# %%
from unireason_lib.evaluation.tidy import read_tidy

pilot = read_tidy(root / "data" / "results" / "pilot.csv.gz")
print(aligned(table_of_conditions(pilot)))
for name in ("joint, 2,000 steps", "joint, 1,500 steps"):
    a, b, whose, _ = paired_runs(pilot, "3D only, 2,000 steps", name, dimension="3d")
    d = compare(a, b, whose).difference
    word = "holds zero" if d.low <= 0 <= d.high else "leaves out zero"
    print(
        f"{name} against 3D only, 2,000 steps: {100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f}), {word}"
    )

# %% [markdown]
# The pilot favoured the claim, and the number of steps was then chosen to save time. So the first claim about the mixture was not
# chosen blindly: the size was set where it looked possible. (One seed speaks of two checkpoints only.) What was changed since
# the first plan, all before an outcome was known:
#
# | what | was | became | why |
# | --- | --- | --- | --- |
# | steps of fine-tuning | 2,000 | 1,500 | the study has to fit into hours |
# | volumes | of 300 patients | 3,600 records of 600 patients | volumes alone hardly learnt from fewer |
# | "as many volumes seen" | not there | a condition | in as many steps, volumes alone are seen more often |
# | RL, with and without a reward for boxes | not there | two conditions, three claims | the paper's third claim |
# | steps of RL | 60 | 30 | the study has to fit into hours |
# | questions of the test | 500 | 1,000 | narrower intervals; it costs minutes |
# | precision | bfloat16 where it is fast | float32 | seeds may be made on different machines |
# | curve: records of volumes | 400, 1,200; each seen less often beside slices | 40, 150 volumes, seen equally often | else fewer volumes would also mean less practice |
# | curve: seeds | 5 | 3 | the study has to fit into hours |
# | p-values | share of resamples | Student's t | the former come out too small where Holm decides |
# | names of claims | shorter | as above | they could be misread; what they compare stayed |
# | what is kept | answers, blind answers | and those with crops taken away | section 7 asks whether crops are used |
#
# After the outcome was known, the columns of conclusions were added to the table, from the replies as they were; no verdict uses
# them. Models, answers and verdicts stayed.
#
# A first start was lost with its machine after a third of the runs, unseen; since then a study keeps what it has after every test
# (`--keep`) and can go on from there on another machine (`--parts`). The questions of the test are those of notebook 06, on
# which the models of notebooks 04 to 06 were measured while those were written.
#
# ## 11 · A condition of your own
#
# Section 7 took crops away on few questions. Let us ask all of them, as a condition of its own: a model that had regions in
# training is *tested* without. Three lines of YAML, and a claim:

# %%
from unireason_lib.ablation.ledger import estimate
from unireason_lib.ablation.results import still_needed

mine = """
  joint, no crops at the test:
    sft: {}
    test: {OVERRIDES: generation.max_rounds=0}

claims:
  crops help at the test: {better: joint, worse: "joint, no crops at the test"}
"""
file = root / "runs" / "mine.yaml"
file.parent.mkdir(exist_ok=True)
file.write_text(text.replace("\nclaims:\n", mine), encoding="utf-8")
new = still_needed(plan(load_grid(file)), kept) if told["name"] == grid.name else plan(load_grid(file))
minutes = {stage: np.mean(found) for stage, found in spent.items() if found}
print(
    f"{file.relative_to(root)}: {dict(Counter(job.stage for job in new))} to be made, one at a time", end=" "
)
print(f"about {estimate(new, minutes):.0f} minutes")
print(
    aligned([("run", "seed", "builds on"), *((job.name, str(job.seed), job.needs or "-") for job in new[:4])])
)

# %% [markdown]
# The grid is in `runs/mine.yaml`, with its name as it was, so that the kept results are found. Only the new tests are to be made,
# and again the models that they ask: results are kept, checkpoints are not.
#
# ```bash
# python -m unireason_lib ablate runs/mine.yaml --seeds 1 --profile smoke --look --only "joint, no crops at the test"
# python -m unireason_lib ablate runs/mine.yaml --parts data/results --workers 2 --keep runs/results
# python -m unireason_lib tutorial 07 -p GRID=runs/mine.yaml -p STUDY=runs/results/claims
# ```
#
# The first line tries whether it runs at all, the last shows this notebook with your condition in it. If the code has changed since
# the study, the second refuses; with `--mixed` it goes on, and you compare what two versions made. A claim that is added after
# one has looked is an exploration (exercise 5). A study with other questions, seeds or steps is another one: give it another `name`.
#
# On GPUs it is the same grid: `--ray ADDRESS` runs a notebook on each GPU of a Ray cluster. A notebook is one process on one
# device, so a 7B model takes adapters (`--set sft.lora_rank=16`, or the profile `t4` for 4-bit weights), and `DATA` in a
# condition names other records than phantoms. What that costs is said before it is spent:
#
# ```bash
# python -m unireason_lib plan --gpus 8xH100 --grid runs/mine.yaml
# ```
#
# ## Check yourself

# %%
from datetime import datetime
from itertools import pairwise

assert same, "the table is of other questions"
for one, was in zip(
    verdicts, told["verdicts"], strict=True
):  # what was written then follows from the table now
    assert (one.claim.better, one.claim.worse, one.verdict) == (was["better"], was["worse"], was["verdict"])
for groups in (*gained.values(), *used.values()):
    assert all(low <= value <= high for value, low, high in groups.values())
ended_at = {run["key"]: datetime.strptime(run["finished"], "%Y-%m-%dT%H:%M:%S%z") for run in told["runs"]}
for job in jobs:  # RL starts from the very model that it is compared with: none was made anew in between
    assert job.needs is None or ended_at[job.needs] <= ended_at[job.key]
assert all(a[1] <= b[1] for line in sees.values() for a, b in pairwise(line))
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. **Two seeds.** Keep two seeds of the table and judge again. Which verdicts change, and to what?
# 2. **Unpaired.** Call `compare` with `paired_seeds=False` for a claim of each part. Which intervals change, and which way?
# 3. **Your claim.** Boxes may help 3D more than 2D. That is a difference of differences: compute it with an interval. Begin with
#    `paired_runs(rows, "no boxes", "no regions", dimension=...)` for both dimensions, and draw seeds together, patients apart.
# 4. **Late letters.** Does a seed that did not learn letters learn them in 2,000 steps? Add the condition and run that seed alone.
# 5. **Answer only.** No claim compares it. What would you have to do before you add one now?
#
# <details><summary>Solutions</summary>
#
# 1. `judge([row for row in rows if row["seed"] < 2], grid.claims)`: "cannot tell", all of them; the differences are still shown.
# 2. RL starts from the very model that it is compared with, so a lucky seed lifts both and pairing takes that out. Conditions of
#    the mixture share only which records are drawn and in what order, so pairing may gain little there. It costs something too:
#    five differences tell less about luck than ten single values, so the interval may get wider.
# 3. For every seed and patient, the difference of "no regions" and "no boxes" in 3D minus that in 2D. Patients differ between
#    the dimensions, so draw them apart, as in section 3, twice, with the same seeds in both.
# 4. `joint, longer: {sft: {OVERRIDES: sft.steps=2000}}` in `runs/mine.yaml`, with `seeds: [1]` there (or the seed that your own
#    study names), then `python -m unireason_lib ablate runs/mine.yaml --look --only "joint, longer"`. Whatever comes out, it
#    is one seed, chosen because it failed: what it shows is whether this can happen, not that it helps.
# 5. A claim added after looking is an exploration. Write it into a grid with a new name, give it seeds that were not used
#    (`seeds: [5, 6, 7, 8, 9]`), and run it; the corrected p-values of that study count.
#
# </details>
