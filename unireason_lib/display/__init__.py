"""What happens, shown: boxes on slices, crops, token strips, curves, a viewer, a web page."""

from .charts import pipeline_figure, plot_bars, plot_counts, plot_intervals, plot_lines
from .images import (
    show_box,
    show_images,
    show_masks,
    show_questions,
    show_replies,
    show_slices,
)
from .page import trace_html
from .tokens import loss_owners, loss_strip, token_strip
from .trace_figure import hero_figure, show_record, show_trace
from .viewer import SliceViewer

__all__ = [
    "SliceViewer",
    "hero_figure",
    "loss_owners",
    "loss_strip",
    "pipeline_figure",
    "plot_bars",
    "plot_counts",
    "plot_intervals",
    "plot_lines",
    "show_box",
    "show_images",
    "show_masks",
    "show_questions",
    "show_record",
    "show_replies",
    "show_slices",
    "show_trace",
    "token_strip",
    "trace_html",
]
