"""Intervals and comparisons on data whose truth is known, by small simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, t

from unireason_lib.errors import RequestError
from unireason_lib.evaluation.statistics import (
    cohens_h,
    compare,
    holm,
    mcnemar,
    mean,
    mean_over_runs,
    power,
    wilson,
)

TRIALS = 300


class Study:
    """Conditions of several seeds that are asked the same questions about the same patients."""

    def __init__(self, seed=0, *, patients=10, each=4, seeds=3, of_seeds=0.05, of_patients=0.1):
        self.draw, self.seeds, self.of_seeds = np.random.default_rng(seed), seeds, of_seeds
        self.patients, self.each, self.of_patients = patients, each, of_patients
        self.code = np.repeat(np.arange(patients), each)
        self.whose = {str(q): int(p) for q, p in enumerate(self.code)}

    def patient_effects(self):
        return self.draw.normal(0, self.of_patients, self.patients)

    def runs(self, value, effects, rights=True):
        """Runs with the mean ``value``: rights and wrongs, or a measure with some noise."""
        seeds = self.draw.normal(0, self.of_seeds, (self.seeds, 1))
        expected = value + seeds + effects[self.code]
        noise = self.draw.random(expected.shape)
        values = noise < expected if rights else expected + 0.6 * (noise - 0.5)
        return [dict(zip(self.whose, map(float, row), strict=True)) for row in values]


def of_mean(study, rights):
    found = mean_over_runs(study.runs(0.6, study.patient_effects(), rights), study.whose)
    return found.low <= 0.6 <= found.high, None


def of_difference(study, rights):
    common, own = study.patient_effects(), 0.5 * study.patient_effects()
    a, b = study.runs(0.6, common, rights), study.runs(0.6, common + own, rights)
    found = compare(a, b, study.whose, paired_seeds=True)
    if math.isnan(found.p):  # nothing varies: nothing is claimed
        return True, 1.0
    return found.difference.low <= 0 <= found.difference.high, found.p


@pytest.mark.parametrize("rights", [True, False])
@pytest.mark.parametrize("kind", [of_mean, of_difference])
@pytest.mark.parametrize(
    ("seeds", "patients"), [(1, 5), (1, 10), (3, 5), (3, 10), (5, 5), (5, 10), (5, 40)]
)
def test_intervals_cover_the_truth_with_few_patients_and_few_seeds(kind, rights, seeds, patients):
    """(The bootstrap covered 0.88 with few patients.)"""
    spread = 0.0 if seeds == 1 else 0.06
    study = Study(seeds, patients=patients, seeds=seeds, of_seeds=spread)
    covered, p = zip(*(kind(study, rights) for _ in range(TRIALS)), strict=True)
    assert np.mean(covered) >= 0.92  # 0.95 less three standard errors of the simulation
    if kind is of_difference:
        assert np.mean(np.array(p) < 0.05) <= 0.08 and np.mean(np.array(p) < 0.01) <= 0.025


def test_intervals_are_not_wider_than_they_must_be():
    """The luck of replies is counted once: counted twice, the ratio below is 1.5."""
    study, values, widths = Study(1, patients=60, each=2, seeds=5, of_seeds=0.0), [], []
    for _ in range(TRIALS):
        effects = study.patient_effects()
        found = compare(study.runs(0.5, effects), study.runs(0.5, effects), study.whose).difference
        values.append(found.value)
        widths.append(found.half_width)
    assert 0.95 <= np.mean(widths) / (1.96 * np.std(values)) <= 1.35


def test_the_standard_error_is_that_of_the_analysis_of_variance():
    """By hand, for two seeds and three patients with one question each."""
    x = np.array([[0.1, 0.5, 0.3], [0.4, 0.9, 0.2]])
    runs = [dict(zip("abc", row, strict=True)) for row in x]
    found = compare(
        [dict.fromkeys("abc", 0.0)] * 2, runs, dict(zip("abc", "xyz", strict=True)), True
    )
    of_seeds, of_patients = x.mean(1).var(ddof=1) / 2, x.mean(0).var(ddof=1) / 3
    left = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    residual = (left**2).sum() / 2 / 6
    variance = of_patients + max(0, of_seeds - residual)
    df = variance**2 / (of_seeds**2 / 1 + of_patients**2 / 2)
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert found.df == pytest.approx(df)
    assert found.p == pytest.approx(2 * t.sf(x.mean() / math.sqrt(variance), df))


@pytest.mark.parametrize("step", [0.0, 0.1, 1.0])
def test_where_nothing_varies_nobody_can_tell(step):
    """(p was 0, and the claim "reproduced".)"""
    whose = {"q1": "p1", "q2": "p2"}
    a = [dict.fromkeys(whose, 0.3 * k * (step < 1)) for k in range(3)]
    b = [{name: value + step for name, value in run.items()} for run in a]
    found = compare(a, b, whose, paired_seeds=True)
    assert found.difference.value == pytest.approx(step) and math.isnan(found.p)
    assert math.isnan(found.difference.low) and found.to_dict()["p"] is None
    assert "cannot be told" in found.to_markdown()
    assert math.isnan(compare(a, b, dict.fromkeys(whose, "one patient")).p)
    assert math.isnan(mean([0.3, 0.5], ["p", "p"]).low) and mean([math.nan], ["p"]) is None
    adjusted = holm({"x": found.p, "y": 0.01})
    assert math.isnan(adjusted["x"]) and adjusted["y"] == 0.02  # it counts as one of two claims


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("patients", [1, 2, 20])
def test_all_right_and_all_wrong_have_one_interval_in_every_function(value, patients):
    """(One function took questions, the other patients.) Ten questions about each patient."""
    whose = {f"q{k}": k % patients for k in range(10 * patients)}
    run = dict.fromkeys(whose, value)
    expected = wilson(value * patients, patients)
    for found in (
        mean(list(run.values()), list(whose.values())),
        mean_over_runs([run], whose),
        mean_over_runs([run] * 5, whose),
    ):
        assert (found.low, found.high) == pytest.approx(expected) and found.patients == patients


def test_proportions_have_wilsons_interval_for_what_their_patients_are_worth():
    expected = binomtest(7, 12).proportion_ci(method="wilson")
    assert wilson(7, 12) == pytest.approx((expected.low, expected.high))
    # twelve answers about three patients, who are all right or all wrong, are worth three
    rights = [1.0] * 8 + [0.0] * 4
    few, many = mean(rights, [0] * 4 + [1] * 4 + [2] * 4), mean(rights, list(range(12)))
    assert few.half_width > 1.3 * many.half_width and 0 <= few.low < few.high <= 1
    # the same questions four times are no new evidence
    study = Study(2, patients=30, each=6, seeds=1)
    (run,) = study.runs(0.5, study.patient_effects())
    values, patients = list(run.values()), list(study.whose.values())
    again = mean(values * 4, patients * 4)
    assert again.half_width == pytest.approx(mean(values, patients).half_width, rel=0.01)


def test_paired_seeds_take_out_what_seeds_share():
    study = Study(8, patients=40, each=5, seeds=1, of_seeds=0.0, of_patients=0.0)
    a, b = [], []
    for shift in study.draw.normal(0, 0.15, 6):
        a += study.runs(0.5 + shift, np.zeros(40))
        b += study.runs(0.62 + shift, np.zeros(40))
    loose, paired = (compare(a, b, study.whose, paired_seeds=p) for p in (False, True))
    assert paired.difference.value == loose.difference.value
    assert paired.standard_error < 0.6 * loose.standard_error
    with pytest.raises(RequestError, match="as many runs of each"):
        compare(a[:3], b, study.whose, paired_seeds=True)


def test_one_checkpoint_each_says_nothing_about_conditions():
    study, wrong, single = Study(6, patients=30, each=5, seeds=5, of_seeds=0.08), 0, 0
    for _ in range(200):
        effects = study.patient_effects()
        a, b = study.runs(0.6, effects), study.runs(0.6, effects)
        wrong += compare(a, b, study.whose).p < 0.05
        single += compare(a[0], b[0], study.whose).p < 0.05
    assert wrong / 200 <= 0.08 and single > 2 * wrong
    found = compare(a[0], b[0], study.whose)
    assert found.mcnemar is not None and found.h == pytest.approx(cohens_h(found.a, found.b))
    assert "Student's t" in found.to_markdown() and "these checkpoints" in found.to_markdown()
    assert compare(a, b, study.whose).mcnemar is None


def test_power_is_how_often_an_effect_is_found():
    study = Study(13, patients=60, each=3, seeds=5)
    for effect in (0.0, 0.1):
        found, errors = 0, []
        for _ in range(300):
            effects = study.patient_effects()
            a, b = study.runs(0.5, effects), study.runs(0.5 + effect, effects)
            one = compare(a, b, study.whose, paired_seeds=True)
            found += one.p < 0.05 and one.difference.value > 0
            errors.append(one.standard_error)
        error = math.sqrt(np.mean(np.square(errors)))  # that of one study is known roughly
        assert found / 300 == pytest.approx(power(error, 4, effect), abs=0.07)
    assert power(0.1, 4, 0.0) == pytest.approx(0.025) == power(0.1, math.inf, 0.0)
    assert power(1, 30, 2.0, 0.01) < power(1, 30, 2.0) < power(1, 30, 3.0)
    with pytest.raises(RequestError, match="above 0"):
        power(0.0, 4, 0.1)


def test_runs_without_a_common_question_are_refused():
    with pytest.raises(RequestError, match="0 that 2 runs share"):
        compare({"a": 1.0}, {"b": 1.0}, {"a": 0, "b": 1})


def test_mcnemar_counts_only_who_alone_is_right():
    a, b = [1] * 10 + [0] * 12 + [1] * 50, [0] * 10 + [1] * 12 + [1] * 50
    assert mcnemar(a, b) == pytest.approx(binomtest(12, 22, 0.5).pvalue)
    assert mcnemar([1, 0], [1, 0]) == 1.0 and mcnemar([0] * 10, [1] * 10) == 2 / 2**10


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm({"x": 0.5, "y": 0.001}) == pytest.approx({"x": 0.5, "y": 0.002})
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    assert cohens_h(0.5, 0.5) == 0 and cohens_h(0, 1) == pytest.approx(math.pi)
