"""Windows: which scan values become black and which white.

``"percentile"`` (the paper's choice) spans the 1st to the 99th percentile of the volume, ``"minmax"`` all of
it; a pair of numbers is an explicit range, in Hounsfield units for CT; and CT has its named windows.
"""

from __future__ import annotations

import numpy as np

from unireason_lib.errors import ScanError, explain

CT_WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-1350.0, 150.0),
    "mediastinum": (-125.0, 225.0),
    "abdomen": (-150.0, 250.0),
    "liver": (-45.0, 105.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "stroke": (20.0, 60.0),
}
"""Ranges in HU, ``level - width / 2`` to ``level + width / 2``, of customary level/width pairs: lung -600/1500,
mediastinum 50/350, abdomen (soft tissue) 50/400, liver 30/150, bone 400/1800, brain 40/80, stroke 40/40 (Radiopaedia,
"Windowing (CT)"; institutions differ somewhat, an explicit range says exactly what is meant)."""

LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.0
"""The paper's percentiles."""

_CHUNK = 4_000_000

Window = str | tuple[float, float]


def window_range(
    array: np.ndarray, window: Window = "percentile", source: str = "volume"
) -> tuple[float, float]:
    """The values that become 0 and 1.

    Args:
        array: Scan values, finite.
        window: ``"percentile"``, ``"minmax"``, ``(low, high)`` or a name of :data:`CT_WINDOWS`. When both
            percentiles are the same value but the volume is not constant (a mostly empty one), the full range
            is taken.
        source: Name for messages.

    Returns:
        ``(low, high)`` with low < high.

    Raises:
        ScanError: The window is unknown or reversed, or a volume without contrast has no range to take.
    """
    if isinstance(window, str) and window in CT_WINDOWS:
        return CT_WINDOWS[window]
    if window == "percentile":
        low, high = percentiles(array, (LOW_PERCENTILE, HIGH_PERCENTILE))
        if low < high:
            return low, high
    if window in ("percentile", "minmax"):
        low, high = float(array.min()), float(array.max())
        if low < high:
            return low, high
        raise ScanError(
            explain(
                source,
                expected="a volume with contrast",
                found=f"the value {low:g} everywhere",
                do="check the file",
            )
        )
    try:
        low, high = (float(value) for value in window)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        names = ", ".join(("percentile", "minmax", *CT_WINDOWS))
        raise ScanError(
            explain(
                "window",
                expected=f"a pair (low, high) or one of {names}",
                found=repr(window),
                do="choose one",
            )
        ) from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise ScanError(
            explain("window", expected="low < high", found=f"({low:g}, {high:g})", do="swap or correct them")
        )
    return low, high


def percentiles(array: np.ndarray, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Exact percentiles with linear interpolation, as ``np.percentile`` gives them.

    16-bit and smaller integers are counted in a histogram, chunk by chunk, which needs neither a sorted nor a
    float copy; other types are partitioned.

    Args:
        array: Any shape, at least one value.
        shares: Percentiles in [0, 100].
    """
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 2:
        return tuple(float(value) for value in np.percentile(array, shares))
    smallest = int(np.iinfo(array.dtype).min)
    counts = np.zeros(2 ** (8 * array.dtype.itemsize), np.int64)
    for chunk in _chunks(array):
        unsigned = (
            chunk.astype(f"u{array.dtype.itemsize}", copy=False)
            if smallest == 0
            else _shifted(chunk, smallest)
        )
        counts += np.bincount(unsigned.ravel(), minlength=counts.size)
    cumulated = np.cumsum(counts)
    found = []
    for share in shares:
        rank = share / 100 * (array.size - 1)
        below = int(np.floor(rank))
        first, second = (
            np.searchsorted(cumulated, [below, min(below + 1, array.size - 1)], side="right") + smallest
        )
        found.append(float(first + (second - first) * (rank - below)))
    return tuple(found)


def _shifted(chunk: np.ndarray, smallest: int) -> np.ndarray:
    unsigned = (
        chunk.view(f"u{chunk.dtype.itemsize}")
        if chunk.dtype.isnative
        else chunk.astype(chunk.dtype.newbyteorder("="))
    )
    unsigned = unsigned.view(f"u{chunk.dtype.itemsize}")
    return unsigned ^ np.array(-smallest, unsigned.dtype)


def _chunks(array: np.ndarray):
    plane = max(1, int(np.prod(array.shape[1:], dtype=np.int64)))
    step = max(1, _CHUNK // plane)
    for first in range(0, len(array), step):
        yield array[first : first + step]
