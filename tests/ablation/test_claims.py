"""Verdicts on made data: with a known effect, with none, with the opposite, and with too few seeds."""

from itertools import pairwise

import numpy as np
import pytest

from unireason_lib.ablation.claims import judge
from unireason_lib.ablation.grid import Claim
from unireason_lib.ablation.report import means, table_of_conditions
from unireason_lib.evaluation.statistics import compare
from unireason_lib.evaluation.tidy import runs


def table(shares, seeds=5, questions=120, draw=0, spread=0.01, common=0.0):
    """Answers of conditions that are right with these probabilities; questions differ in how hard they are, seeds by
    ``spread`` in each condition and by ``common`` in all alike."""
    rng = np.random.default_rng(draw)
    alike = rng.normal(0, common, seeds)
    hard = rng.normal(0, 0.1, questions)
    rows = []
    for name, share in shares.items():
        for seed in range(seeds):
            right = rng.random(questions) < np.clip(
                share + hard + alike[seed] + rng.normal(0, spread), 0, 1
            )
            rows += [
                {
                    "condition": name,
                    "seed": seed,
                    "id": f"q{k}",
                    "patient": f"p{k // 2}",
                    "dimension": "3d" if k % 2 else "2d",
                    "kind": "k",
                    "correct": float(right[k]),
                    "iou_first": None,
                }
                for k in range(questions)
            ]
    return rows


ONE = Claim("helps", "new", "old")


@pytest.mark.parametrize(
    "shares, verdict",
    [
        ({"old": 0.5, "new": 0.65}, "reproduced"),
        ({"old": 0.65, "new": 0.5}, "reversed"),
        ({"old": 0.5, "new": 0.5}, "not seen"),
    ],
)
def test_a_known_effect_gets_its_verdict(shares, verdict):
    (found,) = judge(table(shares), [ONE])
    assert found.verdict == verdict and found.comparison.seeds == (5, 5)
    assert found.comparison.h == pytest.approx(0, abs=0.15) or verdict != "not seen"


def test_where_there_is_nothing_little_is_seen():
    """Forty studies of nine claims about nothing: a false one is in few of them."""
    names = [f"c{k}" for k in range(10)]
    claims = [Claim(f"{b} is better", b, a) for a, b in pairwise(names)]
    wrong = 0
    for draw in range(40):
        rows = table(dict.fromkeys(names, 0.5), questions=60, draw=draw, spread=0.05)
        wrong += any(one.verdict != "not seen" for one in judge(rows, claims, samples=300))
    assert wrong <= 5  # two are expected at most


def test_the_number_of_claims_counts():
    rows = table({"old": 0.5, "new": 0.65}, draw=3)
    (alone,) = judge(rows, [ONE])
    many = judge(rows, [ONE, *(Claim(f"no {k}", "old", "old", dimension="2d") for k in range(19))])
    assert 0 < many[0].p < 0.5 and many[0].p == pytest.approx(20 * alone.p)


def test_claims_that_cannot_be_judged_count_as_claims():
    rows = table({"old": 0.5, "new": 0.6}, draw=3)
    (alone,) = judge(rows, [ONE])
    both = judge(rows, [ONE, Claim("lost", "never run", "old")])
    assert both[1].verdict == "cannot tell" and both[1].p is None
    assert both[0].p == pytest.approx(2 * alone.p)


def test_too_few_seeds_cannot_tell():
    (found,) = judge(table({"old": 0.3, "new": 0.9}, seeds=2), [ONE])
    assert found.verdict == "cannot tell" and "3 are needed" in found.why and found.p is None
    assert found.comparison.difference.low > 0  # it is said, not judged


def test_what_a_seed_shares_is_taken_out():
    """Seeds differ by more than the conditions do, but alike: pairing sees it, even where one seed is missing."""
    rows = table({"old": 0.45, "new": 0.57}, common=0.25, questions=400)
    (found,) = judge(rows, [ONE])
    assert found.verdict == "reproduced"
    loose = compare(runs(rows, "old")[0], runs(rows, "new")[0], runs(rows, "old")[1])
    assert loose.difference.low < 0  # not paired, it would not be seen
    (less,) = judge([row for row in rows if (row["condition"], row["seed"]) != ("new", 1)], [ONE])
    assert less.verdict == "reproduced" and less.comparison.seeds == (4, 4)
    few = [row for row in rows if row["condition"] == "old" or row["seed"] < 2]
    assert judge(few, [ONE])[0].verdict == "cannot tell"


def test_what_is_not_there_cannot_be_told():
    rows = table({"old": 0.5, "new": 0.5})
    for claim in (
        Claim("x", "new", "older"),
        Claim("x", "new", "old", value="iou_first"),
        Claim("x", "new", "old", kind="z"),
    ):
        (found,) = judge(rows, [claim])
        assert (
            found.verdict == "cannot tell"
            and found.comparison is None
            and "found none" in found.why
        )


def test_only_the_questions_of_the_claim_count():
    rows = table({"old": 0.5, "new": 0.5})
    for row in rows:
        if row["condition"] == "new" and row["dimension"] == "3d":
            row["correct"] = 1.0
    found = judge(
        rows,
        [
            Claim("in 3D", "new", "old", dimension="3d"),
            Claim("in 2D", "new", "old", dimension="2d"),
        ],
    )
    assert [one.verdict for one in found] == ["reproduced", "not seen"]


def test_form_is_told_for_each_dimension():
    rows = [
        {
            "condition": "volumes alone",
            "seed": seed,
            "id": f"q{k}",
            "patient": f"p{k}",
            "dimension": "3d" if k % 2 else "2d",
            "correct": 1.0,
            "in_format": float(k % 2),  # it writes the form in volumes, and in no slice
            "iou_first": None,
        }
        for seed in range(3)
        for k in range(8)
    ]
    found = means(rows, "volumes alone", samples=50)
    assert (
        found["form 3D, %"].value == 1 and found["form 2D, %"].value == 0 and "IoU 2D" not in found
    )
    head, line = table_of_conditions(rows)
    assert dict(zip(head, line, strict=True))["form 2D, %"].startswith("0.0 (0.0-")
