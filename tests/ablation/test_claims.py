"""Verdicts on simulated replies: a known effect, none, the opposite, and too little to tell."""

from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest

from unireason_lib.ablation import Grid, judge
from unireason_lib.ablation.claims import table_of_claims, table_of_conditions
from unireason_lib.evaluation.table import POOLED


def table(accuracies, seeds=5, questions=120, draw=0, spread=0.01):
    """Replies of conditions that are right with these probabilities. Questions differ in how hard
    they are, seeds by ``spread``."""
    rng = np.random.default_rng(draw)
    k, hard, parts = np.arange(questions), rng.normal(0, 0.1, questions), []
    for name, seed in product(accuracies, range(seeds)):
        right = rng.random(questions) < accuracies[name] + hard + rng.normal(0, spread)
        about = {"id": k.astype(str), "patient": k // 2, "dimension": np.where(k % 2, "3d", "2d")}
        about |= {"kind": "k", "condition": name, "seed": seed, "control": "none"}
        parts.append(pd.DataFrame({**about, "correct": right.astype(float), "format": 1.0}))
    return pd.concat(parts).reindex(columns=POOLED)


def grid(*claims, conditions=("old", "new"), **of_all):
    """A grid of claims, (better, worse) each."""
    named = {f"claim {k}": {"better": b, "worse": w, **of_all} for k, (b, w) in enumerate(claims)}
    conditions = {name: {} for name in conditions}
    return Grid(name="g", seeds=5, conditions=conditions, claims=named)


ONE = grid(("new", "old"))


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (0.5, 0.65, "supported at this scale"),
        (0.65, 0.5, "contradicted"),
        (0.5, 0.5, "inconclusive"),
    ],
)
def test_a_known_effect_gets_its_verdict(old, new, verdict):
    (found,) = judge(ONE, table({"old": old, "new": new}))
    assert found.verdict == verdict and found.comparison.seeds == (5, 5)
    (row,) = table_of_claims([found]).to_dict("records")
    assert row["verdict"] == verdict and row["difference (95 %)"][0] in "+-"
    assert found.to_dict()["comparison"]["difference"]["value"] == pytest.approx(new - old, abs=0.1)


def test_without_effects_false_verdicts_are_rare():
    """Twenty studies of five claims about nothing; in one a false one is expected."""
    names = [f"c{k}" for k in range(6)]
    nothing = grid(*pairwise(names), conditions=names)
    tables = (table(dict.fromkeys(names, 0.5), 5, 40, draw=n, spread=0.05) for n in range(20))
    assert sum(any(v.verdict != "inconclusive" for v in judge(nothing, t)) for t in tables) <= 1


def test_all_claims_count_in_the_correction_judged_or_not():
    replies = table({"old": 0.5, "new": 0.6}, draw=3)
    (alone,) = judge(ONE, replies)
    both = judge(grid(("new", "old"), ("lost", "old"), conditions=("old", "new", "lost")), replies)
    assert both[1].verdict == "cannot tell" and both[1].p is None and both[1].comparison is None
    assert both[0].p == pytest.approx(2 * alone.p)


def test_too_few_seeds_cannot_tell():
    (found,) = judge(ONE, table({"old": 0.3, "new": 0.9}, seeds=2))
    assert found.verdict == "cannot tell" and "3 are needed" in found.why and found.p is None
    assert found.comparison.difference.value > 0.4  # it is shown, not judged


def test_nothing_that_varies_cannot_tell():
    """Two patients, three seeds, the same difference everywhere: p was 0 and the claim held."""
    replies = table({"old": 0.5, "new": 0.5}, seeds=3, questions=4)
    replies["correct"] = (replies["condition"] == "new").astype(float)
    (found,) = judge(ONE, replies)
    assert found.verdict == "cannot tell" and found.p is None and "varies" in found.why
    (row,) = table_of_claims([found]).to_dict("records")
    assert "nan" not in str(row) and row["difference (95 %)"] == "+100.0 (cannot tell)"


def test_only_the_replies_of_the_claim_count():
    """Other dimensions, and controls such as blank images, are not compared."""
    replies = table({"old": 0.5, "new": 0.5})
    replies.loc[(replies["condition"] == "new") & (replies["dimension"] == "3d"), "correct"] = 1.0
    both = pd.concat([replies, replies.assign(control="blank", correct=0.0)])
    in_3d, in_2d = (judge(grid(("new", "old"), dimension=d), both)[0] for d in ("3d", "2d"))
    assert (in_3d.verdict, in_2d.verdict) == ("supported at this scale", "inconclusive")
    assert judge(grid(("new", "old"), value="iou_first"), both)[0].verdict == "cannot tell"
    shown = table_of_conditions(both, ["old", "new", "never run"])
    assert "3D IoU" not in shown
    assert list(shown["condition"]) == ["old", "new"] and shown["3D %"][1].startswith("100.0 (")
