"""Machines, and what is assumed of them; all numbers are in ``machines.yaml``, with their sources."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from unireason_lib.errors import PlanError
from unireason_lib.profiles import near


class Range(NamedTuple):
    """A number that is not known better than between two others."""

    low: float
    high: float

    def __add__(self, other: Any) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Range:
        """Both ends, times a number."""
        return Range(self.low * factor, self.high * factor)

    def text(self, write: Callable[[float], str]) -> str:
        """``low-high``, or one of them where they read the same."""
        low, high = write(self.low), write(self.high)
        return low if low == high else f"{low}-{high}"


@cache
def assumptions() -> dict[str, Any]:
    """The content of ``machines.yaml``."""
    return yaml.safe_load((Path(__file__).parent / "machines.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind.

    Attributes:
        gpu: Its name in ``machines.yaml``.
        count: How many.
        memory: Bytes of one, as its maker counts (10^9).
        peak: FLOP/s of one, dense, 16 bit.
        bandwidth: Bytes/s of its memory.
        bf16: Whether it multiplies in bfloat16.
        price: US dollars for an hour of one.
    """

    gpu: str
    count: int
    memory: float
    peak: float
    bandwidth: float
    bf16: bool
    price: Range

    @classmethod
    def named(cls, text: str, price: float | None = None) -> Cluster:
        """``8xH100`` -> eight of them.

        Args:
            text: Number, ``x``, name; the number may be left out.
            price: US dollars for an hour of one GPU, in place of the assumed range.

        Raises:
            PlanError: The text cannot be read, or nothing is known of the GPU.
        """
        known = assumptions()["gpus"]
        found = re.fullmatch(r"(?:(\d+)\s*[x*])?\s*([\w.-]+)", text.strip(), re.IGNORECASE)
        names = {name.lower(): name for name in known}
        if found is None or found[2].lower() not in names or found[1] == "0":
            hint = near(found[2], list(known)) if found else "like 8xH100"
            raise PlanError(
                "--gpus", "a number, x and one of " + ", ".join(known), repr(text), hint
            )
        name = names[found[2].lower()]
        one = known[name]
        return cls(
            gpu=name,
            count=int(found[1] or 1),
            memory=one["memory"] * 1e9,
            peak=one["peak"] * 1e12,
            bandwidth=one["bandwidth"] * 1e9,
            bf16=one["bf16"],
            price=Range(*one["price"]) if price is None else Range(price, price),
        )

    @property
    def text(self) -> str:
        """``8xH100``."""
        return f"{self.count}x{self.gpu}"
