"""What shows itself in a notebook: the viewer, and objects as tables."""

import io

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.dataset import Study
from unireason_lib.display import SliceViewer
from unireason_lib.errors import RequestError
from unireason_lib.imaging import Volume

AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])  # spacing (3, 2, 1) mm
SCRIPT = "<script>alert(1)</script>"


def volume(**more):
    array = np.tile(np.arange(10.0)[:, None, None] * 100 - 900, (1, 20, 30))
    return Volume(array, AFFINE, SCRIPT, **more)


def shown(viewer):
    return np.asarray(Image.open(io.BytesIO(viewer.children[0].value)))


def test_the_viewer_follows_slider_window_and_boxes():
    viewer = SliceViewer(volume(), {SCRIPT: Box3D(3, 4, 6, 9, 12, 9)}, window=(-900, 0), width=300)
    assert viewer.slider.value == 7, "the middle of the box"
    first = shown(viewer)
    assert first.shape == (400, 300, 3), "in proportion: 20 x 2 mm by 30 x 1 mm"
    assert first[200, 280].tolist() == [round(700 / 900 * 255)] * 3
    assert first[120, 30].tolist() == [86, 180, 233], "the left edge of the box"
    viewer.slider.value = 2
    assert shown(viewer)[120, 30].tolist() == [round(200 / 900 * 255)] * 3, "no box on this slice"
    viewer.window.label = "lung"
    assert viewer.window.value == (-1350, 150)
    assert shown(viewer)[120, 30].tolist() == [round(650 / 1500 * 255)] * 3
    assert SCRIPT not in viewer.children[-1].value
    data, _ = viewer._repr_mimebundle_()
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(data)


def test_the_viewer_shows_images_and_refuses_what_is_none(slices):
    viewer = SliceViewer(slices, width=48)
    assert viewer.slider.value == 4 and np.array_equal(shown(viewer), np.asarray(slices[4]))
    with pytest.raises(RequestError):
        SliceViewer(slices, ["box"])


def test_objects_show_themselves_without_the_markup_of_others(volume_trace):
    html = volume()._repr_html_()
    assert "10 x 20 x 30" in html and "3 x 2 x 1" in html and "L-P-S" in html
    assert html.count("data:image/png;base64,") == 3
    assert "assumed" in volume(has_affine=False)._repr_html_()
    labels = np.zeros((10, 20, 30), int)
    labels[2:4, 5:9, 6:9] = 1
    about = {"id": SCRIPT, "patient": SCRIPT, "source": "test", "modality": "CT"}
    study = Study.from_labels(labels, {1: SCRIPT, 2: "spleen"}, scan=volume(), **about)
    shown_study, shown_trace = study._repr_html_(), volume_trace._repr_html_()
    assert "24 voxels" in shown_study and "spleen" in shown_study
    assert shown_trace.count("<img") == 7 and "&lt;think&gt;It lies at" in shown_trace
    assert "outside" in shown_trace and "56 injected" in shown_trace
    assert "<script" not in html + shown_study + shown_trace
