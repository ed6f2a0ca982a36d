"""Where studies come from: phantoms, made when asked for, the brain template that a package
installs, and folders of published data sets or of one's own (``LAYOUTS.md``)."""

import inspect
from pathlib import Path
from typing import Any

from unireason_lib.dataset.sources import m3d_seg, nifti, samed2d
from unireason_lib.dataset.sources.base import Entry, Source, SourceSpec
from unireason_lib.dataset.sources.brain import BrainSource
from unireason_lib.dataset.sources.phantom import PhantomConfig, PhantomSource
from unireason_lib.errors import DatasetError, raising

__all__ = ["SOURCES", "BrainSource", "Entry", "PhantomConfig", "PhantomSource", "Source"]
__all__ += ["SourceSpec", "open_source"]

_ALL = (PhantomSource, BrainSource, samed2d.SAMed2DSource, samed2d.SAMMed2DSource)
_ALL += (m3d_seg.M3DSegSource, nifti.TotalSegmentatorSource, nifti.DecathlonSource)
SOURCES: dict[str, type[Source]] = {source.registered: source for source in _ALL}
SOURCES["folder"] = nifti.FolderOfScans


def open_source(name_or_spec: str, path: str | Path | None = None, **options: Any) -> Source:
    """Open a source by a key of :data:`SOURCES` or a specification (``name:path,option=value``).
    ``path`` and options (arguments of its class) win over those of the text. A
    :class:`DatasetError` names an unknown name or option, a missing path, or a folder in another
    layout."""
    spec = SourceSpec.parse(name_or_spec)
    if spec.name not in SOURCES:
        raise DatasetError(spec.name, f"one of {', '.join(SOURCES)}", "another name", "correct it")
    source, options = SOURCES[spec.name], {**spec.options, **options}
    if (path := path or spec.path) is not None:
        options["path"] = path
    needed = ", ".join(inspect.signature(source).parameters) or "no options"
    with raising(DatasetError, spec.name, f"what it needs of {needed}", "give those alone"):
        return source(**options)
