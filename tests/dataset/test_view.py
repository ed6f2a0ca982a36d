"""Views: written boxes are where the pixels are, pictures as they are shown, everything said in plain values."""

import json
from dataclasses import replace

import numpy as np
import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.view import QWEN_FRAME, View
from unireason_lib.errors import ScanError
from unireason_lib.imaging import ProcessorFrame, Volume, serialize

FRAME = ProcessorFrame(8, 2, 32 * 32, 128 * 128)
ABOUT = {"id": "s", "patient": "p", "source": "made", "modality": "CT"}


def block_study(shape, box, spacing=(4.0, 1.0, 1.0)) -> Study:
    """A bright block in the dark, at voxel box (x1, y1, z1, x2, y2, z2)."""
    labels = np.zeros(shape, np.uint8)
    labels[box[2] : box[5], box[1] : box[4], box[0] : box[3]] = 1
    affine = np.diag((-spacing[2], -spacing[1], spacing[0], 1))
    return Study.from_labels(
        labels, {1: "block"}, scan=Volume(labels.astype(np.int16) * 1000, affine), **ABOUT
    )


@pytest.mark.parametrize("size", [(8, 64, 64), (5, 96, 48), (32, 256, 256)])
@pytest.mark.parametrize(
    "shape, box", [((20, 90, 120), (30, 12, 5, 75, 60, 16)), ((10, 50, 50), (0, 0, 0, 20, 50, 10))]
)
def test_written_box_is_where_the_pixels_are(shape, box, size):
    view = View(block_study(shape, box), size, (0.0, 1000.0), FRAME)
    written = view.box(view.study.find("block"))
    bright = np.stack([np.asarray(FRAME.aligned(picture))[..., 0] for picture in view.images()]) > 127
    where = np.argwhere(bright)[:, ::-1]
    found = (*where.min(axis=0), *(where.max(axis=0) + 1))
    # interpolation shifts an edge by half a source or target pixel at most
    slack = np.array([max(1, size[2] / shape[2]), max(1, size[1] / shape[1]), max(1, size[0] / shape[0])] * 2)
    assert (np.abs(np.subtract(found, written.as_tuple())) <= slack).all()
    assert all(isinstance(edge, int) for edge in written.as_tuple())


def test_written_box_follows_the_slice_stack_and_the_frame():
    study = phantom(3, shape=(12, 80, 100))
    view = View(study, (8, 64, 96), None, FRAME)
    stack = serialize(study.scan, (8, 64, 96), study.window)
    for structure in study.structures:
        assert view.box(structure) == FRAME.written(stack.from_voxel(structure.box), 64, 96, 8)
    assert view.box(Box3D(10, 10, 2, 50, 40, 6)) == FRAME.written(
        stack.from_voxel(Box3D(10, 10, 2, 50, 40, 6)), 64, 96, 8
    )
    assert (view.depth, view.picture_size, len(view.images())) == (8, (64, 96), 8)
    assert np.asarray(view.images()[2])[..., 0].tolist() == stack.pixels[2].tolist()


def test_pictures_keep_their_size_and_boxes_go_to_the_frame():
    study = phantom_slice(4, size=(50, 70))
    view = View(study, (8, 64, 64), None, FRAME)
    assert (view.depth, view.picture_size) == (None, (50, 70))
    assert FRAME.size(50, 70) == (48, 64)
    structure = study.find("spine")
    x1, y1, x2, y2 = structure.box.as_tuple()
    assert view.box(structure) == Box2D(x1 * 64 / 70, y1 * 48 / 50, x2 * 64 / 70, y2 * 48 / 50).round()
    (picture,) = view.images()
    assert picture.size == (70, 50) and picture.mode == "RGB"


def test_a_structure_of_one_voxel_keeps_a_pixel_and_a_slice():
    view = View(block_study((64, 256, 256), (100, 30, 40, 101, 31, 41)), (8, 64, 64), None, FRAME)
    box = view.box(view.study.structures[0])
    assert (box.width, box.height, box.depth) == (1, 1, 1)
    with pytest.raises(ScanError, match="outside"):
        view.box(Box3D(300, 0, 0, 310, 5, 5))


def test_bytes_and_colour_are_shown_as_they_are_and_other_values_through_the_window():
    grey = np.array([[10, 60], [110, 160]], np.uint8)
    labels = np.ones((2, 2), np.uint8)

    def shown(scan, window=None, **more):
        study = Study.from_labels(labels, {1: "all"}, scan=scan, **{**ABOUT, **more})
        return np.asarray(View(study, window=window).images()[0])

    assert (shown(grey)[..., 0] == grey).all()
    colour = np.stack([grey, grey + 1, grey + 2], axis=-1)
    assert (shown(colour) == colour).all()
    assert shown(grey, window=(60, 160))[..., 0].tolist() == [[0, 0], [128, 255]]
    hounsfield = np.array([[-1000, 0], [50, 3000]], np.int16)
    assert shown(hounsfield, window="brain")[..., 1].tolist() == [[0, 0], [159, 255]]
    assert shown(hounsfield, **{"window": (0, 100)})[..., 2].tolist() == [[0, 0], [128, 255]]
    assert shown(labels.astype(bool))[..., 0].tolist() == [[255, 255], [255, 255]]
    with pytest.raises(ScanError, match="contrast"):
        shown(np.full((2, 2), 7.0))


def test_bare_arrays_are_volumes_too():
    labels = np.zeros((4, 20, 20), np.uint8)
    labels[1:3, 5:9, 5:9] = 1
    study = Study.from_labels(labels, {1: "a"}, scan=labels * 100, window="minmax", **ABOUT)
    assert len(View(study, (4, 32, 32)).images()) == 4


def test_serialization_is_plain_and_complete():
    view = View(phantom(1), (8, 64, 64), None, FRAME)
    said = json.loads(json.dumps(view.serialization))
    assert said == view.serialization
    assert said["size"] == [8, 64, 64] and said["window"] == list(phantom(1).window)
    assert ProcessorFrame(**said["frame"]) == FRAME
    assert View(phantom(1), window="lung").serialization["window"] == "lung"
    flat = View(phantom_slice(1))
    assert flat.serialization["size"] is None and flat.frame == QWEN_FRAME
    assert QWEN_FRAME.size(256, 256) == (252, 252)


def test_boxes_need_no_pixels():
    def unreadable():
        raise AssertionError("the scan was read")

    study = replace(phantom(1), scan_source=unreadable, labels_source=None)
    assert View(study, (8, 64, 64), None, FRAME).box(study.find("liver")).width > 10
