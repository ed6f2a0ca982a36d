"""Pictures of what happens: boxes on slices, crops, token strips, curves, a slice viewer, and traces as one HTML page.

Names are loaded when they are first used, so a command that only writes HTML does not wait for matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "figures": ("show_box", "show_masks", "show_pictures", "show_slices"),
    "question_figures": ("show_questions", "show_record", "show_replies"),
    "reply_figures": ("hero_figure", "show_trace"),
    "tokens": ("loss_strip", "token_strip", "token_strip_html"),
    "learning_figures": ("show_learning",),
    "lookups": ("Look", "show_attention", "show_hops", "show_picture_tokens"),
    "exercise_figures": ("show_exercises",),
    "charts": (
        "pipeline_figure",
        "plot_bars",
        "plot_counts",
        "plot_intervals",
        "plot_lines",
        "plot_stages",
    ),
    "page": ("trace_html",),
    "viewer": ("SliceViewer",),
}

__all__ = [
    "Look",
    "SliceViewer",
    "hero_figure",
    "loss_strip",
    "pipeline_figure",
    "plot_bars",
    "plot_counts",
    "plot_intervals",
    "plot_lines",
    "plot_stages",
    "show_attention",
    "show_box",
    "show_exercises",
    "show_hops",
    "show_learning",
    "show_masks",
    "show_picture_tokens",
    "show_pictures",
    "show_questions",
    "show_record",
    "show_replies",
    "show_slices",
    "show_trace",
    "token_strip",
    "token_strip_html",
    "trace_html",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
