"""The functions of notebook 00 as they are written there, and its solutions."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.course.notebook import functions_of, solutions_of
from unireason_lib.boxes import Box2D
from unireason_lib.grounding import GroundedGenerator

NAME = "00_quickstart"
OPTIONS = {"A": "Mottled", "B": "Checkered"}


@pytest.fixture(scope="module")
def functions():
    """The functions of the notebook, over what its cells would have made."""
    return functions_of(NAME, np=np)


def test_remarks_say_what_is_wrong_and_what_is_luck(functions):
    truth, beside = {"lesion": Box2D(0, 0, 10, 10)}, Box2D(20, 20, 30, 30)

    def remarks(choice, *boxes):
        trace = SimpleNamespace(choice=choice, boxes=list(boxes))
        return functions.remarks(OPTIONS, "A", trace, truth)

    wrong = remarks("B", Box2D(0, 0, 10, 5))
    assert "Checkered (wrong)" in wrong and "IoU 0.50 with the lesion" in wrong
    assert "no crop" in remarks("A", beside)
    assert "no crop" not in remarks("A", Box2D(0, 0, 9, 9))
    assert "none (wrong)" in remarks(None)


def test_the_solutions_run(tiny_model):
    solutions = solutions_of(NAME)
    few, many = (solutions.questions_for_width(points) for points in (20, 10))
    assert 3.5 < many / few < 4.5, "four times as many halve the width"
    generator, short = GroundedGenerator(*tiny_model), {"max_new_tokens": 4, "batch_size": 3}
    changed, *right = solutions.answers_changed(generator, patients=3, **short)
    assert 0 <= changed <= 3 and all(0 <= one <= 3 for one in right)
    follow, both = solutions.boxes_that_follow(generator, patients=3, **short)
    assert 0 <= follow <= both <= 3
