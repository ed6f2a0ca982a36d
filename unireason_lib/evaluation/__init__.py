"""Asking a model a benchmark, and saying what its replies are worth.

    open_benchmark (items) -> evaluate (one JSON line an item) -> Report (a table with intervals)

Each arrow can be gone alone: lines that somebody else wrote can be measured, and a benchmark of
one's own asked.
"""

# ruff: noqa: F401
from unireason_lib.evaluation.benchmarks import open_benchmark
from unireason_lib.evaluation.consistency import consistency, read_consistency, slice_benchmark
from unireason_lib.evaluation.controls import CONTROLS
from unireason_lib.evaluation.items import Benchmark, Item, most_likely_answers
from unireason_lib.evaluation.metrics import measure, reliability
from unireason_lib.evaluation.report import Report
from unireason_lib.evaluation.run import ask_items, evaluate
from unireason_lib.evaluation.statistics import Comparison, Interval, compare, holm, mean, wilson
from unireason_lib.evaluation.table import as_table, markdown, read_results
