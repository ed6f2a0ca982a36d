"""Solutions of notebook 91. Run it, ``python notebooks/solutions/91_study_statistics.py``, or
import its functions."""

import math

import pandas as pd
from scipy.stats import t

from unireason_lib.ablation import Grid, load_grid
from unireason_lib.ablation.grid import Claim
from unireason_lib.evaluation.table import compare, read_pooled, select


def paired_and_not(grid: Grid, table: pd.DataFrame) -> pd.DataFrame:
    """Exercise 1: standard errors (of the claims' columns) with paired and with unpaired seeds.
    Pairing removes what equal seeds have in common. RL starts from the very model that it is
    compared with, so a lucky seed lifts both; conditions that are trained separately have little in
    common, and the unpaired error may even be smaller, since pairing leaves fewer numbers from
    which the spread is estimated."""
    rows = {}
    for name, claim in grid.claims.items():
        sides = [select(table, side, **claim.where) for side in (claim.worse, claim.better)]
        found = (compare(*sides, claim.value, paired_seeds=one) for one in (True, False))
        rows[name] = [one.standard_error for one in found]
    return pd.DataFrame(rows, index=["paired", "unpaired"]).T


def variances(table: pd.DataFrame, claim: Claim) -> tuple[float, float, float]:
    """Variances of seeds, patients and single replies, for the table's number of questions per
    patient."""
    sides = [select(table, side, **claim.where) for side in (claim.worse, claim.better)]
    worse, better = (
        side.pivot(index="seed", columns=["patient", "id"], values=claim.value) for side in sides
    )
    d = (better - worse).T.groupby(level="patient").mean().T.to_numpy()
    S, P = d.shape
    left = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
    reply = (left**2).sum() / (S - 1) / (P - 1)
    seed = max(0.0, d.mean(1).var(ddof=1) - reply / P)
    return seed, max(0.0, d.mean(0).var(ddof=1) - reply / S), reply


def best_design(
    sigma: tuple[float, float, float],
    hours: float = 10,
    minutes: float = 12,
    seconds: float = 0.2,
) -> tuple[int, int, float]:
    """Exercise 2: the number of seeds and of patients (one question each) that give the shortest
    95 % interval, and half its width. A seed is one training of each of the two conditions and
    their tests; the time that training leaves goes into questions. If seeds do not differ, the
    answer is two seeds, but so few seeds cannot tell whether they differ."""
    designs = []
    for seeds in range(2, int(hours * 60 / (2 * minutes)) + 1):
        patients = int((hours * 3600 / (2 * seeds) - 60 * minutes) / seconds)
        if patients > 1:
            reply = sigma[2] / (seeds * patients)
            of_seeds, of_patients = sigma[0] / seeds + reply, sigma[1] / patients + reply
            variance = of_seeds + of_patients - reply
            df = variance**2 / (of_seeds**2 / (seeds - 1) + of_patients**2 / (patients - 1))
            designs.append((t.ppf(0.975, df) * math.sqrt(variance), seeds, patients))
    half, seeds, patients = min(designs)
    return seeds, patients, half


if __name__ == "__main__":
    from unireason_lib.notebooks import project_root

    grid = load_grid(project_root() / "data/ablations/first/claims.yaml")
    table = read_pooled(project_root() / "data/results/first/claims.csv.gz")
    print(f"1.\n{paired_and_not(grid, table).round(4).to_string()}")
    for name, claim in grid.claims.items():
        if claim.value == "correct":
            seeds, patients, half = best_design(variances(table, claim))
            print(f"2. {name}: {seeds} seeds, {patients} patients, +-{100 * half:.1f} points")
