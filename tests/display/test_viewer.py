import base64
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.display import SliceViewer
from unireason_lib.display.viewer import edge_matrix
from unireason_lib.errors import RequestError
from unireason_lib.imaging import Volume, serialize


def oblique_stack(has_affine=True):
    turn = np.deg2rad(20)
    affine = np.diag([-0.7, -0.9, 3.0, 1.0])
    affine[:2, :2] = [
        [-0.7 * np.cos(turn), 0.9 * np.sin(turn)],
        [-0.7 * np.sin(turn), -0.9 * np.cos(turn)],
    ]
    affine[:3, 3] = [80, 100, -40]
    array = np.arange(10 * 30 * 20, dtype=np.float32).reshape(10, 30, 20)
    return serialize(
        Volume(array, affine, has_affine=has_affine), size=(8, 40, 48), window=(0, 6000)
    )


def test_geometry_is_that_of_the_stack():
    """The matrices that the browser uses map any corner as the stack does, for oblique scans as well."""
    stack = oblique_stack()
    viewer = SliceViewer(stack)
    for corner in ((0, 0, 0), (13, 7, 5), (47.5, 39.5, 7.5)):
        box = Box3D(*corner, 48, 40, 8)
        point = np.array([*corner, 1])
        assert np.allclose(np.array(viewer.to_mm) @ point, stack.to_mm(box)[0])
        assert np.allclose(np.array(viewer.to_voxel) @ point, stack.to_voxel(box).as_tuple()[:3])


def test_edge_matrix_of_a_shift():
    matrix = edge_matrix(lambda box: np.reshape(box.as_tuple(), (2, 3)) * [2, 3, 4] + [5, 6, 7])
    assert matrix == [[2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7]]


def test_what_is_sent_to_the_browser():
    stack = oblique_stack()
    viewer = SliceViewer(stack, {"liver": Box3D(1, 2, 4, 10, 12, 7), "mark": Box2D(0, 0, 5, 5)})
    assert np.array_equal(
        np.frombuffer(viewer.pixels, np.uint8).reshape(viewer.shape), stack.pixels
    )
    assert (viewer.index, viewer.range, viewer.window) == (5, [0, 6000], [0, 6000])
    assert [box["name"] for box in viewer.boxes] == ["liver", "mark"]
    assert viewer.boxes[1]["box"] == [0, 0, 0, 5, 5, 1]
    assert viewer.oriented


def test_nothing_is_said_about_a_place_that_is_unknown(slices):
    assert SliceViewer(oblique_stack(has_affine=False)).to_mm == []
    viewer = SliceViewer(slices)
    assert (viewer.to_mm, viewer.to_voxel, viewer.oriented, viewer.shape) == (
        [],
        [],
        False,
        [8, 40, 48],
    )
    with pytest.raises(RequestError, match="one size"):
        SliceViewer([slices[0], slices[1].resize((9, 9))])
    with pytest.raises(RequestError):
        SliceViewer([])


def test_a_page_without_widgets_shows_the_present_slice(slices):
    viewer = SliceViewer(slices, [Box3D(4, 4, 2, 30, 30, 5)], ["here"])
    bundles = []
    for viewer.index in (3, 6):
        data, _ = viewer._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in data
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        assert picture.width > 300
        bundles.append(data["image/png"])
    assert bundles[0] != bundles[1]


def test_boxes_keep_their_colour_in_the_picture(slices):
    from matplotlib.colors import to_hex

    viewer = SliceViewer(slices, [Box3D(4, 4, 2, 30, 30, 5), Box3D(6, 6, 5, 20, 20, 7)], index=6)
    figure = viewer.figure()
    (outline,) = figure.axes[0].patches
    assert to_hex(outline.get_edgecolor()) == viewer.boxes[1]["color"]
    assert [text.get_text() for text in figure.texts] == ["slice 6", "box 2"]


def test_window_changes_the_picture(slices):
    viewer = SliceViewer(slices, index=0)
    viewer.window = [100.0, 101.0]
    grey = viewer.figure().axes[0].images[0].get_array()
    assert set(np.unique(grey)) <= {0, 255}
    assert np.array_equal(grey == 255, np.asarray(slices[0])[..., 0] >= 101)


def test_without_anywidget_the_message_helps():
    code = (
        "import sys; sys.modules['anywidget'] = None\n"
        "from unireason_lib.display import show_slices\n"
        "try:\n    from unireason_lib.display import SliceViewer\n"
        "except ImportError as error:\n    print(error)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert "pip install anywidget" in out and "show_slices()" in out
