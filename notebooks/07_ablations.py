# %% [markdown]
# # 07 · Ablations: which part of the method improves the answers?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/07_ablations.ipynb)
#
# After this notebook you can
# - turn a claim ("boxes help") into two conditions that differ in one thing, and plan the runs that compare them;
# - compute a paired difference by hand, and read a verdict with its interval;
# - find out where a difference comes from: families of questions, single seeds, the reasoning or the letter.
#
# **Time** about two minutes on 2 CPU cores or a GPU: one run is executed, the study's results are loaded (`make replicate`: hours). **Needs** no
# other notebook. **Synthetic**: all patients; results hold for a tiny model, not for the paper's 7B model. *Not for clinical use.*
#
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740) (the claims); [Variance in benchmarks](https://arxiv.org/abs/2103.03098)
# (why seeds are repeated); [Error bars for evaluations](https://arxiv.org/abs/2411.00640) (paired differences, questions in clusters).

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
GRID = "data/ablations/first/claims.yaml"  # the study
STUDY = "data/results/first/claims"  # its results, without .json and .csv.gz; your own: runs/results/...

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
import shutil
from collections import Counter

import nbformat
import numpy as np
import pandas as pd
from IPython.display import display

from unireason_lib.ablation import judge, load_grid, plan, run_study
from unireason_lib.ablation.claims import table_of_claims
from unireason_lib.config import load_profile
from unireason_lib.display import pipeline_figure, plot_intervals
from unireason_lib.display.figures import LINE_COLORS, MARKERS, AltFigure
from unireason_lib.evaluation.table import compare, mean, read_pooled, read_table, select
from unireason_lib.io import read_json, write_whole
from unireason_lib.notebooks import execute, project_root, publish

profile, root = load_profile(PROFILE, OVERRIDES), project_root()
pipeline_figure("ablations")

# %% [markdown]
# ## 1 · From a claim to two conditions
# An ablation removes one part of a method, trains again, and measures what is lost. The two ways of training, called **conditions**, have the same
# base, seeds and questions. With $y_{sq} = 1$ where the model of seed $s$ answers question $q$ correctly and $0$ otherwise, the effect of the
# part is the mean difference over $S$ seeds and $n$ questions,
#
# $$\Delta = \frac{1}{S\,n} \sum_{s,\,q} \left( y^{\text{with}}_{sq} - y^{\text{without}}_{sq} \right) .$$
#
# The paper makes three claims. **Mixture**: adding grounded slices to scarce volumes improves answers about volumes. **Components**: boxes in the
# reasoning help, and so do injected region tokens. **Stages**: outcome RL, rewarded for answer and format only, improves on SFT.
#
# A condition is one set of notebook parameters (`sft`: notebook 04, `rl`: 05, `test`: 06) and states what differs from the defaults. A claim says which
# of two conditions should be better, in which column (`value`), on which questions. Boxes are tested without regions, regions by what they add to
# boxes; without slices, steps and volumes seen cannot both stay equal, so the mixture is tested in several ways. All this is fixed before any test
# result is seen, so that nobody can pick what came out well; the protocol ([notebook 91](91_study_statistics.ipynb), section 7) lists every change.

# %%
grid = load_grid(root / GRID)
print(f"{grid.about}\nAll conditions: seeds {grid.seeds}, {grid.overrides}")
rows = {name: {"about": one.about} | one.stages for name, one in grid.conditions.items()}
claims = {name: one.model_dump(exclude={"kind"}) for name, one in grid.claims.items()}
with pd.option_context("display.max_colwidth", None):
    display(pd.DataFrame(rows).T.fillna("no such stage"), pd.DataFrame(claims).T.fillna("all"))

# %% [markdown]
# A run is determined by its seed, its parameters and those of the stages before it. Below, the distinct runs are counted by hand.
# > **Predict first.** Some conditions differ from each other only in RL or in the test. How many fine-tunings does this grid need?

# %%
runs = {"sft": set(), "rl": set(), "test": set()}
for seed in grid.seeds:
    for condition in grid.conditions.values():
        history = [seed]
        for stage, parameters in condition.stages.items():
            history.append((stage, sorted(parameters.items())))
            runs[stage].add(repr(history))
planned = Counter(job.stage for job in plan(grid))
assert planned == {stage: len(some) for stage, some in runs.items() if some}
alone = Counter(stage for one in grid.conditions.values() for stage in one.stages for _ in grid.seeds)
pd.DataFrame({"each condition by itself": alone, "runs of the plan": planned})

# %% [markdown]
# ## 2 · A small study, and one of its runs
# Two conditions and a claim make a study. This one asks whether a model that learnt with crops needs them in the test. A dry run lists
# the runs and their commands; so does `python -m unireason_lib ablate runs/crops.yaml --dry-run`.

# %%
text = """
profile: smoke
seeds: 1
conditions: {with crops: {}, without crops: {test: {OVERRIDES: generation.max_rounds=0}}}
claims: {crops help in the test: {better: with crops, worse: without crops}}
"""
write_whole(root / "runs" / "crops.yaml", text)
small = load_grid(root / "runs" / "crops.yaml")
run_study(small, root, dry_run=True);

# %% [markdown]
# [papermill](https://papermill.readthedocs.io) executes a run: it adds a cell with the run's parameters after the notebook's own, and saves the
# result. Here we execute the last run of the list on a few questions, with the shipped model in place of one that the first run would train: it
# shows how a run works, and measures nothing.

# %%
example = {"MODEL": load_profile("laptop").model.path, "RESULTS": "runs/evaluation/crops-example"}
given, folder = plan(small)[-1].parameters | example, root / example["RESULTS"]
notebook = root / "notebooks" / "06_evaluation.ipynb"
shutil.rmtree(folder, ignore_errors=True)
run = execute(notebook, folder / "executed.ipynb", given, load_profile("smoke"))
assert run["status"] == "passed", run["error"]
cells = nbformat.read(folder / "executed.ipynb", 4).cells
print(next(cell.source for cell in cells if "injected-parameters" in cell.metadata.tags))
replies = read_table(folder / "replies.jsonl")
replies[["id", "dimension", "own_tokens", "injected_tokens", "correct", "iou_first"]].head(2)

# %% [markdown]
# No token was injected, as the condition says. (Replies are cut short in the profile `smoke`.) Without `--dry-run`, `ablate` does this
# for a whole grid, and collects all replies in one table.
# ## 3 · The study that ships
# Its table has a row for every condition, seed and question. Some questions were asked again under a `control`, such as blank images. `concluded` is
# 1 where the reasoning ends on the right option, `followed` where the letter is that of the option that the reasoning ends on.

# %%
about, table = read_json(root / f"{STUDY}.json"), read_pooled(root / f"{STUDY}.csv.gz")
assert about["verdicts"] and not about["missing"], "results are read when a study is whole, not before"
names = [name for name in grid.conditions if name in set(table["condition"])]
n = table[table["condition"].isin(names)][["id", "patient", "seed"]].nunique()
print(f"{len(table):,} replies, of which {int(table['failed'].sum())} failed (counted as wrong);", end=" ")
print(f"{n['id']:,} questions about {n['patient']} patients, {n['seed']} seeds")
table.drop(columns=["patient", "kind", "iou_all"]).sample(3, random_state=SEED)


# %% [markdown]
# The figures show the accuracy of all conditions, with 95 % intervals over seeds and patients; each pale dot is a seed. The second marker shows
# the same models with blank images: what they reach from the words of the question alone.

# %%
def percent(interval):
    """Value and ends of an interval, in percent or percentage points."""
    return tuple(100 * x for x in (interval.value, interval.low, interval.high))


def by_seed(condition, value="correct", **where):
    """Seed -> mean of a column, in percent."""
    return 100 * select(table, condition, **where).groupby("seed")[value].mean()


for dimension in ("2d", "3d"):
    parts = dict([*table[table["dimension"].eq(dimension)].groupby(["condition", "control"])])
    own = {name: percent(mean(parts[name, "none"])) for name in names}
    blank = {name: percent(mean(parts[name, "blank"])) for name in names if (name, "blank") in parts}
    series = {"own images": own, "blank images": blank} if blank else {"own images": own}
    dots = {"own images": {name: by_seed(name, dimension=dimension) for name in names}}
    chance = {"form": ".1f", "reference": ("one in four", 25)}
    display(plot_intervals(series, f"right answers in {dimension.upper()}, %", dots=dots, **chance))
    above = [name for name in blank if own[name][1] > blank[name][2]]
    print(f"{dimension.upper()}: interval wholly above that of blank images: {', '.join(above) or 'none'}")

# %% [markdown]
# Where the two intervals of a condition overlap, this figure does not show that its models use the images. Below one in four, replies lack a valid
# answer or favour wrong options; the figure does not tell which. A condition trained only on slices, or only on volumes, is asked about the other
# kind zero-shot. Conditions are not compared by these intervals: paired differences over the same questions are more precise.
# Whether crops matter is best seen where the whole image tells little: in questions about textures (notebook 03), with other crops or none.

# %%
crops = {"own crops": "none", "random crops": "random-crop", "no crops": "no-crop"}
parts, series = dict([*table.groupby(["condition", "control"])]), {}
for way, control in crops.items():
    keys = {name: (f"{name}, textures", control) for name in names}
    series[way] = {name: percent(mean(parts[key])) for name, key in keys.items() if key in parts}
count = table.loc[table["condition"].str.endswith(", textures"), "id"].nunique()
display(plot_intervals(series, f"right of {count} textures, %", **chance)) if all(series.values()) else None

# %% [markdown]
# All three coincide where boxes fetch nothing. Where boxes fetch crops, but own ones help no more than random ones, nothing suggests that answers rest
# on them; where only own crops help, they do. This figure asks whether trained models use crops, not whether training with regions improves them.
# ## 4 · One paired difference, by hand
# For every seed, questions are compared one by one: won if only the condition that is expected to be better is right, lost if only the other is.

# %%
name, claim = next((name, one) for name, one in grid.claims.items() if one.value == "correct")
sides = [select(table, side, **claim.where) for side in (claim.worse, claim.better)]
worse, better = (side.pivot(index="seed", columns="id", values="correct") for side in sides)
differences = better - worse  # seeds x questions
print(f"{name}: {claim.better!r} against {claim.worse!r}, {differences.shape[1]} questions")
counts = {"won": (differences > 0).sum(axis=1), "lost": (differences < 0).sum(axis=1)}
pd.DataFrame(counts | {"percentage points": (100 * differences.mean(axis=1)).round(1)})


# %% [markdown]
# How precise is the difference for one seed? Let $d_q$ be 1 for a question that is won, -1 for a lost one, else 0. Answers about one patient tend to be
# right or wrong together, so deviations $d_q - \bar d$ are summed over the questions of each of $P$ patients before they are squared:
#
# $$\mathrm{SE}^2 = \frac{P}{P - 1} \cdot \frac{1}{n^2} \sum_{p=1}^{P} \Big( \sum_{q \in p} (d_q - \bar d) \Big)^2 .$$
#
# > **Predict first.** If the conditions had been asked different questions, the error would be
# > $\sqrt{\mathrm{SE}_{\text{with}}^2 + \mathrm{SE}_{\text{without}}^2}$. Is the paired error smaller? What does that depend on?

# %%
def standard_error(values, patients):
    """Standard error of the mean of a series of values; those about one patient belong together."""
    sums = (values - values.mean()).groupby(patients).sum()
    return np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values)


