"""What happens, shown: boxes on slices, crops, token strips, curves, a viewer, a web page."""

# ruff: noqa: F401
from .figures import pipeline_figure, plot_intervals, plot_lines
from .images import show_images, show_record, show_slices, show_trace
from .page import TracePage
from .tokens import token_owners, token_strip
from .viewer import SliceViewer
