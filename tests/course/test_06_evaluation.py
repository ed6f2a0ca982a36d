"""The functions of notebook 06 as they are written there, and its solutions."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.course.notebook import functions_of, solutions_of
from unireason_lib.boxes import Box3D
from unireason_lib.dataset.schema import box_of
from unireason_lib.evaluation import Interval, open_benchmark
from unireason_lib.evaluation.statistics import interval
from unireason_lib.grounding import GroundedGenerator

NAME = "06_evaluation"


@pytest.fixture(scope="module")
def notebook():
    """The functions of the notebook and its classes of replies."""
    return functions_of(NAME, ["CAUSES", "STATED"], np=np, pd=pd, re=re, box_of=box_of)


def test_the_standard_error_counts_patients_and_is_the_librarys(notebook):
    values = np.random.default_rng(0).random(60)  # no proportions: the library's interval is s * t
    patients = [str(k // 3) for k in range(60)]
    found = interval(values[None], patients)
    half = 2.0930 * notebook.standard_error(values, patients)  # Student's t, 19 degrees
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-3)
    alike, apart = (notebook.standard_error([1, 1, 0, 0], who) for who in ("aabb", "abcd"))
    assert alike > apart


def reply(true=(), written=(), correct=0.0, concluded=0.0, abstained=0.0, text=""):
    true = [["a", box] for box in true]
    row = {"truth_boxes": true, "boxes": list(written), "correct": correct, "failed": 0.0}
    return SimpleNamespace(**row, concluded=concluded, abstained=abstained, text=text)


HERE, THERE, CUBOID = [0, 0, 8, 8], [20, 20, 30, 30], [0, 0, 0, 8, 8, 2]


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (reply([HERE], [HERE], correct=1), "right"),
        (reply([], [THERE], correct=1), "right"),
        (reply([HERE], [THERE], correct=1), "right, box elsewhere"),
        (reply([HERE], []), "missed"),
        (reply([HERE, THERE], [HERE]), "missed"),
        (reply([HERE], [CUBOID]), "missed"),
        (reply([HERE], [[0, 0, 8, 9], THERE]), "invented"),
        (reply([], [HERE]), "invented"),
        (reply([HERE], [HERE], text="7 and 42: difference 35; 31 and 36: middle 33"), "misread"),
        (reply([HERE], [HERE], text="7 and 42: difference 36"), "miscalculated"),
        (reply([HERE], [HERE], text="31 and 36: middle 34"), "miscalculated"),
        (reply([HERE], [THERE], concluded=1), "wrong letter"),
        (reply([HERE], [HERE], concluded=1, abstained=1), "no answer"),
    ],
)
def test_every_reply_has_one_cause(notebook, row, cause):
    assert notebook.diagnose(row)[0] == cause and cause in notebook.CAUSES


def test_a_box_touches_from_a_threshold_on_and_the_untouched_are_named(notebook):
    near = [4, 0, 12, 8]  # IoU 1/3
    row = reply([HERE], [near])
    assert notebook.diagnose(row) == ("misread", [], [])
    assert notebook.diagnose(row, touching=0.5) == ("missed", [HERE], [near])


def test_a_point_is_published_under_a_name_only(notebook):
    published = []
    notebook.publish = lambda *args, **more: published.append((args, more))
    x = Interval(0.5, 0.25, 0.75, 40, 20)
    assert notebook.points(x) == (50, 25, 75) and not published
    notebook.points(x, "IoU", "", 1)
    assert published == [(("IoU", 0.5, ""), {"interval": (0.25, 0.75), "note": "40 questions"})]


def test_the_solutions_run(tiny_model):
    solutions = solutions_of(NAME)
    results = pd.DataFrame({"truth_boxes": [[["a", HERE]]] * 2, "boxes": [[[4, 0, 12, 8]], []]})
    missed = [solutions.proportion_missed(results, touching) for touching in (0.1, 0.5)]
    assert missed == [0.5, 1.0]
    assert solutions.patients_needed(Interval(0.5, 0.4, 0.6, 100, 50)) == 2223
    assert solutions.moved(Box3D(0, 0, 1, 8, 9, 4), 0.5) == Box3D(4, 0, 1, 12, 9, 4)
    generator = GroundedGenerator(*tiny_model)
    how = {"families": ["lesion analysis"], "prior_studies": 0, "size": (2, 64, 64), "limit": 4}
    items = open_benchmark("phantom", frame=generator.frame, a_patient=1, **how).items
    outcome = solutions.accuracy_of_moved(generator, items, (0, 1))
    assert outcome[0][0] > 0.9 and outcome[1][0] < 0.1
    assert all(0 <= right <= 1 for _, right in outcome.values())