seed, patients = differences.index[0], sides[0].drop_duplicates("id").set_index("id")["patient"]
paired = standard_error(differences.loc[seed], patients)
apart = np.hypot(*(standard_error(one.loc[seed], patients) for one in (worse, better)))
assert np.isclose(paired, compare(*(side[side["seed"].eq(seed)] for side in sides)).standard_error)
print(f"standard error, seed {seed}: paired {100 * paired:.2f} points, different questions {100 * apart:.2f}")
print(f"correlation of right answers: {np.corrcoef(worse.loc[seed], better.loc[seed])[0, 1]:+.2f}")
print(f"all seeds: {compare(*sides, paired_seeds=True).text(name)}")

# %% [markdown]
# The variance of a difference is the sum of both variances minus twice the covariance: pairing helps if both conditions are right on the same
# questions. One seed compares two checkpoints. A statement about ways of training has to include the spread over seeds, as the last line does;
# [notebook 91](91_study_statistics.ipynb) derives it.
# ## 5 · The claims and their verdicts
# A claim is **supported** at this scale if its interval lies above zero and its p-value, corrected for the number of claims (Holm,
# notebook 91), is below 5 %; **contradicted** if the same holds below zero; **inconclusive** otherwise.

# %%
verdicts = judge(grid, table)
judged = [one for one in verdicts if one.p is not None and one.claim.value == "correct"]
series, dots = {}, {}
for one in judged:
    claim, row = one.claim, f"{one.name}: {one.verdict}"
    series.setdefault(claim.part, {})[row] = percent(one.comparison.difference)
    each = by_seed(claim.better, **claim.where) - by_seed(claim.worse, **claim.where)
    dots.setdefault(claim.part, {})[row] = each.dropna()
