"""Asking a model: one question, or a file of them, with results that survive a crash and lead back to the scan."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "batch": (
        "Checkpoint",
        "Summary",
        "answer_all",
        "ask",
        "in_format",
        "infer_file",
        "record_of",
        "summarize",
    ),
    "reply": ("describe_reply",),
    "results": ("ResultsFile", "read_results", "write_whole"),
    "samples": ("Sample", "inside", "letters_of", "read_samples"),
    "scene": ("Reading", "Scene", "read_scene"),
}

__all__ = [
    "Checkpoint",
    "Reading",
    "ResultsFile",
    "Sample",
    "Scene",
    "Summary",
    "answer_all",
    "ask",
    "describe_reply",
    "in_format",
    "infer_file",
    "inside",
    "letters_of",
    "read_results",
    "read_samples",
    "read_scene",
    "record_of",
    "summarize",
    "write_whole",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
