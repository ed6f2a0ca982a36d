"""Views: written boxes are where the pixels are, and what is visible is on a plane that is shown."""

import json
from dataclasses import replace

import numpy as np
import pytest

from unireason_lib.dataset.sources.phantom import phantom
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.view import MIN_PIXELS, View, scan_images
from unireason_lib.errors import DatasetError, ScanError
from unireason_lib.imaging import ProcessorFrame, Volume, serialize_labels

FRAME = ProcessorFrame(8, 2, 32 * 32, 128 * 128)
ABOUT = {"id": "s", "patient": "p", "source": "made", "modality": "CT"}


def block_study(shape, box, spacing=(4.0, 1.0, 1.0)) -> Study:
    """A bright block in the dark, at voxel box (x1, y1, z1, x2, y2, z2)."""
    labels = np.zeros(shape, np.uint8)
    labels[box[2] : box[5], box[1] : box[4], box[0] : box[3]] = 1
    affine = np.diag((-spacing[2], -spacing[1], spacing[0], 1))
    scan = Volume(labels.astype(np.int16) * 1000, affine)
    return Study.from_labels(labels, {1: "block"}, scan=scan, **ABOUT)


@pytest.mark.parametrize("size", [(5, 96, 48), (32, 256, 256)])
@pytest.mark.parametrize(
    "shape, box", [((20, 90, 120), (30, 12, 5, 75, 60, 16)), ((10, 50, 50), (0, 0, 0, 20, 50, 10))]
)
def test_written_box_is_where_the_pixels_are(shape, box, size):
    view = View(block_study(shape, box), size, (0.0, 1000.0), FRAME)
    written = view.box(view.study.find("block"))
    planes = [np.asarray(FRAME.aligned(image))[..., 0] for image in view.images()]
    where = np.argwhere(np.stack(planes) > 127)[:, ::-1]
    bright = (*where.min(axis=0), *(where.max(axis=0) + 1))
    # interpolation shifts an edge by half a source or target pixel at most
    slack = [max(1, new / old) for new, old in zip(size[::-1], shape[::-1], strict=True)] * 2
    assert (np.abs(np.subtract(bright, written.as_tuple())) <= slack).all()
    assert all(isinstance(edge, int) for edge in written.as_tuple())


DARKER = {"": (), "one darker voxel": np.s_[1, 39, 39], "two paddings": np.s_[:, :4, 30:]}


@pytest.mark.parametrize("darker", DARKER.values(), ids=list(DARKER))
@pytest.mark.parametrize("dimension", [2, 3])
def test_labels_on_constant_padding_are_not_visible(dimension, darker):
    """Report 3: an outline that runs into padding counts by its part on real values."""
    scan = np.random.default_rng(0).normal(0, 30, (4, 40, 40)).astype(np.int16)
    values = scan[:, 10 : 10 + MIN_PIXELS, 20].copy()
    scan[:, :, :21] = -1024
    scan[:, 10 : 10 + MIN_PIXELS, 20] = values
    if darker:
        scan[darker] = -3024
    labels = np.zeros(scan.shape, np.uint8)
    labels[1, 2:10, 2:10], labels[1, 10:25, 20] = 1, 2  # on padding, and partly
    study = Study.from_labels(labels, {1: "hidden", 2: "partly"}, scan=scan, **ABOUT)
    view = View(study if dimension == 3 else study.slice(1), (4, 40, 40))
    assert view.visible_labels == {2}


def test_visible_needs_labels_and_agrees_with_a_slow_count():
    study = phantom(5, shape=(20, 96, 96))
    view = View(study, (7, 48, 64), None, FRAME)
    labels = serialize_labels(study.labels, (7, 48, 64))
    for structure in study.structures:
        pixels = np.isin(labels, structure.values).sum(axis=(1, 2)).max()
        assert view.visible(structure) == (pixels >= MIN_PIXELS), structure.name
    with pytest.raises(DatasetError, match="label map"):
        _ = View(replace(study, labels=None)).visible_labels


def test_bytes_and_colour_are_shown_as_they_are_and_other_values_through_the_window():
    grey = np.array([[10, 60], [110, 160]], np.uint8)
    labels = np.ones((2, 2), np.uint8)

    def shown(scan, window=None, **more):
        study = Study.from_labels(labels, {1: "all"}, scan=scan, **ABOUT, **more)
        view = View(study, window=window)
        kept = json.loads(json.dumps(view.serialization))
        assert np.array_equal(scan_images(scan, kept["size"], kept["window"], "s"), view.pixels)
        return np.asarray(view.images()[0])

    assert (shown(grey)[..., 0] == grey).all()
    colour = np.stack([grey, grey + 1, grey + 2], axis=-1)
    assert (shown(colour) == colour).all()
    hounsfield = np.array([[-1000, 0], [50, 3000]], np.int16)
    assert shown(hounsfield, window="brain")[..., 1].tolist() == [[0, 0], [159, 255]]
    with pytest.raises(ScanError, match="finite"):
        shown(np.full((2, 2), np.nan))
