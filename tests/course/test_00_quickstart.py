"""The functions of notebook 00 as they are written there, and its solutions."""

from textwrap import wrap
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tests.course.notebook import functions_of, solutions_of
from unireason_lib import display
from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.display.figures import BOX_COLORS
from unireason_lib.grounding import GroundedGenerator

NAME = "00_quickstart"
OPTIONS = {"A": "Mottled", "B": "Checkered"}


@pytest.fixture(scope="module")
def functions():
    """The functions of the notebook, over what its cells would have made."""
    names = {"np": np, "Image": Image, "ImageDraw": ImageDraw, "ImageOps": ImageOps, "wrap": wrap}
    names |= {"display": display, "BOX_COLORS": BOX_COLORS, "INK": "black"}
    names |= {"TEXT": ImageFont.load_default(15), "LARGE": ImageFont.load_default(17)}
    names["SLICES"] = [Image.new("RGB", (64, 64), (30 * k,) * 3) for k in range(4)]
    return functions_of(NAME, **names)


def test_iou_by_hand_is_that_of_the_library(functions):
    draw = np.random.default_rng(0)
    for kind, n in ((Box2D, 2), (Box3D, 3)):
        for _ in range(50):
            low = draw.integers(0, 20, (2, n))
            a, b = (kind(*one, *(one + draw.integers(1, 15, n))) for one in low)
            assert functions.iou(a, b) == pytest.approx(a.iou(b))


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


def test_a_frame_of_the_animation_has_slice_crops_and_text(functions):
    empty = functions.draw_frame(2, {}, "")
    boxes = {"box 1": Box3D(5, 5, 1, 20, 20, 4), "truth": Box3D(9, 9, 2, 30, 30, 3)}
    crop = Image.new("RGB", (12, 9), "white")
    full = functions.draw_frame(2, boxes, "Where?\n\n" + 30 * "word ", [crop] * 3, "right")
    assert empty.size == full.size == (860, 400)
    changed = np.asarray(empty) != np.asarray(full)
    assert changed[:, :400].any() and changed[:200, 400:].any() and changed[226:320, 400:].any()
    assert changed[350:, 400:].any(), "the verdict stands below"


def test_the_solutions_run(tiny_model):
    solutions = solutions_of(NAME)
    few, many = (solutions.questions_for_width(points) for points in (20, 10))
    assert 3.5 < many / few < 4.5, "four times as many halve the width"
    generator, short = GroundedGenerator(*tiny_model), {"max_new_tokens": 4, "batch_size": 3}
    changed, *right = solutions.answers_changed(generator, patients=3, **short)
    assert 0 <= changed <= 3 and all(0 <= one <= 3 for one in right)
    follow, both = solutions.boxes_that_follow(generator, patients=3, **short)
    assert 0 <= follow <= both <= 3