xlabel, zero = "difference in right answers, percentage points (95 % interval)", ("no difference", 0)
figure = plot_intervals(series, xlabel, reference=zero, form="+.1f", dots=dots)
if STUDY == "data/results/first/claims" and PROFILE != "smoke":
    figure.savefig(root / "data" / "figures" / "claims.png", dpi=150)
display(figure)
by_width = sorted(judged, key=lambda one: one.comparison.standard_error)
print(f"narrowest interval: {by_width[0].name}; widest: {by_width[-1].name}")
for one in verdicts:
    if one.p is not None:
        scale, unit = (100, "points") if one.claim.value == "correct" else (1, "")
        value, *ends = (scale * x / 100 for x in percent(one.comparison.difference))
        publish(f"claim: {one.name}", value, unit, interval=tuple(ends), note=one.verdict)
display(table_of_claims(verdicts))
counts = pd.DataFrame([(one.claim.part, one.verdict) for one in verdicts], columns=["part", "verdict"])
counts.value_counts().unstack(fill_value=0)

# %% [markdown]
# Colours mark the paper's three claims, pale dots are seeds; a claim about IoU has another unit and is in the table only. The last table counts the
# verdicts for each claim of the paper. If an inconclusive claim has a narrow interval around zero, its effect is small here; if the interval is wide,
# the study is too small for it. Among many claims some intervals exclude zero by chance, so that alone decides nothing.
# ## 6 · Differences by family of questions
# Nothing from here on was claimed beforehand: this is exploration. Families with at least 20 questions are compared.

