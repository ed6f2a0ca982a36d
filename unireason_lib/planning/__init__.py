"""The bill before it is paid: tokens, FLOPs, memory, hours and money of a profile on GPUs, from stated formulas."""

from unireason_lib.planning.bill import Bill, Line, bill
from unireason_lib.planning.machines import Cluster, Range, assumptions
from unireason_lib.planning.memory import STRATEGIES, Memory, memory
from unireason_lib.planning.shapes import Shape, published, published_config, shape_of
from unireason_lib.planning.work import Sample, Work, samples_of

__all__ = [
    "STRATEGIES",
    "Bill",
    "Cluster",
    "Line",
    "Memory",
    "Range",
    "Sample",
    "Shape",
    "Work",
    "assumptions",
    "bill",
    "memory",
    "published",
    "published_config",
    "samples_of",
    "shape_of",
]
