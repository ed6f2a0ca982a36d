"""Sources: where studies come from.

A source is anything that yields :class:`~unireason_lib.dataset.study.Study` objects one at a time and says
what they are. Most can also count their studies and make any one of them alone (``len(source)``,
``source[k]``): that is what lets workers share a source and an interrupted run go on in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from unireason_lib.dataset.sources.brain import BrainSource
from unireason_lib.dataset.sources.phantom import PhantomConfig, PhantomSource
from unireason_lib.dataset.study import Study

__all__ = ["BrainSource", "IndexedSource", "PhantomConfig", "PhantomSource", "Source"]


@runtime_checkable
class Source(Protocol):
    """Yields studies lazily.

    Attributes:
        name: Short name of the data set; also ``Study.source``.
        license: Terms under which its scans may be used.
        modality: Modality of its scans, or ``"mixed"``.
    """

    name: str
    license: str
    modality: str

    def __iter__(self) -> Iterator[Study]: ...


@runtime_checkable
class IndexedSource(Source, Protocol):
    """A source that knows how many studies it has and makes the k-th without the others."""

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Study: ...