# %%
effects = {}
for one in judged:
    sides = [select(table, side, **one.claim.where) for side in (one.claim.worse, one.claim.better)]
    for family, count in sides[0].groupby("family")["id"].nunique().items():
        few = [side[side["family"].eq(family)] for side in sides]
        if count >= 20:
            effects[one.name, family] = percent(compare(*few, paired_seeds=True).difference)
values = pd.Series({key: ends[0] for key, ends in effects.items()}).unstack(sort=False)
figure = AltFigure(9, 0.4 * len(values) + 1.3, "differences in points: claims x families of questions")
axes, limit = figure.subplots(), values.abs().max().max()
axes.imshow(values, cmap="RdBu", vmin=-1.7 * limit, vmax=1.7 * limit, aspect="auto")
for (claim, family), (value, low, high) in effects.items():
    place = values.columns.get_loc(family), values.index.get_loc(claim)
    axes.text(*place, f"{round(value):+d}{'*' * (low > 0 or high < 0)}", ha="center", va="center")
axes.set_yticks(range(len(values)), values.index.str.wrap(30))
axes.set_xticks(range(values.shape[1]), [name.replace(" ", "\n") for name in values.columns], fontsize=8)
display(figure)
starred = sum(low > 0 or high < 0 for _, low, high in effects.values())
print(f"*: interval excludes zero: {starred} of {len(effects)}; chance alone gives {0.05 * len(effects):.1f}")

