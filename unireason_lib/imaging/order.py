"""Are the slices in order? Neighbours in a body look alike: what is shuffled, repeated or missing
shows in the correlation of each slice with the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unireason_lib.imaging.volume import Volume

MIN_SLICES = 5  # fewer say too little about their order
BREAK = 0.25
"""A break: the correlation falls this far below that of the pairs before and after it, or two
slices differ (1 - correlation) by 0.02 and 6 times as much as any of the 3 pairs before and after.
In whole scans that ratio stayed below 5; where slices were left out it was 13."""
BREAK_RATIO, BREAK_REACH, BREAK_LEAST = 6.0, 3, 0.02
SHUFFLED = 0.25  # neighbours in order are this far from the mean correlation of any two to 1


@dataclass(frozen=True)
class SliceOrder:
    """What :func:`slice_order_report` measured."""

    correlations: np.ndarray  # (Z - 1,) of each slice with the next
    duplicates: tuple[int, ...]  # indices of slices that equal the one before
    breaks: tuple[int, ...] = ()  # indices after which it falls far below the pairs around it
    looks_shuffled: bool = False  # neighbours hardly resemble each other more than any two slices

    @property
    def messages(self) -> list[str]:
        """What speaks against the order, in words."""
        words = {
            f"slices that repeat the one before {list(self.duplicates[:5])}": self.duplicates,
            f"slices may be missing or misplaced after slices {list(self.breaks[:5])}": self.breaks,
            "slices look shuffled": self.looks_shuffled,
        }
        return [text for text, applies in words.items() if applies]


def slice_order_report(scan: Volume | np.ndarray) -> SliceOrder:
    """Look for shuffled, repeated and missing slices in a volume or ``(Z, Y, X)`` array; those that
    are constant or not finite are left out. Two swapped neighbours, or a gap of a slice or two in a
    finely sliced scan, are not seen."""
    array = scan.array if isinstance(scan, Volume) else np.asarray(scan)
    rows, columns = (max(1, side // 64) for side in array.shape[1:])
    flat = array[:, ::rows, ::columns].reshape(len(array), -1).astype(np.float32)
    flat[~np.isfinite(flat).all(axis=1)] = 0
    spread = flat.std(axis=1)
    alive = spread > 1e-6
    normalized = (flat - flat.mean(axis=1, keepdims=True)) / np.where(alive, spread, 1)[:, None]
    neighbours = (normalized[1:] * normalized[:-1]).mean(axis=1)
    both = alive[1:] & alive[:-1]
    alike = np.flatnonzero(both & (neighbours > 0.999)).tolist()
    duplicates = tuple(i + 1 for i in alike if np.array_equal(array[i], array[i + 1]))
    if both.sum() < MIN_SLICES - 1:
        return SliceOrder(neighbours, duplicates)
    pairs = (normalized[alive] @ normalized[alive].T) / normalized.shape[1]
    any_two = float(pairs[~np.eye(len(pairs), dtype=bool)].mean())
    gain = (float(neighbours[both].mean()) - any_two) / max(1 - any_two, 1e-6)
    apart = np.where(both, 1 - neighbours, np.nan)
    breaks = tuple(i for i in range(1, len(apart) - 1) if _breaks(apart, i))
    return SliceOrder(neighbours, duplicates, breaks, gain < SHUFFLED)


def _breaks(apart: np.ndarray, i: int) -> bool:
    """Whether pair ``i`` differs far more than those around it; what is not known is no break."""
    if apart[i] > max(apart[i - 1], apart[i + 1]) + BREAK:
        return bool(np.isfinite(apart[i - 1 : i + 2]).all())
    near = apart[max(i - BREAK_REACH, 0) : i + BREAK_REACH + 1]
    if len(near) <= 2 * BREAK_REACH or not np.isfinite(near).all():
        return False
    return bool(apart[i] > max(BREAK_RATIO * np.delete(near, BREAK_REACH).max(), BREAK_LEAST))
