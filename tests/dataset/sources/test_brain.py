"""The brain template: readable names at known places, left is left, and no heavy import."""

import numpy as np
import pytest

from unireason_lib.dataset.sources.brain import BrainSource, brain_study
from unireason_lib.errors import DatasetError


def world(study, structure) -> np.ndarray:
    """Centroid in MNI millimetres (x to the right, y to the front, z up)."""
    return (study.scan.affine @ [*(c - 0.5 for c in structure.centroid), 1])[:3]


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
    with pytest.raises(DatasetError, match="as indexed"):
        BrainSource().scan("8")  # a slice, in older sets
