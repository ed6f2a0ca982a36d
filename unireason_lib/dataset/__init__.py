"""The data set room: from scans with outlines to records that a model can learn from."""

from unireason_lib.dataset.sources import BrainSource, IndexedSource, PhantomConfig, PhantomSource, Source
from unireason_lib.dataset.sources.brain import brain_slice, brain_study
from unireason_lib.dataset.sources.phantom import patients, phantom, phantom_slice
from unireason_lib.dataset.study import Structure, Study, kind_of, readable_name, side_of

__all__ = [
    "BrainSource",
    "IndexedSource",
    "PhantomConfig",
    "PhantomSource",
    "Source",
    "Structure",
    "Study",
    "brain_slice",
    "brain_study",
    "kind_of",
    "patients",
    "phantom",
    "phantom_slice",
    "readable_name",
    "side_of",
]
