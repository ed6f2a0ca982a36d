"""From scans with outlines to records that a model can learn from."""

# ruff: noqa: F401
from unireason_lib.dataset.sources import BrainSource, PhantomConfig, PhantomSource, Source
from unireason_lib.dataset.sources.brain import brain_study
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice
from unireason_lib.dataset.study import Structure, Study, kind_of, readable_name
