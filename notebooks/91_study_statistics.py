# %% [markdown]
# # 91 · Statistics and protocol of the study
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/91_study_statistics.ipynb)
#
# After this notebook you can
# - compute the standard error of a difference over seeds and patients in closed form, and say what each part of it means;
# - compare it with a bootstrap, correct p-values for the number of claims, and say what a verdict does and does not mean;
# - tell which differences a study can detect with a given number of seeds and patients, before it is run.
#
# **Time** under a minute on 2 CPU cores. **Needs** no other notebook, but builds on 07. **Synthetic**: all patients. *Not for clinical use.*
#
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740) (the claims); [Error bars for evaluations](https://arxiv.org/abs/2411.00640);
# [Variance in benchmarks](https://arxiv.org/abs/2103.03098); [bootstrap of crossed factors](https://arxiv.org/abs/0712.1111); Searle, Casella and
# McCulloch, *Variance Components* (1992), chapter 4.

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
GRID = "data/ablations/first/claims.yaml"  # the study
STUDY = "data/results/first/claims"  # its results, without .json and .csv.gz
PROTOCOL = "data/results/protocol.md"  # what was fixed before the study, and what was changed; empty: none

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
from collections import Counter

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy.stats import t

from unireason_lib.ablation import judge, load_grid
from unireason_lib.config import load_profile
from unireason_lib.display import pipeline_figure, plot_intervals, plot_lines
from unireason_lib.display.figures import LINE_COLORS, AltFigure
from unireason_lib.evaluation.statistics import holm, power
from unireason_lib.evaluation.table import read_pooled, select
from unireason_lib.notebooks import project_root

profile, root = load_profile(PROFILE, OVERRIDES), project_root()
grid, table = load_grid(root / GRID), read_pooled(root / f"{STUDY}.csv.gz")
verdicts = judge(grid, table)
judged = {one.name: one for one in verdicts if one.p is not None and one.claim.value == "correct"}
pipeline_figure("ablations")


# %% [markdown]
# ## 1 · A crossed design: seeds x patients
# The models of a claim, one per condition and seed, get the same questions about the same patients. For each seed and patient we sum the differences
# (better minus worse) over the questions: a table of $S$ rows and $P$ columns. From here on, *this claim* is the one with the largest standard error.

# %%
def seeds_by_patients(claim):
    """Sums of differences (seeds, patients), and the number of questions about each patient."""
    wide = []
    for side in (claim.worse, claim.better):
        rows = select(table, side, **claim.where)
        wide.append(rows.pivot(index="seed", columns=["patient", "id"], values=claim.value))
    groups = (wide[1] - wide[0]).dropna(how="all").dropna(axis=1).T.groupby(level="patient")
    return groups.sum().T.to_numpy(), groups.size().to_numpy()


name = max(judged, key=lambda name: judged[name].comparison.standard_error)  # the widest interval
sums, counts = seeds_by_patients(judged[name].claim)
S, P = sums.shape
print(f"{name}: {S} seeds, {P} patients, {counts.sum()} questions; points by seed:", end=" ")
print(np.round(100 * sums.sum(1) / counts.sum(), 1))
figure = AltFigure(9, 2.0, f"questions won less lost, by seed and patient: {name}")
axes, by_mean = figure.subplots(), sums[:, np.argsort(sums.mean(0))]
axes.imshow(by_mean, aspect="auto", cmap="RdBu", interpolation="nearest", vmin=-2, vmax=2)
axes.set(xlabel="patients, ordered by their mean difference", ylabel="seed", yticks=range(S))
figure


# %% [markdown]
# Blue: only the condition expected to be better is right; red: only the other one; white: both or neither; dark: several questions. A row in
# a colour of its own is a seed that differs; columns of one colour are patients on which seeds agree; speckles are the noise of single replies.
# ## 2 · Variance components, standard error, degrees of freedom
# With one question per patient, this is a two-way analysis of variance: $d_{sp}$ is the true difference $\Delta$ plus random effects of the seed, the
# patient and the single reply, with variances $\sigma_\alpha^2$, $\sigma_\beta^2$, $\sigma_\varepsilon^2$; $\bar d$ is the mean of the table:
#
# $$d_{sp} = \Delta + \alpha_s + \beta_p + \varepsilon_{sp}, \qquad
# \operatorname{Var}(\bar d) = \frac{\sigma_\alpha^2}{S} + \frac{\sigma_\beta^2}{P} + \frac{\sigma_\varepsilon^2}{S P} .$$
#
# What can be measured are the variances of the $S$ seed means, of the $P$ patient means, and of the residuals of the cells. Divided by $S$, $P$ and
# $SP$, they are $V_s$, $V_p$ and $V_\varepsilon$, with
#
# $$\mathbb{E} V_s = \frac{\sigma_\alpha^2}{S} + \frac{\sigma_\varepsilon^2}{S P}, \quad
# \mathbb{E} V_p = \frac{\sigma_\beta^2}{P} + \frac{\sigma_\varepsilon^2}{S P}, \quad
# \mathbb{E} V_\varepsilon = \frac{\sigma_\varepsilon^2}{S P}
# \;\Rightarrow\; \widehat{\operatorname{Var}}(\bar d) = V_p + \max(0, V_s - V_\varepsilon) .$$
#
# The variance of single replies is contained in both $V_s$ and $V_p$ and is counted once; as a precaution, the estimate is never below $V_s$. Its
# degrees of freedom, which say how well it is known, follow from its parts (Satterthwaite 1946):
#
# $$\nu = \frac{\widehat{\operatorname{Var}}^2}{V_p^2 / (P - 1) + V_s^2 / (S - 1)}, \qquad
# \bar d \pm t_{0.975,\,\nu} \sqrt{\widehat{\operatorname{Var}}} .$$
#
# > **Predict first.** With few seeds and many patients: are the degrees of freedom nearer to $S - 1$ or to $P - 1$?

# %%
def spreads(sums, counts):
    """V of the patients, of the seeds and of single replies; patients may have several questions."""
    (S, P), n = sums.shape, counts.sum()
    means, value = sums.sum(1) / n, sums.sum() / S / n  # of seeds, of all
    V_p = P / (P - 1) * ((sums.mean(0) - value * counts) ** 2).sum() / n**2
    left = sums - sums.mean(0) - np.outer(means - value, counts)
    V_e = P / (P - 1) * (left**2).sum() / n**2 / (S - 1) / S
    return V_p, means.var(ddof=1) / S, V_e


def closed_form(sums, counts):
    """Mean difference, its standard error and the degrees of freedom."""
    S, P = sums.shape
    V_p, V_s, V_e = spreads(sums, counts)
    variance = max(V_p + max(0, V_s - V_e), V_s)
    df = variance**2 / (V_p**2 / (P - 1) + V_s**2 / (S - 1))
    return sums.sum() / S / counts.sum(), np.sqrt(variance), df


value, error, df = closed_form(sums, counts)
half, p = t.ppf(0.975, df) * error, 2 * t.sf(abs(value) / error, df)
low, high, library = value - half, value + half, judged[name].comparison
assert np.allclose([low, high, p], [library.difference.low, library.difference.high, library.p])
print(f"{name}: {100 * value:+.1f} points (95 %: {100 * low:+.1f} to {100 * high:+.1f}), p {p:.3f}")
print(f"{df:.1f} degrees of freedom; S - 1 = {S - 1}, P - 1 = {P - 1}")

# %% [markdown]
# The degrees of freedom are near $S - 1$ where $V_s$ is most of the variance, and grow where it is small beside $V_p$. Which part dominates the error?
# The bars are $\sigma_\alpha / \sqrt S$, $\sigma_\beta / \sqrt P$ and $\sigma_\varepsilon / \sqrt{SP}$; one is missing where its estimate is zero:
# seeds, or patients, then differ no more than the noise of single replies explains.

# %%
parts = {}
for one in judged.values():
    V_p, V_s, V_e = spreads(*seeds_by_patients(one.claim))
    parts[one.name] = {"seeds": max(0, V_s - V_e), "patients": max(0, V_p - V_e), "single replies": V_e}
parts = pd.DataFrame(parts).T
figure = AltFigure(9, 0.42 * len(parts) + 1, "standard error of each claim: seeds, patients, single replies")
axes = figure.subplots()
for k, (part, color) in enumerate(zip(parts, LINE_COLORS, strict=False)):
    axes.barh(np.arange(len(parts)) + (k - 1) / 4, 100 * parts[part] ** 0.5, 0.25, color=color, label=part)
axes.set_yticks(range(len(parts)), parts.index.str.wrap(30))
axes.set(xlabel="part of the standard error, percentage points", ylim=(len(parts) - 0.4, -0.6))
axes.legend()
display(figure)
print("largest part:", parts.idxmax(axis=1).to_dict())


# %% [markdown]
# More patients reduce the second and the third part, more seeds the first and the third.
# ## 3 · Bootstrap of seeds and patients
# A bootstrap needs no formula: draw seeds and patients with replacement, many times, and take the quantiles of the means.
#
# > **Predict first.** Drawing seeds and patients counts the variance of single replies twice, which widens the interval. Drawing from $S$ seeds gives
# > only $\frac{S-1}{S}$ of their variance, and quantiles ignore that seeds are few: that narrows it. Which effect wins for this claim?

# %%
def bootstrap(sums, counts, rng, draws=4000):
    """Means where seeds and patients are drawn anew; multinomial: how often each one is drawn."""
    seeds, patients = (rng.multinomial(k, np.full(k, 1 / k), draws) for k in sums.shape)
    return ((seeds @ sums) * patients).sum(1) / len(sums) / (patients @ counts)


rng, both = np.random.default_rng(SEED), {"closed form": {}, "bootstrap": {}}
for one in judged.values():
    known, ends = one.comparison.difference, bootstrap(*seeds_by_patients(one.claim), rng)
    both["closed form"][one.name] = (100 * known.value, 100 * known.low, 100 * known.high)
    both["bootstrap"][one.name] = (100 * known.value, *(100 * np.quantile(ends, [0.025, 0.975])))
width = {way: rows[name][2] - rows[name][1] for way, rows in both.items()}
print(f"{name}: the bootstrap interval is {width['bootstrap'] / width['closed form']:.2f} times as wide")
plot_intervals(both, "difference, percentage points (95 %)", reference=("no difference", 0), form="+.1f")

# %% [markdown]
# Which is right? In simulated studies with the variances of this claim the truth is known: 95 % of the intervals should contain it. For contrast, a
# third way treats all replies as independent.

# %%
V_p, V_s, V_e = spreads(sums, counts)  # variances of a seed, a patient, a reply:
sigma = {"seeds": S * max(0, V_s - V_e), "patients": P * max(0, V_p - V_e), "single replies": S * P * V_e}


def simulated(rng, effect, S, P):
    """Differences (seeds, patients) with a known mean and the parts of the variance in `sigma`."""
    sides = {"seeds": (S, 1), "patients": (1, P), "single replies": (S, P)}
    return effect + sum(np.sqrt(sigma[part]) * rng.normal(size=side) for part, side in sides.items())


outcomes = []
for _ in range(200):
    d, each = simulated(rng, 0, S, P), np.ones(P)
    value, error, df = closed_form(d, each)
    low, high = np.quantile(bootstrap(d, each, rng, draws=200), [0.025, 0.975])
    half = {"replies independent": 1.96 * d.std() / np.sqrt(d.size), "closed form": t.ppf(0.975, df) * error}
    row = {way: (abs(value) <= width, 100 * width) for way, width in half.items()}
    outcomes.append(row | {"bootstrap": (low <= 0 <= high, 50 * (high - low))})
outcomes = {way: np.mean([row[way] for row in outcomes], axis=0) for way in outcomes[0]}
pd.DataFrame(outcomes, index=["truth inside (proportion)", "half width, points"]).T.round(3)


# %% [markdown]
# (200 studies give the proportion to about 0.03.) Intervals that contain the truth in clearly fewer than 95 % of studies claim too much precision;
# in clearly more, they are too wide. The bootstrap errs both ways: too narrow where the few seeds dominate the error, too wide where replies do.
# ## 4 · Many claims: Holm's correction
# > **Predict first.** If none of $m$ independent claims had an effect, how often would at least one have p < 5 %, in either direction?
#
# Holm's correction (1979) multiplies the smallest of $m$ p-values by $m$, the next by $m - 1$, and so on, and none may fall below an earlier one:
# $\tilde p_{(k)} = \max_{j \le k} \min\big(1, (m - j + 1)\, p_{(j)}\big)$, with $p_{(j)}$ the $j$-th smallest. If a claim cannot be judged, its p is 1.
# Instead of $1 - 0.95^m$, at most 5 % of studies have a false finding, even if claims share models, as ours do. (Simulated below, to about 1 point.)

# %%
def holm_by_hand(p_values):
    """Corrected p-values, in the order that was given."""
    corrected, largest, m = {}, 0.0, len(p_values)
    for k, at in enumerate(sorted(range(m), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, (m - k) * p_values[at]))
        corrected[at] = largest
    return [corrected[at] for at in range(m)]


p_values = {one.name: 1.0 if one.p is None else one.comparison.p for one in verdicts}
m, corrected = len(p_values), holm_by_hand([*p_values.values()])
assert np.allclose(corrected, holm([*p_values.values()]))
chance = rng.random((2000, m))  # p-values where nothing has an effect
few = (chance < 0.05).any(1).mean()
print(f"of {m} claims without effect, at least one has p < 5 % in {few:.0%} of the studies")
print(f"after the correction: {np.mean([min(holm_by_hand(row)) < 0.05 for row in chance]):.0%}")
pd.DataFrame({"p": p_values, "p, Holm": dict(zip(p_values, corrected, strict=True))}).round(4)

# %% [markdown]
# ## 5 · What a verdict means
#
# | verdict | when | it means | it does not mean |
# | --- | --- | --- | --- |
# | supported at this scale | interval above zero, corrected p < 5 % | the part helps models and patients like these | that it helps 7B models or real scans |
# | contradicted | the same below zero | the part does harm here | that the paper is wrong |
# | inconclusive | neither | effects inside the interval are possible | that there is no effect |
# | cannot tell | fewer than three seeds, or nothing varies | nothing | that there is no effect |

# %%
for one, p in zip(verdicts, corrected, strict=True):
    if one.p is not None:
        sign = (p < 0.05) * (int(one.comparison.difference.low > 0) - int(one.comparison.difference.high < 0))
        assert one.verdict == {1: "supported at this scale", -1: "contradicted", 0: "inconclusive"}[sign]
Counter(one.verdict for one in verdicts)


# %% [markdown]
# ## 6 · Power: which differences a study can detect
# The power is how often a study finds a true difference $\Delta$: $P\big(t_\nu(\Delta / \mathrm{SE}) > t_{1 - \text{level}/2,\,\nu}\big)$. The
# noncentral $t_\nu(\cdot)$ is the distribution of difference / standard error if the true difference is $\Delta$. Simulated studies with the
# variances of this claim should find it about as often, a little less often where seeds hardly differ: the estimate is never below $V_s$ (section 2).

# %%
def planned(S, P):
    """Standard error and degrees of freedom of a study with so many seeds and patients."""
    V_e = sigma["single replies"] / (S * P)
    V_p, V_s = sigma["patients"] / P + V_e, sigma["seeds"] / S + V_e
    variance = V_p + V_s - V_e
    return np.sqrt(variance), variance**2 / (V_p**2 / (P - 1) + V_s**2 / (S - 1))


curves = {"formula": [], "200 simulated studies": []}
for effect in np.linspace(0, 6, 7) * planned(S, P)[0]:
    studies = [closed_form(simulated(rng, effect, S, P), np.ones(P)) for _ in range(200)]
    significant = np.mean([value / error > t.ppf(0.975, df) for value, error, df in studies])
    curves["formula"].append((100 * effect, 100 * power(*planned(S, P), effect)))
    curves["200 simulated studies"].append((100 * effect, 100 * significant))
plot_lines(curves, "true difference, percentage points", "detected, %", reference=("4 of 5", 80))


# %% [markdown]
# > **Predict first.** For this claim, which helps more: twice the seeds, or twice the patients?
#
# Below: the smallest difference found in four of five studies, if its claim has the smallest of the $m$ p-values, tested at level $0.05 / m$.

# %%
def smallest(error, df, level):
    """Smallest difference with a power of 80 %, in points; NaN above 100."""
    return next((k / 10 for k in range(1001) if power(error, df, k / 1000, level) >= 0.8), np.nan)


numbers = (3, 4, 5, 6, 8, 10, 14, 20)
curves = {}
for k in (P // 2, P, 2 * P, 8 * P):
    curves[f"{k} patients"] = [(seeds, smallest(*planned(seeds, k), 0.05 / m)) for seeds in numbers]
for seeds, patients in ((S, P), (2 * S, P), (S, 2 * P)):
    points = smallest(*planned(seeds, patients), 0.05 / m)
    print(f"{seeds} seeds, {patients} patients: {points:.1f} points")
plot_lines(curves, "seeds", "smallest difference, points")

# %% [markdown]
# Where the curves coincide, more patients do not help; where seeds dominate the error, they can even cost degrees of freedom. A curve begins where
# 100 points would suffice. The table has the smallest detectable difference of every claim, tested alone at level 0.05 and at Holm's strictest level,
# $0.05/m$. It serves to plan the next study. What this study says about an effect is its interval; power at the observed difference would
# only repeat the p-value ([Hoenig and Heisey 2001](https://doi.org/10.1198/000313001300339897)).

# %%
rows = {}
for one in judged.values():
    c = one.comparison
    alone, strictest = (smallest(c.standard_error, c.df, level) for level in (0.05, 0.05 / m))
    rows[one.name] = alone, strictest, c.difference.text(100, "+")
pd.DataFrame(rows, index=["detects, alone", "detects, as the strictest", "difference (95 %)"]).T

# %% [markdown]
# ## 7 · The protocol
# A protocol is written before the first run: conditions, claims, seeds, test patients, what is tuned on which patients, when to stop. Later changes
# are recorded in it, and whether outcomes were known by then. Below are the protocols of both studies. Ask of each change whether it could have
# favoured an outcome. (The difference that the second study plans for is that of claims tested alone, the first column above; Holm's level needs more.)

# %%
path = root / PROTOCOL
Markdown(path.read_text(encoding="utf-8")) if PROTOCOL and path.exists() else print("no protocol is kept")

# %% [markdown]
# ## Check yourself

# %%
for one in judged.values():
    c = one.comparison
    by_hand = closed_form(*seeds_by_patients(one.claim))
    assert np.allclose(by_hand, [c.difference.value, c.standard_error, c.df]), one.name
assert planned(2 * S, P)[0] < planned(S, P)[0] and planned(S, 2 * P)[0] < planned(S, P)[0]
print("all checks passed")

# %% [markdown]
# ## Exercises ([solutions](solutions/91_study_statistics.py))
# 1. **Unpaired seeds.** Compare the conditions of each claim by `evaluation.table.compare(..., paired_seeds=False)`, as notebook 07 does with `True`.
#    Where does the standard error grow, and why?
# 2. **Spend a budget.** A seed costs one training of each condition (12 minutes), a question 0.2 seconds. Which numbers of seeds and patients
#    give the shortest 95 % interval in 10 hours, with the variances of this claim? Would you trust so few seeds?
