"""Windows: which scan values become black and which white. ``"percentile"`` (the paper's choice)
spans the 1st to the 99th percentile of the volume, ``"minmax"`` all of it; a pair of numbers is an
explicit range; and CT has its named windows, which only make sense for Hounsfield units.
"""

import warnings

import numpy as np

from unireason_lib.errors import ScanError, ScanWarning

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
"""Ranges in HU, ``level - width / 2`` to ``level + width / 2``: lung -600/1500, mediastinum 50/350,
abdomen (soft tissue) 50/400, liver 30/150, bone (spine) 400/1800, brain 40/80, stroke 40/40 (the
wider of two in use). Source: Radiopaedia, "Windowing (CT)". Institutions differ somewhat."""

PADDING_BELOW = -1100.0  # air is -1000 HU; below -1024, CT stores only what fills unscanned corners
AIR_BELOW = -500.0  # any CT in HU has lower values: around the patient, in the lungs or the bowel
SATURATED = 0.95  # proportion of a scan, background left out, that no window is meant to hide
_CHUNK = 2_000_000  # values counted at a time
_NARROWEST, _WIDEST = 1e-30, 1e30  # widths whose reciprocals are ordinary float32 numbers

Window = str | tuple[float, float]


def check_window(window: Window) -> tuple[float, float] | None:
    """The range of a window, None where the scan decides; :class:`ScanError` if there is none."""
    if isinstance(window, str) and window in ("percentile", "minmax"):
        return None
    try:
        pair = CT_WINDOWS[window] if isinstance(window, str) else window
        low, high = (float(value) for value in pair)
    except (KeyError, TypeError, ValueError):
        expected = f"a pair (low, high), percentile, minmax or one of {', '.join(CT_WINDOWS)}"
        raise ScanError("window", expected, repr(window), "choose one") from None
    if not _NARROWEST <= high - low <= _WIDEST:
        expected = f"low < high, {_NARROWEST:g} to {_WIDEST:g} apart"
        raise ScanError("window", expected, f"({low:g}, {high:g})", "swap or correct them")
    return low, high


def window_range(
    array: np.ndarray, window: Window = "percentile", source: object = "volume"
) -> tuple[float, float]:
    """The scan values that become 0 and 1; ``array`` is finite, of any shape.

    Where both percentiles are one value (a mostly empty scan), the full range is taken. ``source``
    is the name in messages: a ``ScanError`` for an unknown window, no contrast, or a named window
    that would show only one grey; padding left out, values unlike HU, or an explicit range below or
    above nearly all of the scan (a range of CT on MRI) are a ``ScanWarning``."""
    if (fixed := check_window(window)) is not None:
        check = _check_hounsfield if isinstance(window, str) else _check_saturation
        check(array, window, source)
        return fixed
    low, high = _span(array, window)
    if low < PADDING_BELOW:
        scanned, size = _scanned(array), array.size
        if scanned.size < size:
            padding = f"{1 - scanned.size / size:.0%} of it is padding of value {array.min():g}"
            message = f"{source}: {padding}, left out of the window"
            warnings.warn(message, ScanWarning, stacklevel=2)
        low, high = _span(scanned, window)
    if low == high:
        low, high = _span(array, "minmax")
    if low == high:
        do = "check the file, or give an explicit window (low, high)"
        raise ScanError(source, "a scan with contrast", f"the value {low:g} everywhere", do)
    return low, high


def to_grey(array: np.ndarray, window: Window, source: object = "image") -> np.ndarray:
    """A 2D scan as grey levels, uint8 of the same shape; one value everywhere is black."""
    if bad := int(array.size - np.count_nonzero(np.isfinite(array))):
        do = "fill them and save the image again"
        raise ScanError(source, "finite values", f"{bad} pixels NaN or infinite", do)
    if check_window(window) is None and array.min() == array.max():
        return np.zeros(array.shape, np.uint8)
    return _grey(array, window_range(array, window, source))


def _grey(array: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    values = (array.astype(np.float64) - bounds[0]) / (bounds[1] - bounds[0])
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _span(array: np.ndarray, window: str) -> tuple[float, float]:
    minmax = window == "minmax"
    return (float(array.min()), float(array.max())) if minmax else percentiles(array, (1, 99))


def _scanned(array: np.ndarray) -> np.ndarray:
    """The values without padding: most of what lies below air is then one constant."""
    inside, lowest = array >= PADDING_BELOW, array.min()
    count = array.size - int(np.count_nonzero(inside))
    constant = count and np.count_nonzero(array == lowest) >= 0.9 * count
    return array[inside] if constant and count < array.size else array


def _thinned(array: np.ndarray) -> np.ndarray:
    return array[tuple(slice(None, None, max(1, side // 64)) for side in array.shape)]


def _check_saturation(array: np.ndarray, window: tuple[float, float], source: object) -> None:
    values, (low, high) = _thinned(array), window
    values = values[values > values.min()]
    outside = max(np.count_nonzero(values < low), np.count_nonzero(values > high))
    if outside > SATURATED * values.size:
        message = f"{source}: {outside / values.size:.0%} of its values are on one side of the"
        do = "check that it was meant for such scans, or use percentile"
        warnings.warn(f"{message} window ({low:g}, {high:g}); {do}", ScanWarning, stacklevel=3)


def _check_hounsfield(array: np.ndarray, window: str, source: object) -> None:
    if _scanned(_thinned(array)).min() < AIR_BELOW:
        return
    scanned = _scanned(array)
    ends = np.array([scanned.min(), scanned.max()])
    found = f"no air near -1000 but values from {ends[0]:g} to {ends[1]:g}"
    do = "apply the slope and intercept that are missing, or choose another window"
    error = ScanError(source, f"Hounsfield units for the window {window!r}", found, do)
    if np.ptp(_grey(ends, CT_WINDOWS[window])) == 0:
        raise error
    warnings.warn(str(error), ScanWarning, stacklevel=3)


def percentiles(array: np.ndarray, ranks: tuple[float, ...]) -> tuple[float, ...]:
    """Exact percentiles with linear interpolation, as ``np.percentile`` gives them; integers of 8
    and 16 bits are counted in a histogram, neither sorted nor copied as a whole."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    if array.dtype.kind == "f" or array.dtype.itemsize > 2:
        wide = array.astype(np.float32) if array.dtype == np.float16 else array
        return tuple(np.percentile(wide, ranks).tolist())
    low, bins = int(array.min()), int(array.max()) - int(array.min()) + 1
    values = array.ravel(order="K")  # in the order of memory
    counts = np.zeros(bins, np.int64)
    for start in range(0, values.size, _CHUNK):
        counts += np.bincount(values[start : start + _CHUNK].astype(np.intp) - low, minlength=bins)
    cumulated = np.cumsum(counts)
    positions = np.asarray(ranks) / 100 * (array.size - 1)
    below = positions.astype(int)
    neighbours = np.minimum([below, below + 1], array.size - 1)
    first, second = np.searchsorted(cumulated, neighbours, side="right")
    between = first + (second - first) * (positions - below)
    return tuple((low + between).tolist())
