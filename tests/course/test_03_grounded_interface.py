"""The solutions of notebook 03."""

from tests.course.notebook import solutions_of

NAME = "03_grounded_interface"


def test_the_solutions_run(generator):
    solutions = solutions_of(NAME)
    assert solutions.cost_of_cuboid(100, 60, slices=5) == (50, 30)
    accuracy, count = solutions.texture_probe(generator, patients=24)
    assert set(accuracy) == {"whole image", "crop"} and 0 < count < 12
    assert all(0 <= value <= 1 for value in accuracy.values())
    assert min(solutions.seconds_saved(generator, slices=2, boxes=2)) > 0
