"""Studies: measured structures, overlaps, slices, names and sides, laziness."""

import numpy as np
import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.study import Study, kind_of, readable_name
from unireason_lib.errors import DatasetError, LabelError
from unireason_lib.imaging import Volume

ABOUT = {"id": "s1", "patient": "p1", "source": "made", "modality": "CT"}
LPS = np.diag([-2.0, -2.0, 5.0, 1.0])  # x, y, z voxel size 2, 2, 5 mm


def naive(mask: np.ndarray):
    """Box, voxels and centroid of a mask, the slow and obvious way."""
    where = [axis[::-1] for axis in np.argwhere(mask)]
    low, high = np.min(where, axis=0), np.max(where, axis=0) + 1
    return (*low.tolist(), *high.tolist()), len(where), (np.mean(where, axis=0) + 0.5).tolist()


def test_host_keeps_its_whole_box_when_a_lesion_replaces_its_edge():
    labels = np.zeros((4, 10, 12), np.uint8)
    labels[1:3, 2:8, 3:9] = 5
    labels[1:3, 2:5, 7:11] = 41  # bites a corner off the liver and sticks out of it
    names, inside = {1: "body", 5: "liver", 41: "liver lesion", 42: "cyst"}, {41: 5, 5: 1}
    study = Study.from_labels(labels, names, scan=Volume(labels, LPS), inside=inside, **ABOUT)
    liver, lesion, body = study.find("liver"), study.find("liver lesion"), study.find("body")
    box, voxels, centroid = naive((labels == 5) | (labels == 41))
    assert liver.box == Box3D(*box) == Box3D(3, 2, 1, 11, 8, 3)
    assert liver.voxels == voxels
    np.testing.assert_allclose(liver.centroid, centroid)
    assert lesion.box == Box3D(7, 2, 1, 11, 5, 3) and lesion.kind == "lesion"
    assert body.voxels == voxels  # nested two deep, and without a voxel of its own
    assert (study.mask(liver) == ((labels == 5) | (labels == 41))).all()
    assert study.absent == ("cyst",) and study.lesions == (lesion,)


def test_overlapping_masks_are_measured_exactly_also_on_slices():
    rng = np.random.default_rng(1)
    chances = (("a", 0.5), ("b", 0.4), ("a", 0.3), ("c", 0.0), ("d", 0.2))
    masks = [(name, rng.random((3, 9, 9)) < p) for name, p in chances]
    study = Study.from_masks(iter(masks), scan=np.zeros((3, 9, 9)), **ABOUT)
    assert [s.name for s in study.structures] == ["a", "b", "a", "d"] and study.absent == ("c",)
    assert [s.label for s in study.structures] == [1, 2, 3, 5]
    for structure in study.structures:
        mask = masks[structure.label - 1][1]
        box, voxels, centroid = naive(mask)
        assert (structure.box.as_tuple(), structure.voxels) == (box, voxels)
        np.testing.assert_allclose(structure.centroid, centroid)
        assert (study.mask(structure) == mask).all()
        plane = next(s for s in study.slice(1).structures if s.label == structure.label)
        assert plane.box == Box2D(*naive(mask[1])[0]) and plane.voxels == mask[1].sum()


def test_slice_is_a_2d_study_of_the_same_patient():
    labels = np.zeros((3, 6, 8), np.int16)
    labels[0:2, 1:4, 2:5] = 7
    labels[1, 2, 3] = 9
    scan = Volume(np.arange(labels.size, dtype=np.int16).reshape(labels.shape), LPS)
    about = {"inside": {9: 7}, "attributes": {9: {"host": "kidney_left"}}, "key": "k", **ABOUT}
    study = Study.from_labels(labels, {7: "kidney_left", 9: "cyst"}, scan=scan, **about)
    cut = study.slice(1)
    assert (cut.dimension, cut.patient, cut.id, cut.shape) == ("2d", "p1", "s1-z001", (6, 8))
    assert (cut.spacing, cut.directions, cut.details["z"]) == ((2.0, 2.0), "LP", 1)
    assert (cut.scan == scan.array[1]).all() and (cut.labels == labels[1]).all()
    assert study.key == "k" and cut.key == ""  # no source can read a slice by the volume's key
    kidney, cyst = cut.structures
    assert kidney.box == Box2D(2, 1, 5, 4) and kidney.voxels == 9
    assert cyst.box == Box2D(3, 2, 4, 3) and cyst.attributes == {"host": "kidney_left"}
    assert [s.name for s in study.slice(0).structures] == ["kidney_left"]
    assert study.slice(2).structures == () and study.slice(2).absent == ("kidney_left", "cyst")
    with pytest.raises(DatasetError, match="slice"):
        study.slice(3)


@pytest.mark.parametrize(
    "labels, more, message",
    [
        (np.full((4, 4), 9, np.uint8), {}, "values without one: .9"),
        (np.full((4, 4), 1.5), {}, "whole numbers"),
        (np.full((4, 4), 1e12), {}, "below 1048576"),
        (np.ones((3, 4), int), {}, "shape"),
        (np.ones((4, 4), int), {"inside": {1: 2, 2: 1}}, "circles"),
    ],
)
def test_bad_label_maps_are_refused(labels, more, message):
    with pytest.raises(LabelError, match=message):
        Study.from_labels(labels, {1: "a", 2: "b"}, scan=np.zeros((4, 4)), **more, **ABOUT)


@pytest.mark.parametrize(
    "name, readable",
    [
        ("kidney_left", "left kidney"),
        ("Precentral_L", "left precentral"),
        ("lung_upper_lobe_right", "right lung upper lobe"),
        ("vertebrae_L1", "vertebrae L1"),
        ("left and right lung", "left and right lung"),
        ("L", "l"),
    ],
)
def test_names_and_sides(name, readable):
    assert readable_name(name) == readable
    assert kind_of(f"{name}_cyst") == "lesion" != kind_of(name)
