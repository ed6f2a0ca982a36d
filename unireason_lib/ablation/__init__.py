"""The claims as experiments: a grid of conditions and seeds, the notebook runs that make it, and
the verdicts that follow from its table of replies."""

from .claims import judge
from .grid import Grid, load_grid, plan
from .study import Study, run_study

__all__ = ["Grid", "Study", "judge", "load_grid", "plan", "run_study"]
