"""The claims as experiments: a grid of conditions and seeds, the notebook runs that make it, and
the verdicts that follow from its table of replies."""

from unireason_lib.ablation.claims import judge
from unireason_lib.ablation.grid import Grid, load_grid, plan
from unireason_lib.ablation.study import Study, run_study

__all__ = ["Grid", "Study", "judge", "load_grid", "plan", "run_study"]
