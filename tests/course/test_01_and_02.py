"""Notebooks 01 and 02: the functions as written there, and the solutions of their exercises."""

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.course.notebook import functions_of, solutions_of
from unireason_lib.config import load_profile
from unireason_lib.dataset import phantom, phantom_slice
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.questions.baseline import BaselineScore
from unireason_lib.dataset.view import View
from unireason_lib.evaluation.statistics import interval


@pytest.fixture(scope="module")
def two():
    return functions_of("02_slice_serialization", ["OPPOSITE"], np=np)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "IAL", "SRP"])
def test_directions_and_the_arrangement_by_hand_agree_with_nibabel(two, codes):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    wanted = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), wanted)
    image = nib.Nifti1Image(array, np.diag([2.0, 3, 4, 1])).as_reoriented(turn)
    assert two.axis_codes(image.affine) == codes
    lps, affine = two.to_lps(np.asarray(image.dataobj), image.affine)
    assert np.array_equal(lps, array[::-1, ::-1].transpose(2, 1, 0))
    assert two.axis_codes(affine) == "LPS"
    assert np.allclose(affine @ [0, 0, 0, 1], [4, 9, 0, 1]), "voxels keep their place in mm"


def test_letters_are_at_the_edges_towards_which_the_patient_lies(two):
    assert two.edge_letters("PLS") == "RLAP", "rows to the back, columns to the left"
    assert two.edge_letters("RAS") == "PALR"


@pytest.mark.parametrize("new", [2, 5, 11])
def test_resampling_by_hand_is_that_of_pytorch(two, new):
    values = np.random.default_rng(0).random((3, 5))
    reference = torch.nn.functional.interpolate(torch.from_numpy(values)[None], new, mode="linear")
    assert np.allclose(two.resample(values, new, 1), reference[0])


def test_the_interval_of_the_question_only_baseline_is_over_patients():
    names = {"np": np, "interval": interval, "profile": load_profile("smoke")}
    by_patient = functions_of("01_dataset_construction", **names).by_patient
    alike = np.repeat([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], 12)  # all of a patient alike
    patients = tuple(str(k // 12) for k in range(96))
    together = by_patient(BaselineScore(alike, patients))
    apart = by_patient(BaselineScore(alike, tuple(map(str, range(96)))))
    assert together[0] == apart[0] == 37.5
    assert together[2] - together[1] > 2.5 * (apart[2] - apart[1])


def test_solutions_of_notebook_01():
    solutions = solutions_of("01_dataset_construction")
    views = [View(phantom_slice(k), frame=solutions.FRAME) for k in range(12)]
    questions = [question for view in views for question in ask(view)]
    assert solutions.accuracy_of_counts(questions) <= 1
    kept = solutions.kept_by_kind(questions, questions[::2])
    assert list(kept.values()) == sorted(kept.values())


def test_solutions_of_notebook_02(tmp_path):
    solutions = solutions_of("02_slice_serialization")
    assert solutions.border_shift(16, 16) == 0
    centres = torch.arange(8.0)[None, None]
    corners = torch.nn.functional.interpolate(centres, 3, mode="linear", align_corners=True)[0, 0]
    edge = 1.5 * corners[0] - 0.5 * corners[1]  # half a new pixel before the first centre
    assert solutions.border_shift(8, 3) == pytest.approx(-0.5 - float(edge))
    assert {solutions.contrast_left(first)[0] for first in range(24)} == {0, 0.5, 1}
    wrong = solutions.repaired(phantom(901, shape=(16, 64, 64)).scan.affine)
    (message,) = solutions.warnings_of(wrong, tmp_path)
    assert "wrong side" in message
    assert not solutions.warnings_of(solutions.repaired(wrong), tmp_path)
    assert solutions.warnings_of.__doc__ and "Exercise 3" in solutions.repaired.__doc__
