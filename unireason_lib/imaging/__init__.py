"""Scans in, slices out: one arrangement for every format, windows, serialization, and boxes that find the way back."""

from unireason_lib.imaging.frame import QWEN_FRAME, ProcessorFrame
from unireason_lib.imaging.labels import check_same_grid, label_boxes
from unireason_lib.imaging.order import SliceOrder, slice_order_report
from unireason_lib.imaging.read import load_image, load_volume
from unireason_lib.imaging.serialize import PAPER_SIZE, SliceStack, serialize, serialize_labels
from unireason_lib.imaging.volume import Volume
from unireason_lib.imaging.window import CT_WINDOWS, percentiles, window_range

__all__ = [
    "CT_WINDOWS",
    "PAPER_SIZE",
    "QWEN_FRAME",
    "ProcessorFrame",
    "SliceOrder",
    "SliceStack",
    "Volume",
    "check_same_grid",
    "label_boxes",
    "load_image",
    "load_volume",
    "percentiles",
    "serialize",
    "serialize_labels",
    "slice_order_report",
    "window_range",
]