# %% [markdown]
# Blue: the condition that should be better is ahead; red: behind; empty: too few questions. A strong colour is a large difference; without * it may
# be chance.
# ## 7 · Differences between seeds: reasoning and letters
# A consistent right reply has a right conclusion ("... the left kidney") and the letter of that option; some letters are right by luck. **Conclusion
# right** scores the option that the reasoning names last; **rationale-answer consistency** is the proportion of replies with the letter of this option.
# > **Predict first.** Below is the claim with the widest interval. If one of its seeds answers far worse than the others, does that model see less?

# %%
columns = {"correct": "right answers", "concluded": "conclusion right", "followed": "consistency"}
reasons = {name: by_seed(name, "followed").notna().all() for name in names}
one = [one for one in by_width if reasons[one.claim.better] and reasons[one.claim.worse]][-1]
seeds = {side: by_seed(side, [*columns], **one.claim.where) for side in (one.claim.better, one.claim.worse)}
figure = AltFigure(9, 3.2, f"answers and conclusions against consistency, by seed: {', '.join(seeds)}")
for axes, column in zip(figure.subplots(1, 2, sharey=True), ("correct", "concluded"), strict=True):
    for (side, rows), color, marker in zip(seeds.items(), LINE_COLORS, MARKERS, strict=False):
        axes.plot(rows["followed"], rows[column], marker, color=color, label=side, alpha=0.7)
    axes.set(xlabel="rationale-answer consistency, %", title=f"{columns[column]}, %", xlim=(0, 105))
axes.legend()
display(figure)
side, seed = pd.concat(seeds)["followed"].idxmin()
print(f"Lowest consistency: {side}, seed {seed}. In percent, beside the mean of its other seeds:")
print(pd.DataFrame({seed: seeds[side].loc[seed], "others": seeds[side].drop(seed).mean()}).round(1))

# %% [markdown]
# A marker at the far left that is low in the left panel, but among the others in the right one, is a model that reasons as well as they do and
# writes the wrong letter; a mean over seeds hides it. If both panels look alike, letters follow conclusions, and seeds differ in what they conclude.
# ## 8 · Running a whole study
# `ablate GRID --workers 2` makes each run when what it builds on is there. A failed run stops only those that build on it, the same command
# resumes after a kill, and with `--keep FOLDER` another machine can continue. The runs of this study, two at a time, took:

# %%
cost = pd.DataFrame(about["runs"]).groupby("stage", sort=False)["seconds"].agg(["count", "mean", "sum"])
pd.DataFrame({"runs": cost["count"], "minutes each": cost["mean"] / 60, "hours": cost["sum"] / 3600}).round(1)

# %% [markdown]
# **Limits.** A pretrained 7B model starts with skills that this one lacks, so effects may differ; the slices are as synthetic as the volumes and much
# like them; one base, one frozen vision tower (`data/README.md`: what it had seen). **Next**: [91](91_study_statistics.ipynb), how sure a study can be.
# ## Check yourself

# %%
assert [one.name for one in verdicts] == [one["claim"] for one in about["verdicts"]]
for one in judged:
    value, low, high = percent(one.comparison.difference)
    a, b = (by_seed(side, **one.claim.where).mean() for side in (one.claim.worse, one.claim.better))
    assert np.isclose(value, b - a) and (one.verdict == "inconclusive" or low > 0 or high < 0)
assert replies["injected_tokens"].eq(0).all(), "no box fetched a crop"
print("all checks passed")

# %% [markdown]
# ## Exercises ([solutions](solutions/07_ablations.py))
# 1. **Your condition.** Add to the grid a copy of its first condition, tested without crops (`grid.model_copy`). Which runs are added to the plan?
# 2. **One model, other crops.** The table contains the same models under controls: `select(table, name, control="random-crop")`. Compute the paired
#    difference between a condition and itself with random crops, also on textures alone. Why does this need no second training?
# 3. **Fewer seeds.** Judge the claims with three seeds only. Which verdicts change? What would it mean if they had come out better?
