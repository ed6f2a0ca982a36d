"""The viewer: slices, windows and boxes, and a reply that continues from the user's region. Widgets
are set in Python here; ``test_in_a_browser.py`` does it in JupyterLab. And objects as tables."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.dataset import Study
from unireason_lib.display import SliceViewer
from unireason_lib.errors import RequestError
from unireason_lib.grounding import GroundedRequest
from unireason_lib.imaging import Volume, serialize

SCRIPT = "<script>alert(1)</script>"


def volume():
    array = np.tile(np.arange(10.0)[:, None, None] * 100 - 900, (1, 20, 30))
    return Volume(array, np.diag([-1.0, -2.0, 3.0, 1.0]), SCRIPT)  # spacing (3, 2, 1) mm


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
    assert SCRIPT not in viewer.children[1].value
    assert len(viewer.children) == 4, "nothing to ask with"
    data, metadata = viewer._repr_mimebundle_()
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(data)
    assert "slice 2 of 10" in metadata["image/png"]["alt"]


def test_the_viewer_shows_images_and_refuses_what_is_none(slices):
    viewer = SliceViewer(slices, width=48)
    assert viewer.slider.value == 4 and np.array_equal(shown(viewer), np.asarray(slices[4]))
    with pytest.raises(RequestError):
        SliceViewer(slices, ["box"])


def ask_about(slices, generator, dimension="3d", **more):
    options = {"A": SCRIPT, "B": "liver"}
    request = GroundedRequest("Which?", slices, options, dimension, "id")
    return SliceViewer(request=request, generator=generator, max_new_tokens=60, **more)


def test_the_reply_goes_on_from_the_region_of_the_user(generator):
    """In the frame of the processor, whatever the grid of the volume that is looked at."""
    images = serialize(volume(), (5, 64, 96)).images()
    viewer = ask_about(images, generator, images=volume(), width=300)
    assert shown(viewer).shape == (400, 300, 3) and viewer.slider.max == 4
    viewer.sides["x"].value, viewer.sides["y"].value = (16, 48), (0, 32)
    viewer.sides["slices"].value = (1, 3)
    assert viewer.box == Box3D(16, 0, 1, 48, 32, 4)
    colour = dict.fromkeys(range(5))
    for z in colour:
        viewer.slider.value = z
        colour[z] = shown(viewer)[100, 50].tolist() == [86, 180, 233]
    assert [z for z in colour if colour[z]] == [1, 2, 3], "the last slice is part of the box"
    viewer.button.click()
    box, trace = viewer.traces[0]
    assert box == viewer.box and trace.text.startswith(f"<think>{format_box(box)}")
    assert [crop.size for crop in trace.crops[0]] == [(32, 32)] * 3
    assert len(trace.own_mask) > sum(trace.own_mask) == 60, "the model wrote on after the crops"
    assert "1. [16, 0, 1, 48, 32, 4]" in viewer.history.value and not viewer.button.disabled
    viewer.box = other = Box3D(0, 0, 4, 20, 20, 5)
    assert viewer.box == other
    viewer.button.click()
    viewer.free_button.click()
    assert [box for box, _ in viewer.traces] == [box, other, None]
    assert viewer.traces[2][1].request is viewer.request
    assert all(f"{n}. " in viewer.history.value for n in (1, 2, 3))


def test_a_box_in_an_image_has_no_slices_and_text_is_no_markup(generator, scripted):
    scripted(f"<think>I see.</think>A. {SCRIPT}<|im_end|>")
    image = Image.new("RGB", (100, 60))
    viewer = ask_about([image], generator, "2d", boxes=[Box2D(10.5, 8, 40, 30.2)])
    assert list(viewer.sides) == ["x", "y"] and viewer.box == Box2D(10, 8, 40, 31)
    assert (viewer.sides["x"].max, viewer.sides["y"].max) == generator.frame.size(60, 100)[::-1]
    viewer.free_button.click()
    assert viewer.traces[0][1].choice == "A"
    assert "alert(1)" in viewer.history.value and "alert(1)" in viewer.reply.value
    assert SCRIPT not in viewer.history.value + viewer.reply.value


def test_images_in_which_a_box_would_mean_another_place_are_refused(generator, slices):
    with pytest.raises(RequestError, match="processor's frame"):
        ask_about(slices, generator, images=slices[1:])


def test_objects_show_themselves_without_the_markup_of_others(volume_trace):
    html = volume()._repr_html_()
    assert "10 x 20 x 30" in html and "3 x 2 x 1" in html and "L-P-S" in html
    assert html.count("data:image/png;base64,") == 3
    assert "assumed" in replace(volume(), has_affine=False)._repr_html_()
    labels = np.zeros((10, 20, 30), int)
    labels[2:4, 5:9, 6:9] = 1
    about = {"id": SCRIPT, "patient": SCRIPT, "source": "test", "modality": "CT"}
    study = Study.from_labels(labels, {1: SCRIPT, 2: "spleen"}, scan=volume(), **about)
    shown_study, shown_trace = study._repr_html_(), volume_trace._repr_html_()
    assert "24 voxels" in shown_study and "spleen" in shown_study
    assert shown_trace.count("<img") == 7 and "&lt;think&gt;It lies at" in shown_trace
    assert "outside" in shown_trace and "56 injected" in shown_trace
    assert "<script" not in html + shown_study + shown_trace
