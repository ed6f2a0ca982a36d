"""Sources: where studies come from.

A source is anything that yields :class:`~unireason_lib.dataset.study.Study` objects one at a time and says
what they are. Most can also count their studies and make any one of them alone (``len(source)``,
``source[k]``): that is what lets workers share a source and an interrupted run go on in the middle.

===================  ==========================================================  ===============================
name                 what is read                                                module
===================  ==========================================================  ===============================
``phantom``          nothing: torso phantoms, made when asked for                ``sources.phantom``
``brain``            the MNI152 template, installed with a package               ``sources.brain``
``sa-med2d``         SA-Med2D-20M: pictures with one mask a structure            ``sources.samed2d``
``sam-med2d``        pictures in the layout of the SAM-Med2D demo                ``sources.samed2d``
``m3d-seg``          M3D-Seg, raw or prepared arrays                             ``sources.m3d_seg``
``totalsegmentator`` TotalSegmentator: one mask a structure or one label map     ``sources.totalsegmentator``
``decathlon``        one task of the Medical Segmentation Decathlon              ``sources.decathlon``
``folder``           any folder of NIfTI scans and label maps                    ``sources.folder``
===================  ==========================================================  ===============================
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from unireason_lib.dataset.sources.brain import BrainSource
from unireason_lib.dataset.sources.phantom import PhantomConfig, PhantomSource
from unireason_lib.dataset.study import Study
from unireason_lib.errors import DatasetError, explain

__all__ = [
    "SOURCES",
    "BrainSource",
    "IndexedSource",
    "PhantomConfig",
    "PhantomSource",
    "Source",
    "open_source",
]

SOURCES: dict[str, tuple[str, str]] = {
    "phantom": ("phantom", "PhantomSource"),
    "brain": ("brain", "BrainSource"),
    "sa-med2d": ("samed2d", "SAMed2DSource"),
    "sam-med2d": ("samed2d", "SAMMed2DSource"),
    "m3d-seg": ("m3d_seg", "M3DSegSource"),
    "totalsegmentator": ("totalsegmentator", "TotalSegmentatorSource"),
    "decathlon": ("decathlon", "DecathlonSource"),
    "folder": ("folder", "FolderOfScans"),
}
"""Name -> module of this package and class in it; a module is imported when its source is opened."""


@runtime_checkable
class Source(Protocol):
    """Yields studies lazily.

    Attributes:
        name: Short name of the data set; also ``Study.source``.
        license: Terms under which its scans may be used.
        modality: Modality of its scans, or ``"mixed"``.

    A source whose terms let its scans be passed on with a data set made from them says ``redistributable = True``;
    one that says nothing does not.
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


def open_source(name: str, path: str | Path | None = None, **options: Any) -> IndexedSource:
    """Open a source by its name.

    Args:
        name: A key of :data:`SOURCES`.
        path: The folder of the data set; None for the sources that need none.
        **options: Arguments of the source, see its class. ``config`` of a phantom may be a mapping.

    Raises:
        DatasetError: An unknown name or option, a path that is missing or too many, or a folder that is not in
            the layout of the source.
    """
    if name not in SOURCES:
        raise _bad(name, f"a source of {', '.join(SOURCES)}", repr(name), "name one of them")
    module, kind = SOURCES[name]
    source = getattr(import_module(f"{__name__}.{module}"), kind)
    known = inspect.signature(source).parameters
    if "path" in known and path is None:
        raise _bad(name, "the folder of the data set", "none", f"give it: {name}:FOLDER")
    if "path" not in known and path is not None:
        raise _bad(name, "no path, it needs none", repr(str(path)), f"write {name} alone")
    if unknown := sorted(set(options) - (set(known) - {"path"})):
        allowed = ", ".join(option for option in known if option != "path") or "none"
        raise _bad(name, f"options of {allowed}", ", ".join(unknown), "correct or remove them")
    if isinstance(options.get("config"), Mapping):
        try:
            options["config"] = PhantomConfig(**options["config"])
        except TypeError as error:
            raise _bad(f"{name} config", "fields of PhantomConfig", str(error), "correct them") from error
    return source(**({} if path is None else {"path": path}), **options)


def _bad(subject: object, expected: str, found: str, do: str) -> DatasetError:
    return DatasetError(explain(subject, expected=expected, found=found, do=do))
