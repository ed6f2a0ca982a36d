"""Mixtures: how much of what a model sees.

The paper mixes 170K questions about pictures with 50K about volumes, and its main claim is about this ratio.
A mixture says how many records come from each part, by count or by weight, and draws them reproducibly::

    mixture = Mixture.by_count({"2d": 400_000, "3d": 60_000}, {"2d": 170_000, "3d": 50_000}, seed=1)
    for part, row in mixture.epoch(0):
        ...

Within an epoch nothing is drawn twice, as long as a part is large enough. The next epoch goes on where the
last one stopped: every record of a part is seen once before any is seen again, whatever its share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from unireason_lib.errors import DatasetError, explain

Item = TypeVar("Item")
PAPER = {"2d": 170_000, "3d": 50_000}
"""Records of UniMed-CoT by dimension."""


@dataclass(frozen=True)
class Mixture:
    """How many records of each part make an epoch.

    Args:
        sizes: Part -> number of records it has.
        counts: Part -> records an epoch.
        seed: Draws the order.

    Raises:
        DatasetError: Unknown parts, negative counts, an empty mixture, or records asked of an empty part.
    """

    sizes: Mapping[str, int]
    counts: Mapping[str, int]
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.counts) - set(self.sizes))
        empty = sorted(part for part, count in self.counts.items() if count and not self.sizes.get(part, 1))
        if unknown or empty or min(self.counts.values(), default=-1) < 0 or not sum(self.counts.values()):
            found = f"unknown {unknown}" if unknown else f"empty {empty}" if empty else str(dict(self.counts))
            raise DatasetError(
                explain(
                    "mixture",
                    expected=f"counts of 0 and more for {', '.join(self.sizes)}, not all 0",
                    found=found,
                    do="correct the counts",
                )
            )

    @classmethod
    def by_count(cls, sizes: Mapping[str, int], counts: Mapping[str, int], seed: int = 0) -> Mixture:
        """So many of each part; more than a part has means that some are seen again."""
        return cls(dict(sizes), dict(counts), seed)

    @classmethod
    def by_weight(
        cls, sizes: Mapping[str, int], weights: Mapping[str, float], total: int | None = None, seed: int = 0
    ) -> Mixture:
        """Parts in proportion to weights.

        Args:
            sizes: Part -> number of records it has.
            weights: Part -> weight, any positive scale.
            total: Records an epoch; None takes as many as are there without seeing any twice.
            seed: Draws the order.
        """
        shares = {part: weight for part, weight in weights.items() if weight}
        if not shares or min(shares.values()) < 0 or not set(shares) <= set(sizes):
            raise DatasetError(
                explain(
                    "mixture",
                    expected=f"positive weights for some of {', '.join(sizes)}",
                    found=str(dict(weights)),
                    do="correct the weights",
                )
            )
        whole = sum(shares.values())
        if total is None:
            total = int(min(sizes[part] * whole / weight for part, weight in shares.items()))
        counts = {part: int(total * weight / whole) for part, weight in shares.items()}
        rest = sorted(shares, key=lambda part: counts[part] - total * shares[part] / whole)
        for part in rest[: total - sum(counts.values())]:  # largest remainders first, so the sum is exact
            counts[part] += 1
        return cls(dict(sizes), counts, seed)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def epoch(self, number: int = 0, block: int = 0) -> Iterator[tuple[str, int]]:
        """The records of one epoch in their order.

        Args:
            number: Which epoch, from 0; the same number gives the same records.
            block: 0 shuffles freely. A positive number shuffles blocks of so many neighbouring rows and the
                rows within a few blocks: nearly as random, and much faster to read from Parquet, which is
                stored in groups of rows.

        Yields:
            ``(part, row)``.
        """
        parts = [part for part, count in self.counts.items() if count]
        rows = {part: self._rows(part, number, block) for part in parts}
        turns = np.repeat(np.arange(len(parts)), [self.counts[part] for part in parts])
        self._generator(number, 1).shuffle(turns)
        for turn in turns:
            yield parts[turn], next(rows[parts[turn]])

    def select(self, items: Mapping[str, Iterable[Item]], number: int = 0) -> Iterator[tuple[str, Item]]:
        """The items of one epoch from streams, in the order of the streams: for writing a mixed set in one pass.

        Args:
            items: Part -> all its items, as many as :attr:`sizes` says.
            number: Which epoch.

        Yields:
            ``(part, item)``; an item that is due twice comes twice in a row.
        """
        for part, stream in items.items():
            times = np.zeros(self.sizes[part], np.int64)
            if self.counts.get(part):
                np.add.at(times, np.fromiter(self._rows(part, number, 0), np.int64), 1)
            for item, due in zip(stream, times, strict=True):
                for _ in range(due):
                    yield part, item

    def _rows(self, part: str, number: int, block: int) -> Iterator[int]:
        """``counts[part]`` rows of a part for an epoch, a stretch of one endless sequence of shuffled passes."""
        size, count = self.sizes[part], self.counts[part]
        start = number * count
        while count:
            turn, offset = divmod(start, size)
            taken = self._pass(part, turn, block)[offset : offset + count]
            yield from taken.tolist()
            start, count = start + len(taken), count - len(taken)

    def _pass(self, part: str, turn: int, block: int) -> np.ndarray:
        size = self.sizes[part]
        draw = self._generator(turn, 0, part)
        if not block:
            return draw.permutation(size)
        blocks = draw.permutation(-(-size // block))
        rows = (blocks[:, None] * block + np.arange(block)).ravel()
        rows = rows[rows < size]
        near = 8 * block
        for start in range(0, size, near):
            draw.shuffle(rows[start : start + near])
        return rows

    def _generator(self, *key: int | str) -> np.random.Generator:
        numbers = [n for k in key for n in (k.encode() if isinstance(k, str) else (k,))]
        return np.random.default_rng([self.seed, *numbers])
