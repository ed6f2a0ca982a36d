"""Asking a model a benchmark, and saying what its replies are worth.

    open_benchmark (items) -> evaluate (one JSON line an item) -> read_table -> summary, compare

Each arrow can be gone alone: lines that somebody else wrote can be measured, and a benchmark of
one's own asked.
"""

# ruff: noqa: F401
from unireason_lib.evaluation.benchmarks import open_benchmark, record_item, slice_benchmark
from unireason_lib.evaluation.controls import CONTROLS
from unireason_lib.evaluation.items import Benchmark, Item, most_likely_answers
from unireason_lib.evaluation.run import ask_items, evaluate, shown_results, slice_consistency
from unireason_lib.evaluation.statistics import Comparison, Interval, holm, power, wilson
from unireason_lib.evaluation.table import as_table, compare, mean, read_table, report, summary
