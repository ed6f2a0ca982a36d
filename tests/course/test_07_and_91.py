"""Notebooks 07 and 91: their functions as written there, any study in them, and their solutions."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from tests.course.notebook import NOTEBOOKS, functions_of, solutions_of
from unireason_lib.ablation import load_grid
from unireason_lib.evaluation.statistics import power
from unireason_lib.evaluation.table import POOLED, select, write_pooled

NAMES = ("07_ablations", "91_study_statistics")
GRID = """
name: other
seeds: 3
conditions:
  all: {}
  volumes, twice the steps: {sft: {RECORDS_2D: 0, OVERRIDES: "sft.max_steps=9, grounding.keep_best=3d"}}
  slices teach answers: {sft: {OVERRIDES: grounding.components_2d=answer}}
  slices: {sft: {RECORDS_3D: 0}}
  answer only: {sft: {COMPONENTS: answer}}
claims:
  mixture: {better: all, worse: "volumes, twice the steps", dimension: 3d, part: mixture}
  grounded slices: {better: all, worse: slices teach answers, part: components}
  reasoning: {better: all, worse: answer only, dimension: 2d, part: components}
  boxes: {better: all, worse: slices, value: iou_first, part: other}
"""


@pytest.fixture(scope="module")
def statistics():
    sigma = {"seeds": 0.003, "patients": 0.05, "single replies": 0.2}
    return functions_of("91_study_statistics", sigma=sigma, np=np, t=t, power=power)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study of other conditions than the one that ships: grid, table, and its files. One
    condition does not reason, and nobody was asked with blank images."""
    folder, rng, rows = tmp_path_factory.mktemp("study"), np.random.default_rng(0), []
    (folder / "grid.yaml").write_text(GRID)
    grid = load_grid(folder / "grid.yaml")
    for k, condition in enumerate(grid.conditions):
        reasons = condition != "answer only"
        for seed in grid.seeds:
            for q in range(160):
                row = {"condition": condition, "seed": seed, "control": "none", "kind": "k"}
                row |= {"id": f"q{q}", "patient": f"p{q // 3}", "dimension": ("2d", "3d")[q % 2]}
                row |= {"family": ("where", "what")[q % 5 > 2], "failed": 0.0, "format": 1.0}
                right = float(rng.random() < 0.8 - 0.1 * k)
                row |= {"correct": right, "iou_first": rng.random(), "iou_all": np.nan}
                followed = float(rng.random() < 0.9) if reasons else np.nan
                rows.append(row | {"concluded": right if reasons else np.nan, "followed": followed})
    table = pd.DataFrame(rows)[list(POOLED)]
    write_pooled(table, folder / "study.csv.gz")
    about = {"verdicts": [{"claim": name} for name in grid.claims], "missing": [], "made": []}
    about |= {"seeds": [0, 1, 2], "runs": [{"stage": "sft", "seconds": 60.0}]}
    (folder / "study.json").write_text(json.dumps(about))
    return grid, table, folder


def test_sums_are_those_of_the_questions_that_both_conditions_have(study):
    grid, table, _ = study
    functions = functions_of("91_study_statistics", table=table, select=select)
    sums, counts = functions.seeds_by_patients(grid.claims["mixture"])
    part = table[table["dimension"].eq("3d")]
    means = part.groupby("condition")["correct"].mean()
    assert sums.shape == (3, len(counts)) and counts.sum() == part["id"].nunique()
    wanted = means["all"] - means["volumes, twice the steps"]
    assert sums.sum() / 3 / counts.sum() == pytest.approx(wanted)


def test_bootstrap_simulation_and_plan_agree_about_the_variance(statistics):
    rng, (S, P) = np.random.default_rng(3), (40, 60)
    d, each = statistics.simulated(rng, 0.5, S, P), np.ones(P)
    means = statistics.bootstrap(d, each, rng, draws=3000)
    assert means.mean() == pytest.approx(d.mean(), abs=0.01)
    error, df = statistics.planned(S, P)
    assert statistics.closed_form(d, each)[1] == pytest.approx(error, rel=0.3)
    assert means.std() == pytest.approx(error, rel=0.3)
    assert S - 1 < df < S + P
    drawn = [statistics.simulated(rng, 0.5, 5, 9).mean() for _ in range(2000)]
    assert np.std(drawn) == pytest.approx(statistics.planned(5, 9)[0], rel=0.06)


def test_the_smallest_difference_has_the_power_that_is_asked_for(statistics):
    alone, strictest = (statistics.smallest(0.02, 8, level) for level in (0.05, 0.05 / 9))
    assert power(0.02, 8, alone / 100) >= 0.8 > power(0.02, 8, alone / 100 - 0.001)
    assert alone < strictest and np.isnan(statistics.smallest(9, 4, 0.05))


@pytest.mark.parametrize("name", NAMES)
def test_any_study_is_shown(name, study, monkeypatch):
    """Conditions, claims, families and controls are those of the table that is given."""
    shown, (_, _, folder) = [], study
    monkeypatch.setattr("IPython.display.display", lambda *given, **_: shown.extend(given))
    monkeypatch.chdir(NOTEBOOKS)
    space = {"display": lambda *given: shown.extend(given)}
    for cell in (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8").split("\n# %%")[1:]:
        head, _, source = cell.partition("\n")
        if "markdown" in head or "google.colab" in source or "execute(" in source:
            continue
        exec(compile(source.replace("range(200)", "range(20)"), name, "exec"), space)
        if "parameters" in head:
            space |= {"PROFILE": "smoke", "GRID": folder / "grid.yaml"}
            space |= {"STUDY": folder / "study", "PROTOCOL": ""}
            space["replies"] = pd.DataFrame({"injected_tokens": [0.0]})  # of the run left out here
    assert {one.name for one in space["verdicts"]} == {*study[0].claims}
    assert all(figure.alt for figure in shown if hasattr(figure, "alt"))


def test_solutions_of_notebook_07(study):
    grid, table, _ = study
    solutions = solutions_of("07_ablations")
    longer, gained = solutions.without_crops(grid)
    assert "all, no crops" in longer.conditions and {job.stage for job in gained} == {"test"}
    assert [job.seed for job in gained] == [0, 1, 2]
    both = pd.concat([table, table.assign(control="no-crop", correct=0.0)])
    found = solutions.against_control(both, "all", "no-crop")
    assert found.difference.value == pytest.approx(select(table, "all")["correct"].mean())
    few = solutions.verdicts_of_fewer(grid, table, seeds=2)
    assert set(few["2 seeds"]) == {"cannot tell"} and len(few) == len(grid.claims)


def test_solutions_of_notebook_91(study):
    grid, table, _ = study
    solutions = solutions_of("91_study_statistics")
    assert (solutions.paired_and_not(grid, table) > 0).all(axis=None)
    sigma = solutions.variances(table, grid.claims["mixture"])
    assert min(sigma) >= 0 and sigma[2] > 0
    of_seeds, of_patients = (solutions.best_design(one) for one in ((1, 0, 0.1), (0, 1, 0.1)))
    assert of_seeds[0] > of_patients[0] and of_seeds[1] < of_patients[1]
