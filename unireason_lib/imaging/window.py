"""Windows: which scan values become black and which white.

``"percentile"`` (the paper's choice) spans the 1st to the 99th percentile of the volume, ``"minmax"`` all of
it; a pair of numbers is an explicit range, in Hounsfield units for CT; and CT has its named windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unireason_lib.errors import ScanError, explain
from unireason_lib.imaging.volume import memory_order

CT_WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-1350.0, 150.0),
    "mediastinum": (-125.0, 225.0),
    "abdomen": (-150.0, 250.0),
    "soft tissue": (-150.0, 250.0),
    "liver": (-45.0, 105.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "stroke": (20.0, 60.0),
}
"""Ranges in HU, ``level - width / 2`` to ``level + width / 2``, of customary level/width pairs: lung -600/1500,
mediastinum 50/350, abdomen (soft tissue) 50/400, liver 30/150, bone (spine) 400/1800, brain 40/80, stroke 40/40 (the
wider of two in use). Source: Radiopaedia, "Windowing (CT)". Institutions differ somewhat; an explicit range says
exactly what is meant."""

LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.0
"""The paper's percentiles."""

_CHUNK = 2_000_000
_HISTOGRAM = 2**22
_NARROWEST, _WIDEST = 1e-30, 1e30  # widths whose reciprocals are ordinary float32 numbers

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
        ScanError: The window is unknown, reversed, or too narrow or wide to compute with, or a volume without contrast
            has no range to take.
    """
    if not isinstance(window, str):
        return _explicit(window)
    if window in CT_WINDOWS:
        return CT_WINDOWS[window]
    if window not in ("percentile", "minmax"):
        raise _unknown(window)
    if window == "percentile":
        low, high = percentiles(array, (LOW_PERCENTILE, HIGH_PERCENTILE))
        if low < high:
            return low, high
    low, high = float(array.min()), float(array.max())
    if not low < high:
        raise ScanError(
            explain(
                source,
                expected="a volume with contrast",
                found=f"the value {low:g} everywhere",
                do="check the file, or give an explicit window (low, high)",
            )
        )
    return low, high


def _explicit(window: Any) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError):
        raise _unknown(window) from None
    width = high - low
    if not (_NARROWEST <= width <= _WIDEST):
        raise ScanError(
            explain(
                "window",
                expected=f"low < high, {_NARROWEST:g} to {_WIDEST:g} apart",
                found=f"({low:g}, {high:g})",
                do="swap or correct them",
            )
        )
    return low, high


def _unknown(window: Any) -> ScanError:
    names = ", ".join(("percentile", "minmax", *CT_WINDOWS))
    return ScanError(
        explain(
            "window", expected=f"a pair (low, high) or one of {names}", found=repr(window), do="choose one"
        )
    )


def percentiles(array: np.ndarray, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Exact percentiles with linear interpolation, as ``np.percentile`` gives them.

    Integers are counted in a histogram, chunk by chunk, which needs neither a sorted nor a float copy. Floats, and
    integers spread over more than :data:`_HISTOGRAM` values, are partitioned.

    Args:
        array: Any shape, at least one value, all finite.
        shares: Percentiles in [0, 100].
    """
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if array.dtype.kind == "f":
        return tuple(
            np.percentile(array.astype(np.result_type(array, np.float32), copy=False), shares).tolist()
        )
    low, high = int(array.min()), int(array.max())
    if high - low >= _HISTOGRAM:
        return tuple(np.percentile(array, shares).tolist())
    cumulated = np.cumsum(_histogram(array, low, high))
    found = []
    for share in shares:
        rank = share / 100 * (array.size - 1)
        below = int(rank)
        ranks = (below, min(below + 1, array.size - 1))
        first, second = (int(index) for index in np.searchsorted(cumulated, ranks, side="right"))
        found.append(low + first + (second - first) * (rank - below))
    return tuple(float(value) for value in found)


def _histogram(array: np.ndarray, low: int, high: int) -> np.ndarray:
    """How often each of ``low .. high`` occurs, counted in chunks along the slowest axis in memory."""
    array = array.transpose(memory_order(array))
    step = max(1, _CHUNK * len(array) // array.size)
    wide = np.uint64 if array.dtype == np.uint64 else np.int64
    counts = np.zeros(high - low + 1, np.int64)
    for first in range(0, len(array), step):
        above = np.subtract(array[first : first + step], wide(low), dtype=wide).astype(np.intp, copy=False)
        counts += np.bincount(above.ravel(order="K"), minlength=counts.size)
    return counts
