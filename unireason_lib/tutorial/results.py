"""Rows that notebooks publish, and the table that a run of the tutorial ends with.

A row travels inside the notebook, as a cell output of a media type of its own beside plain text. So an executed
notebook carries its results wherever it goes, and needs no folder to write to.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from unireason_lib.errors import UniReasonError

MEDIA_TYPE = "application/vnd.unireason.result+json"


@dataclass(frozen=True)
class Result:
    """One published figure.

    Args:
        name: What was measured, in words.
        value: A finite number or a short text.
        unit: ``"%"``, ``"s"``, ``"x"``...; empty for a bare number.
        low, high: An interval around the number, in the same unit.
        note: What to know when reading it (an untrained model, synthetic scans).
        notebook: Where it comes from; filled in by :func:`collect`.
    """

    name: str
    value: float | int | str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""
    notebook: str = ""

    @property
    def text(self) -> str:
        """The value with unit and interval: ``3.4 x (3.1 to 3.8)``."""
        text = f"{_number(self.value)} {self.unit}".strip()
        if self.low is not None and self.high is not None:
            text += f" ({_number(self.low)} to {_number(self.high)})"
        return text


def publish(
    name: str,
    value: Any,
    unit: str = "",
    *,
    interval: tuple[float, float] | None = None,
    note: str = "",
) -> None:
    """Show a figure under a cell and add it to the tutorial's table of results.

    Args:
        name: What was measured, in words.
        value: A number (Python's or NumPy's scalar, finite) or a short text.
        unit: Unit of the number.
        interval: Its lower and upper end, in the same unit.
        note: What to know when reading it.

    Raises:
        UniReasonError: The value is not a finite number or a text.
    """
    from IPython.display import display

    low, high = interval or (None, None)
    result = Result(name, _plain(name, value), unit, _plain(name, low), _plain(name, high), note)
    data = {key: entry for key, entry in asdict(result).items() if entry not in ("", None)}
    text = f"{name}: {result.text}" + (f"  [{note}]" if note else "")
    display({MEDIA_TYPE: data, "text/plain": text}, raw=True)


def collect(notebook: Any, name: str) -> list[Result]:
    """The results published in an executed notebook, in order; of two with one name the later counts.

    Args:
        notebook: A notebook node.
        name: Its name, for :attr:`Result.notebook`.
    """
    rows = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get(MEDIA_TYPE)
            if data is not None:
                rows[data["name"]] = Result(**{**data, "notebook": name})
    return list(rows.values())


def results_table(results: list[Result]) -> str:
    """The rows as aligned text: notebook, what, value, note."""
    rows = [(row.notebook, row.name, row.text, row.note) for row in results]
    return aligned([("notebook", "result", "value", "note"), *rows])


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows of text with columns padded to equal width; the first row is a heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _plain(name: str, value: Any) -> Any:
    """A JSON value: NumPy and Torch scalars unwrapped."""
    if hasattr(value, "item"):
        with suppress(ValueError, RuntimeError):  # more than one element: refused below
            value = value.item()
    if (
        value is None
        or isinstance(value, str)
        or (isinstance(value, (int, float)) and math.isfinite(value))
    ):
        return value
    do = "publish one finite number or a text"
    raise UniReasonError(f"result {name!r}", "a finite number or text", repr(value), do)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value}"
