"""Intervals and comparisons on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from unireason_lib.errors import RequestError
from unireason_lib.evaluation import (
    bootstrap_mean,
    cohens_h,
    compare,
    holm,
    mcnemar,
    mean_over_runs,
    wilson,
)
from unireason_lib.evaluation.statistics import power


def clustered(draw: np.random.Generator, patients: int, each: int, mean: float, spread: float):
    """Answers of patients who differ in how hard they are: rights and wrongs, and whose they are."""
    chance = np.clip(draw.normal(mean, spread, patients), 0, 1)
    right = draw.random((patients, each)) < chance[:, None]
    return right.astype(float).ravel(), np.repeat(np.arange(patients), each)


def runs(
    draw, seeds: int, patients: int, each: int, mean: float, seed_spread: float, hard: np.ndarray
):
    """A condition: runs that differ from seed to seed, on questions that are as hard for all."""
    made = []
    for _ in range(seeds):
        chance = np.clip(mean + draw.normal(0, seed_spread) + hard, 0, 1)
        right = draw.random((patients, each)) < chance[:, None]
        made.append({f"{p}/{q}": float(right[p, q]) for p in range(patients) for q in range(each)})
    return made


def whose(patients: int, each: int) -> dict[str, int]:
    return {f"{p}/{q}": p for p in range(patients) for q in range(each)}


def test_the_interval_of_clustered_answers_covers_their_mean():
    draw = np.random.default_rng(1)
    trials, hits, naive = 300, 0, 0
    for trial in range(trials):
        values, patients = clustered(draw, 40, 5, 0.6, 0.25)
        found = bootstrap_mean(values, patients, samples=400, seed=trial)
        hits += found.low <= 0.6 <= found.high
        single = bootstrap_mean(values, np.arange(len(values)), samples=400, seed=trial)
        naive += single.low <= 0.6 <= single.high
    assert 0.90 <= hits / trials <= 0.985
    assert naive < hits  # as if the questions were independent: too sure


def test_the_bootstrap_is_seeded_and_resamples_patients():
    draw = np.random.default_rng(2)
    values, patients = clustered(draw, 30, 6, 0.5, 0.3)
    one = bootstrap_mean(values, patients, seed=3)
    assert (
        one == bootstrap_mean(values, patients, seed=3) != bootstrap_mean(values, patients, seed=4)
    )
    assert one.value == pytest.approx(values.mean()) and one.n == 180 and one.clusters == 30
    # duplicated questions of the same patients are no new evidence
    again = bootstrap_mean(np.repeat(values, 4), np.repeat(patients, 4), seed=3)
    assert again.half_width == pytest.approx(one.half_width, rel=0.01)


def test_small_cells_and_agreeing_replies_get_wilsons_interval():
    all_right = bootstrap_mean([1.0] * 25, range(25))
    assert all_right.method == "wilson" and all_right.high == 1 and 0.8 < all_right.low < 0.9
    assert wilson(25, 25) == pytest.approx((all_right.low, all_right.high))
    expected = binomtest(7, 12).proportion_ci(method="wilson")
    few = bootstrap_mean([1.0] * 7 + [0.0] * 5, range(12))
    assert (few.low, few.high) == pytest.approx((expected.low, expected.high))
    # twelve answers about three patients, who are all right or all wrong, are worth three
    alike = bootstrap_mean([1.0] * 8 + [0.0] * 4, [0] * 4 + [1] * 4 + [2] * 4)
    assert alike.half_width > 1.3 * bootstrap_mean([1.0] * 8 + [0.0] * 4, range(12)).half_width


def test_one_patient_has_no_interval_unless_it_is_a_share():
    found = bootstrap_mean([0.3, 0.5], ["p", "p"])
    assert math.isnan(found.low) and found.to_dict()["low"] is None
    share = bootstrap_mean([1.0, 0.0, 1.0], ["p"] * 3)
    assert share.low < 0.3 and share.high > 0.9
    with pytest.raises(RequestError, match="0 values"):
        bootstrap_mean([], [])


def test_a_known_difference_is_found_and_its_interval_covers_it():
    draw, trials, covered, found = np.random.default_rng(5), 120, 0, 0
    for trial in range(trials):
        hard = draw.normal(0, 0.1, 40)
        a, b = (runs(draw, 1, 40, 4, mean, 0.0, hard)[0] for mean in (0.5, 0.7))
        result = compare(a, b, whose(40, 4), samples=600, seed=trial)
        covered += result.difference.low <= 0.2 <= result.difference.high
        found += result.p < 0.05
    assert covered / trials >= 0.9 and found / trials > 0.85
    assert (
        result.over == "questions"
        and result.mcnemar is not None
        and result.h == pytest.approx(cohens_h(result.a, result.b))
    )


def test_without_a_difference_seeds_that_vary_do_not_feign_one():
    draw, trials = np.random.default_rng(6), 200
    false_alarms = single_alarms = 0
    for trial in range(trials):
        hard = draw.normal(0, 0.1, 30)
        a, b = (runs(draw, 5, 30, 5, 0.6, 0.08, hard) for _ in range(2))
        both = compare(a, b, whose(30, 5), samples=500, seed=trial)
        false_alarms += not both.difference.low <= 0 <= both.difference.high
        one = compare(a[0], b[0], whose(30, 5), samples=500, seed=trial)
        single_alarms += not one.difference.low <= 0 <= one.difference.high
    assert false_alarms / trials <= 0.09
    assert single_alarms > 2 * false_alarms  # one checkpoint each says nothing about the conditions
    assert both.over == "seeds and questions" and both.seeds == (5, 5) and both.mcnemar is None


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_p_values_hold_in_the_tail_that_a_correction_uses(spread):
    """Where there is no difference p falls below any level at most so often, whatever seeds do: also where the first of
    nine claims has to be, at 0.05 / 9. (A share of resamples beyond zero does so eight times of 300, where 1.7 may.)"""
    draw, trials, small, usual = np.random.default_rng(10), 300, 0, 0
    for trial in range(trials):
        hard = draw.normal(0, 0.1, 40)
        a, b = (runs(draw, 5, 40, 6, 0.5, spread, hard) for _ in range(2))
        p = compare(a, b, whose(40, 6), paired_seeds=True, samples=600, seed=trial).p
        small, usual = small + (p < 0.05 / 9), usual + (p < 0.05)
    assert usual / trials <= 0.08 and small <= 5


def test_noise_of_replies_is_not_counted_twice():
    """Runs that differ by the luck of replies only. (Counted twice, the ratio below is 1.5.)"""
    draw, values, widths = np.random.default_rng(10), [], []
    for trial in range(200):
        hard = draw.normal(0, 0.1, 100)
        a, b = (runs(draw, 5, 100, 2, 0.5, 0.0, hard) for _ in range(2))
        found = compare(a, b, whose(100, 2), samples=300, seed=trial).difference
        values.append(found.value)
        widths.append(found.half_width)
    assert 1.0 <= np.mean(widths) / (1.96 * np.std(values)) <= 1.4


def test_two_seeds_give_wider_intervals_than_eight():
    draw, few, many = np.random.default_rng(7), [], []
    for trial in range(20):
        hard = draw.normal(0, 0.05, 40)
        a, b = (runs(draw, 8, 40, 5, mean, 0.06, hard) for mean in (0.5, 0.7))
        few.append(compare(a[:2], b[:2], whose(40, 5), samples=500, seed=trial).difference)
        many.append(compare(a, b, whose(40, 5), samples=500, seed=trial).difference)
    assert np.mean([d.half_width for d in few]) > 1.5 * np.mean([d.half_width for d in many])
    assert sum(d.low > 0 for d in few) < sum(d.low > 0 for d in many) > 18


def test_paired_seeds_take_out_what_seeds_share():
    draw = np.random.default_rng(8)
    patients, each, shared = 40, 5, draw.normal(0, 0.15, 6)
    a, b = [], []
    for shift in shared:
        a += runs(draw, 1, patients, each, 0.5 + shift, 0.0, np.zeros(patients))
        b += runs(draw, 1, patients, each, 0.62 + shift, 0.0, np.zeros(patients))
    loose = compare(a, b, whose(patients, each))
    paired = compare(a, b, whose(patients, each), paired_seeds=True)
    assert paired.difference.value == loose.difference.value
    assert paired.difference.half_width < 0.6 * loose.difference.half_width
    with pytest.raises(RequestError, match="as many of each"):
        compare(a[:3], b, whose(patients, each), paired_seeds=True)


def test_power_is_how_often_an_effect_is_seen():
    """Of studies with five seeds that differ, of 60 patients, with and without an effect."""
    draw, trials = np.random.default_rng(13), 300
    for effect in (0.0, 0.1):
        seen, errors = 0, []
        for trial in range(trials):
            hard = draw.normal(0, 0.1, 60)
            a, b = (runs(draw, 5, 60, 3, mean, 0.05, hard) for mean in (0.5, 0.5 + effect))
            found = compare(a, b, whose(60, 3), paired_seeds=True, samples=300, seed=trial)
            seen += found.p < 0.05 and found.difference.value > 0
            errors.append(found.error)
        error = math.sqrt(np.mean(np.square(errors)))  # that of one study is known roughly
        assert seen / trials == pytest.approx(power(error, 4, effect), abs=0.07)
    assert power(0.1, 4, 0.0) == pytest.approx(0.025) == power(0.1, math.inf, 0.0)
    assert power(1, 1e5, 2.0) == pytest.approx(power(1, 9e3, 2.0), abs=1e-3)
    assert power(1, 30, 2.0, 0.01) < power(1, 30, 2.0) < power(1, 30, 3.0)
    with pytest.raises(RequestError, match="above 0"):
        power(0.0, 4, 0.1)


def test_the_mean_of_a_condition_covers_it():
    draw, trials, covered = np.random.default_rng(9), 150, 0
    for trial in range(trials):
        hard = draw.normal(0, 0.1, 30)
        made = runs(draw, 5, 30, 4, 0.6, 0.05, hard)
        found = mean_over_runs(made, whose(30, 4), samples=500, seed=trial)
        covered += found.low <= 0.6 <= found.high
    assert 0.9 <= covered / trials


def test_a_mean_near_the_end_stays_a_share():
    draw = np.random.default_rng(12)
    made = runs(draw, 3, 20, 4, 0.985, 0.02, np.zeros(20))
    found = mean_over_runs(made, whose(20, 4))
    assert 0.9 < found.low < found.value < found.high <= 1


def test_runs_that_all_agree_get_wilsons_interval():
    made = [{f"q{k}": 1.0 for k in range(40)} for _ in range(3)]
    found = mean_over_runs(made, {f"q{k}": k // 2 for k in range(40)})
    assert (found.value, found.high, found.method) == (1.0, 1.0, "wilson")
    assert found.low == pytest.approx(wilson(20, 20)[0])
    lengths = mean_over_runs([{"q": 3.0}, {"q": 3.0}], {"q": "p"})
    assert (lengths.low, lengths.high) == (3.0, 3.0)  # no share


def test_runs_without_a_common_question_are_refused():
    with pytest.raises(RequestError, match="0 shared"):
        compare({"a": 1.0}, {"b": 1.0}, {"a": 0, "b": 1})


def test_mcnemar_counts_only_who_alone_is_right():
    a, b = [1] * 10 + [0] * 12 + [1] * 50, [0] * 10 + [1] * 12 + [1] * 50
    assert mcnemar(a, b) == pytest.approx(binomtest(12, 22, 0.5).pvalue)
    assert mcnemar([1, 0], [1, 0]) == 1.0
    assert mcnemar([0] * 10, [1] * 10) == pytest.approx(2 / 2**10)


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm({"x": 0.5, "y": 0.001}) == pytest.approx({"x": 0.5, "y": 0.002})
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_cohens_h():
    assert cohens_h(0.5, 0.5) == 0 and cohens_h(0, 1) == pytest.approx(math.pi)
    assert cohens_h(0.5, 0.6910) == pytest.approx(0.392, abs=0.01)


def test_cohens_d_stands_for_measures_that_are_no_shares():
    draw = np.random.default_rng(13)
    a = {str(k): float(v) for k, v in enumerate(draw.normal(0.4, 0.2, 2000))}
    b = {str(k): float(v) for k, v in enumerate(draw.normal(0.5, 0.2, 2000))}
    found = compare(a, b, {k: k for k in a})
    assert (
        found.h is None
        and found.d == pytest.approx(0.5, abs=0.07)
        and found.to_dict()["d"] == found.d
    )
    flat = compare(dict.fromkeys(a, 0.5), dict.fromkeys(a, 0.5), {k: k for k in a})
    assert flat.d == 0 and flat.p == 1
