"""Mixtures: exact counts, nothing twice before everything once, the same in every run."""

from collections import Counter

import pytest

from unireason_lib.dataset.mixture import PAPER, Mixture
from unireason_lib.errors import DatasetError

SIZES = {"2d": 1700, "3d": 600}


def test_counts_are_exact_and_nothing_comes_twice_in_an_epoch():
    mixture = Mixture.by_count(SIZES, {"2d": 340, "3d": 100}, seed=5)
    drawn = list(mixture.epoch(0))
    assert len(drawn) == len(mixture) == 440
    assert Counter(part for part, _ in drawn) == {"2d": 340, "3d": 100}
    assert len(set(drawn)) == 440


def test_the_papers_ratio_by_weight():
    mixture = Mixture.by_weight({"2d": 400_000, "3d": 60_000}, PAPER)
    assert mixture.counts == {"2d": 204_000, "3d": 60_000}  # the scarce part decides
    assert Mixture.by_weight(SIZES, PAPER, total=23).counts == {"2d": 18, "3d": 5}
    assert (
        sum(Mixture.by_weight({"a": 9, "b": 9, "c": 9}, {"a": 1, "b": 1, "c": 1}, total=10).counts.values())
        == 10
    )


def test_the_same_seed_gives_the_same_order_and_another_another():
    def first(seed, epoch):
        return list(Mixture.by_count(SIZES, {"2d": 50, "3d": 50}, seed).epoch(epoch))

    assert first(1, 3) == first(1, 3)
    assert len({str(first(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_a_part_does_not_depend_on_the_other_parts():
    alone = [row for _, row in Mixture.by_count(SIZES, {"3d": 60}, 1).epoch(2)]
    mixed = [row for part, row in Mixture.by_count(SIZES, {"2d": 500, "3d": 60}, 1).epoch(2) if part == "3d"]
    assert alone == mixed


@pytest.mark.parametrize("block", [0, 7, 64])
def test_over_epochs_every_record_is_seen_before_any_is_seen_again(block):
    mixture = Mixture.by_count({"a": 100}, {"a": 30}, seed=2)
    seen = [row for epoch in range(10) for _, row in mixture.epoch(epoch, block)]
    for start in range(0, 300, 100):
        assert sorted(seen[start : start + 100]) == list(range(100))


def test_more_than_there_is_repeats_evenly():
    drawn = Counter(row for _, row in Mixture.by_count({"a": 10}, {"a": 25}).epoch(0))
    assert sorted(drawn.values()) == [2] * 5 + [3] * 5


def test_blocks_keep_neighbours_near():
    rows = [row for _, row in Mixture.by_count({"a": 100_000}, {"a": 100_000}).epoch(0, block=100)]
    groups = [row // 100 for row in rows[:1000]]
    assert sorted(rows) == list(range(100_000)) and len(set(groups)) <= 16


def test_selecting_from_streams_takes_the_same_records():
    mixture = Mixture.by_count({"a": 40, "b": 7}, {"a": 10, "b": 14}, seed=1)
    chosen = list(mixture.select({"a": range(40), "b": iter("tuvwxyz")}))
    expected = Counter((part, row if part == "a" else "tuvwxyz"[row]) for part, row in mixture.epoch(0))
    assert Counter(chosen) == expected
    assert [item for part, item in chosen if part == "a"] == sorted(
        item for part, item in chosen if part == "a"
    )


@pytest.mark.parametrize(
    "counts", [{}, {"2d": 0}, {"4d": 5}, {"2d": -1, "3d": 4}, {"2d": 5, "none": 3}], ids=str
)
def test_impossible_mixtures_are_refused(counts):
    with pytest.raises(DatasetError, match="mixture"):
        Mixture.by_count({**SIZES, "none": 0}, counts)


@pytest.mark.parametrize("weights", [{}, {"2d": -1.0}, {"5d": 1.0}], ids=str)
def test_impossible_weights_are_refused(weights):
    with pytest.raises(DatasetError, match="weights"):
        Mixture.by_weight(SIZES, weights)
