"""Are the slices in order? Neighbours in a body look alike: what is shuffled or repeated shows in
the correlation of each slice with the next."""

from dataclasses import dataclass

import numpy as np

from unireason_lib.imaging.volume import Volume

MIN_SLICES = 5  # fewer say too little about their order
SHUFFLED = 0.25  # neighbours in order are this far from the mean correlation of any two to 1


@dataclass(frozen=True)
class SliceOrder:
    """What :func:`slice_order_report` measured."""

    correlations: np.ndarray  # (Z - 1,) of each slice with the next
    duplicates: tuple[int, ...]  # indices of slices that equal the one before
    looks_shuffled: bool = False  # neighbours hardly resemble each other more than any two slices

    @property
    def messages(self) -> list[str]:
        """What speaks against the order, in words."""
        repeated = f"slices that repeat the one before {list(self.duplicates[:5])}"
        shuffled = ["slices look shuffled"] if self.looks_shuffled else []
        return [repeated, *shuffled] if self.duplicates else shuffled


def slice_order_report(scan: Volume | np.ndarray) -> SliceOrder:
    """Look for shuffled and repeated slices in a volume or ``(Z, Y, X)`` array; those that are
    constant or not finite are left out. Missing slices and two swapped neighbours are not seen."""
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
    return SliceOrder(neighbours, duplicates, gain < SHUFFLED)
