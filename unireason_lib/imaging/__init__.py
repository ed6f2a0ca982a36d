"""Scans in, slices out: one arrangement for every format, and boxes that find back."""

# ruff: noqa: F401, I001  (one line a module)
from unireason_lib.imaging.crops import crop_rectangle, crop_region, slice_range
from unireason_lib.imaging.frame import QWEN_FRAME, ProcessorFrame
from unireason_lib.imaging.labels import check_same_grid, label_boxes, label_places, whole_labels
from unireason_lib.imaging.order import SliceOrder, slice_order_report
from unireason_lib.imaging.read import load_image, load_volume, nifti_grid, npz_headers
from unireason_lib.imaging.serialize import PAPER_SIZE, Serialization, SliceStack, check_size
from unireason_lib.imaging.serialize import serialize, serialize_labels
from unireason_lib.imaging.volume import MAX_VOXELS, UNKNOWN_AFFINE, Volume, orient
from unireason_lib.imaging.window import CT_WINDOWS, Window, check_window, percentiles, to_grey
from unireason_lib.imaging.window import window_range
