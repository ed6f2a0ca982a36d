"""Intervals and comparisons on data whose truth is known, by small simulations."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, t

from unireason_lib.evaluation.statistics import difference, holm, interval, plain, power, wilson

TRIALS = 300


class Study:
    """Conditions of several seeds that are asked the same questions about the same patients."""

    def __init__(self, seed=0, *, patients=10, each=4, seeds=3, of_seeds=0.05, of_patients=0.1):
        self.draw, self.seeds, self.of_seeds = np.random.default_rng(seed), seeds, of_seeds
        self.count, self.of_patients = patients, of_patients
        self.patients = np.repeat(np.arange(patients), each)

    def patient_effects(self):
        return self.draw.normal(0, self.of_patients, self.count)

    def values(self, value, effects, rights=True):
        """(seeds, questions) with the mean ``value``: rights and wrongs, or a noisy measure."""
        seeds = self.draw.normal(0, self.of_seeds, (self.seeds, 1))
        expected = value + seeds + effects[self.patients]
        noise = self.draw.random(expected.shape)
        return (noise < expected).astype(float) if rights else expected + 0.6 * (noise - 0.5)


def of_mean(study, rights):
    found = interval(study.values(0.6, study.patient_effects(), rights), study.patients)
    return found.low <= 0.6 <= found.high, None


def of_difference(study, rights):
    common, own = study.patient_effects(), 0.5 * study.patient_effects()
    a, b = study.values(0.6, common, rights), study.values(0.6, common + own, rights)
    found = difference(a, b, study.patients, paired_seeds=True)
    if math.isnan(found.p):  # nothing varies: nothing is claimed
        return True, 1.0
    return found.difference.low <= 0 <= found.difference.high, found.p


@pytest.mark.parametrize("rights", [True, False])
@pytest.mark.parametrize("kind", [of_mean, of_difference])
@pytest.mark.parametrize(("seeds", "patients"), [(1, 5), (1, 10), (3, 5), (5, 40)])
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
        sides = study.values(0.5, effects), study.values(0.5, effects)
        found = difference(*sides, study.patients).difference
        values.append(found.value)
        widths.append((found.high - found.low) / 2)
    assert 0.95 <= np.mean(widths) / (1.96 * np.std(values)) <= 1.35


@pytest.mark.parametrize("step", [0.0, 0.1, 1.0])
def test_where_nothing_varies_nobody_can_tell(step):
    """(p was 0, and the claim "reproduced"; its text said "nan".)"""
    a = np.outer([0.0, 0.3, 0.6], [1, 1]) * (step < 1)
    found = difference(a, a + step, ["p1", "p2"], paired_seeds=True)
    assert found.difference.value == pytest.approx(step) and math.isnan(found.p)
    assert math.isnan(found.difference.low) and plain(found)["p"] is None
    assert found.text().count("cannot tell") == 2 and "nan" not in found.text()
    assert math.isnan(difference(a, a + step, ["one patient"] * 2).p)
    assert math.isnan(interval(np.array([[0.3, 0.5]]), ["p", "p"]).low)
    adjusted = holm([found.p, 0.01])
    assert math.isnan(adjusted[0]) and adjusted[1] == 0.02  # it counts as one of two claims


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("patients", [1, 2, 20])
@pytest.mark.parametrize("seeds", [1, 5])
def test_patients_who_do_not_differ_are_worth_one_question_each(value, patients, seeds):
    """(Of all right ones, one function took questions and the other patients; of patients who all
    had the same mixed proportion, every reply counted.) Ten questions about each patient."""
    row = np.tile(np.arange(10) < 10 * value, patients).astype(float)
    found = interval(np.tile(row, (seeds, 1)), np.repeat(np.arange(patients), 10))
    expected = wilson(value * patients, patients)
    assert (found.low, found.high) == pytest.approx(expected) and found.patients == patients


def test_proportions_have_wilsons_interval_for_what_their_patients_are_worth():
    expected = binomtest(7, 12).proportion_ci(method="wilson")
    assert wilson(7, 12) == pytest.approx((expected.low, expected.high))

    def width(rights, patients):
        found = interval(np.array([rights]), patients)
        assert 0 <= found.low < found.high <= 1
        return found.high - found.low

    # twelve answers about three patients, who are all right or all wrong, are worth three
    rights = [1.0] * 8 + [0.0] * 4
    assert width(rights, np.repeat([0, 1, 2], 4)) > 1.3 * width(rights, range(12))
    # the same questions four times are no new evidence
    study = Study(2, patients=30, each=6, seeds=1)
    (row,), patients = study.values(0.5, study.patient_effects()), study.patients
    repeated = width(np.tile(row, 4), np.tile(patients, 4))
    assert repeated == pytest.approx(width(row, patients), rel=0.01)


def test_one_checkpoint_each_says_nothing_about_conditions():
    study, wrong, single = Study(6, patients=30, each=5, seeds=5, of_seeds=0.08), 0, 0
    for _ in range(200):
        effects = study.patient_effects()
        a, b = study.values(0.6, effects), study.values(0.6, effects)
        wrong += difference(a, b, study.patients).p < 0.05
        single += difference(a[:1], b[:1], study.patients).p < 0.05
    assert wrong / 200 <= 0.08 and single > 2 * wrong
    text = difference(a[:1], b[:1], study.patients).text()
    assert "Student's t" in text and "about checkpoints" in text


def test_power_is_how_often_an_effect_is_found():
    """Of normal differences with an error that each study estimates with four degrees."""
    draw, error, df, effect = np.random.default_rng(0), 0.04, 4, 0.1
    found = draw.normal(effect, error, 20_000)
    errors = error * np.sqrt(draw.chisquare(df, 20_000) / df)
    often = np.mean(found / errors > t.isf(0.025, df))
    assert often == pytest.approx(power(error, df, effect), abs=0.01)
    assert power(0.1, 4, 0.0) == pytest.approx(0.025)
    assert power(1, 30, 2.0, 0.01) < power(1, 30, 2.0) < power(1, 30, 3.0)


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
