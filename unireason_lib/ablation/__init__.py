"""The claims as experiments: a grid of conditions and seeds, the notebook runs that make it, and the
verdicts that follow from its table of replies."""

from .claims import Verdict, judge, means, table_of_claims, table_of_conditions
from .grid import Claim, Condition, Grid, Job, estimate, load_grid, plan
from .study import Study, read_study, run_study

__all__ = [
    "Claim",
    "Condition",
    "Grid",
    "Job",
    "Study",
    "Verdict",
    "estimate",
    "judge",
    "load_grid",
    "means",
    "plan",
    "read_study",
    "run_study",
    "table_of_claims",
    "table_of_conditions",
]
