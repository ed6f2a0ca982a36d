"""Grids: what is read, and what is refused with a word on where and why."""

import pytest

from unireason_lib.ablation.grid import STAGES, joined, load_grid
from unireason_lib.ablation.plan import plan
from unireason_lib.errors import GridError, ProfileError
from unireason_lib.tutorial import project_root
from unireason_lib.tutorial.runner import find_notebooks

GOOD = """
name: mine
about: Does it help?
profile: smoke
seeds: 2
overrides: {sft.steps: 3, rl.steps: 2}
minutes: {sft: 4}
conditions:
  joint: {sft: {}}
  3D only: {about: no slices, sft: {COUNT_2D: 0}}
  answer only: {sft: {FORM: answer}, test: {OVERRIDES: generation.max_rounds=0}}
  RL: {sft: {}, rl: {OVERRIDES: {rl.iou: 0.5}}}
claims:
  mixture: {better: joint, worse: 3D only, dimension: 3d, part: mixture, says: slices help volumes}
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_grid_is_read(tmp_path):
    grid = load_grid(written(tmp_path, GOOD))
    assert (grid.name, grid.profile, grid.seeds, grid.overrides) == (
        "mine",
        "smoke",
        (0, 1),
        "sft.steps=3,rl.steps=2",
    )
    assert list(grid.conditions) == ["joint", "3D only", "answer only", "RL"]
    assert {name: list(c.stages) for name, c in grid.conditions.items()} == {
        "joint": ["sft", "test"],
        "3D only": ["sft", "test"],
        "answer only": ["sft", "test"],
        "RL": ["sft", "rl", "test"],
    }
    assert grid.conditions["RL"].stages["rl"] == {"OVERRIDES": "rl.iou=0.5"}
    assert grid.conditions["3D only"].about == "no slices" and grid.minutes == {"sft": 4.0}
    (claim,) = grid.claims
    assert (claim.better, claim.worse, claim.dimension, claim.value) == (
        "joint",
        "3D only",
        "3d",
        "correct",
    )
    assert load_grid(written(tmp_path, GOOD.replace("seeds: 2", "seeds: [3, 5]"))).seeds == (3, 5)
    assert (
        load_grid(written(tmp_path, GOOD.replace("name: mine\n", ""))).name == "mine"
    )  # the file's


@pytest.mark.parametrize(
    "change, said",
    [
        (("seeds: 2", "seeds: 0"), "seeds"),
        (("seeds: 2", "seeds: [1, 1]"), "different"),
        (("seeds: 2", "seed: 2"), "'seed'.*seeds"),
        (("COUNT_2D: 0", "SEED: 0"), "fill in itself, found SEED"),
        (("better: joint", "better: join"), "'join'.*joint"),
        (("dimension: 3d", "dimension: 4d"), "2d, 3d"),
        (("part: mixture", "part: x"), "mixture, components"),
        (("sft: {COUNT_2D: 0}", "stf: {COUNT_2D: 0}"), "'stf'.*sft"),
        (("name: mine", "name: ../mine"), "a folder"),
        (("minutes: {sft: 4}", "minutes: {four: 4}"), "'four'"),
        (("conditions:\n", "conditions: 3\nrest:\n"), "expected"),
        (("name: mine", "name: ["), "YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, said):
    with pytest.raises(GridError, match=rf"(?s)mine\.yaml.*{said}"):
        load_grid(written(tmp_path, GOOD.replace(*change)))


def test_a_wrong_setting_is_found_before_anything_runs(tmp_path):
    for change in (("sft.steps: 3", "sft.step: 3"), ("rl.iou: 0.5", "rl.iou: much")):
        with pytest.raises(ProfileError):
            load_grid(written(tmp_path, GOOD.replace(*change)))
    with pytest.raises(GridError, match=r"nowhere\.yaml"):
        load_grid(tmp_path / "nowhere.yaml")


def test_the_grids_that_ship_can_be_run():
    grids = sorted((project_root() / "data" / "ablations").glob("*.yaml"))
    assert grids
    for path in grids:
        grid = load_grid(path)
        stages = {stage for condition in grid.conditions.values() for stage in condition.stages}
        assert find_notebooks(project_root() / "notebooks", [STAGES[stage] for stage in stages])
        assert len(plan(grid)) % len(grid.seeds) == 0 and len(grid.seeds) >= 3


def test_overrides_are_joined_in_order():
    assert joined("a=1", "", "b=2") == "a=1,b=2" and joined("", "") == ""


def test_seeds_are_the_first_of_the_grid_and_then_further_ones(tmp_path):
    grid = load_grid(written(tmp_path, GOOD.replace("seeds: 2", "seeds: [5, 3]")))
    assert [grid.first_seeds(n) for n in (1, 2, 4)] == [(5,), (5, 3), (5, 3, 6, 7)]
