"""Asking a model: one question, or a file of them, with results that survive a crash."""

# ruff: noqa: F401
from unireason_lib.inference.batch import answer_stream, ask, infer_file
from unireason_lib.inference.checkpoint import Checkpoint, model_identity
from unireason_lib.inference.results import complete_results, read_results
from unireason_lib.inference.samples import Sample, read_samples
from unireason_lib.inference.scan import Reading, Scan, read_scan, scan_below
