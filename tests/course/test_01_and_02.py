"""Notebooks 01 and 02: the functions as written there, and the solutions of their exercises."""

import numpy as np
import pytest
import torch

from tests.course.notebook import functions_of, solutions_of
from unireason_lib.dataset import phantom, phantom_slice
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.view import View


@pytest.fixture(scope="module")
def two():
    return functions_of("02_slice_serialization", ["OPPOSITE"], np=np)


def test_letters_are_at_the_edges_towards_which_the_patient_lies(two):
    assert two.edge_letters("PLS") == "RLAP", "rows to the back, columns to the left"
    assert two.edge_letters("RAS") == "PALR"


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
