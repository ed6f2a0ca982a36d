"""Solutions of notebook 07. Run it, ``python notebooks/solutions/07_ablations.py``, or import its
functions."""

import pandas as pd

from unireason_lib.ablation import Grid, judge, load_grid, plan
from unireason_lib.ablation.grid import Job, joined
from unireason_lib.evaluation.statistics import Comparison
from unireason_lib.evaluation.table import compare, read_pooled, select


def without_crops(grid: Grid) -> tuple[Grid, list[Job]]:
    """Exercise 1: the grid with one more condition, its first one tested without crops, and the
    runs that the plan gains: a test for each seed, since the models are trained already. In YAML:
    ``joint, no crops: {test: {OVERRIDES: generation.max_rounds=0}}``. The grid keeps its name, so
    that the runs keep theirs; for a confirmatory claim it needs a new name and new seeds."""
    name, first = next(iter(grid.conditions.items()))
    overrides = joined(first.test.get("OVERRIDES", ""), "generation.max_rounds=0")
    added = first.model_copy(update={"test": {**first.test, "OVERRIDES": overrides}})
    conditions = {**grid.conditions, f"{name}, no crops": added}
    longer = grid.model_copy(update={"conditions": conditions})
    before = {job.key for job in plan(grid)}
    return longer, [job for job in plan(longer) if job.key not in before]


def against_control(table: pd.DataFrame, condition: str, control: str) -> Comparison:
    """Exercise 2: the models of a condition with their own crops against the same models under a
    control. Only what a box fetches differs, so the difference is due to that, and nothing is
    trained; two conditions also differ in everything that their training runs made of it."""
    sides = select(table, condition, control=control), select(table, condition)
    return compare(*sides, paired_seeds=True)


def verdicts_of_fewer(grid: Grid, table: pd.DataFrame, seeds: int = 3) -> pd.DataFrame:
    """Exercise 3: the verdicts by all seeds and by the first few. Fewer seeds give wider intervals.
    Had they come out better, that would be chance: who chooses the number of seeds after having
    looked chooses the outcome."""
    few = table[table["seed"].isin(sorted(table["seed"].unique())[:seeds])]
    found = {"all": judge(grid, table), f"{seeds} seeds": judge(grid, few)}
    return pd.DataFrame({k: {one.name: one.verdict for one in some} for k, some in found.items()})


if __name__ == "__main__":
    from unireason_lib.notebooks import project_root

    grid = load_grid(project_root() / "data/ablations/first/claims.yaml")
    table = read_pooled(project_root() / "data/results/first/claims.csv.gz")
    _, gained = without_crops(grid)
    print("1. gained:", *(job.name for job in gained), sep="\n   ")
    condition = next(iter(grid.conditions))
    for name in (condition, f"{condition}, textures"):
        there = table.loc[table["condition"].eq(name), "control"].unique()
        for control in sorted({"random-crop", "swapped-crop", "no-crop"} & set(there)):
            print(f"2. {against_control(table, name, control).text(f'{name}, {control}')}")
    print(f"3.\n{verdicts_of_fewer(grid, table).to_string()}")
