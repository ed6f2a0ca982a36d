"""Grids: what is read from YAML, what is refused and how, and the plan that follows."""

from pathlib import Path

import pytest

from unireason_lib.ablation import load_grid, plan
from unireason_lib.ablation.grid import STAGES
from unireason_lib.errors import GridError

ROOT = Path(__file__).parents[2]
GOOD = """
about: Does it help?
profile: smoke
seeds: 2
overrides: {sft.max_steps: 3, grpo.max_steps: 2, sft.bf16: false}
minutes: {sft: 4}
smoke: [joint, RL]
conditions:
  joint: {}
  3D only: {about: no slices, sft: {RECORDS_2D: 0}}
  answer only: {sft: {COMPONENTS: answer}, test: {OVERRIDES: generation.max_rounds=0}}
  RL: {rl: {OVERRIDES: {grounding.iou_weight: 0.5, sft.bf16: null}}}
claims:
  mixture: {better: joint, worse: 3D only, dimension: 3d, part: mixture, says: slices help volumes}
"""


def grid_of(folder, text=GOOD):
    path = folder / "mine.yaml"
    path.write_text(text)
    return load_grid(path)


def test_a_grid_is_read_with_its_types(tmp_path):
    grid = grid_of(tmp_path)
    assert (grid.name, grid.seeds, grid.minutes) == ("mine", (0, 1), {"sft": 4.0})
    assert grid.overrides == "sft.max_steps=3, grpo.max_steps=2, sft.bf16=false"
    assert grid.conditions["3D only"].stages == {"sft": {"RECORDS_2D": 0}, "test": {}}
    rl = {"OVERRIDES": "grounding.iou_weight=0.5, sft.bf16=null"}
    assert grid.conditions["RL"].stages == {"sft": {}, "rl": rl, "test": {}}
    assert grid.claims["mixture"].where == {"dimension": "3d"}
    assert grid_of(tmp_path, GOOD.replace("seeds: 2", "seeds: [3, 5]")).seeds == (3, 5)


def test_names_that_yaml_reads_as_booleans_stay_names(tmp_path):
    """A condition called ``no`` became False, and the claim about it found no such condition."""
    text = "conditions: {no: {sft: {RECORDS_3D: 0}}, off: {}, 1: {}}\n"
    grid = grid_of(tmp_path, text + "claims: {yes: {better: no, worse: off}}")
    assert list(grid.conditions) == ["no", "off", "1"]
    assert grid.claims["yes"].better == "no" and plan(grid)[0].conditions == ("no",)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("seeds: 2", "seeds: 0", "at least 1 item"),
        ("seeds: 2", "seeds: [1, 1]", "different numbers"),
        ("seeds: 2", "sedes: 2", "sedes.*perhaps 'seeds'"),
        ("sft: {COMP", "stf: {COMP", "answer only: stf.*perhaps 'sft'"),
        ("better: joint", "better: join", "'join'.*perhaps 'joint'"),
        ("RECORDS_2D: 0", "SEED: 0", "leave out PROFILE, SEED"),
        ("about: Does", "name: ../mine\nabout: Does", "name: .*'../mine'"),
        # settings are tried before anything runs: a wrong type passed as text before
        ("sft.max_steps: 3", "sft.max_steps: sixteen", "sft.max_steps.*'sixteen'"),
        ("iou_weight: 0.5", "iou_wieght: 0.5", "iou_wieght.*iou_weight"),
        ("conditions:", "conditions: [", "a grid in YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, part):
    assert old in GOOD
    with pytest.raises(GridError, match=rf"(?s)mine\.yaml.*{part}"):
        grid_of(tmp_path, GOOD.replace(old, new, 1))


def test_a_stage_is_planned_once_for_all_that_share_it(tmp_path):
    grid = grid_of(tmp_path)
    jobs = plan(grid)
    by_key = {job.key: job for job in jobs}
    assert len(by_key) == len(jobs) == 2 * (3 + 1 + 4)  # fine-tunings, RL, tests of each seed
    first, *_ = jobs
    assert first.conditions == ("joint", "RL") and first.stage == "sft"
    assert first.parameters["RUN"] in first.makes
    for at, job in enumerate(jobs):
        if job.needs:
            before = by_key[job.needs]
            assert before in jobs[:at] and job.parameters["MODEL"] == before.makes
    rl = next(job for job in jobs if job.stage == "rl" and job.seed == 1)
    assert rl.parameters["OVERRIDES"].endswith("sft.bf16=null") and rl.parameters["SEED"] == 1
    assert "tutorial 05 --profile smoke" in rl.command()
    assert {job.parameters["SEED"] for job in jobs if job.stage == "test"} == {0}
    assert [job.name for job in plan(grid)] == [job.name for job in jobs]
    assert {job.seed for job in plan(grid, seeds=1, only=["RL"])} == {0}
    with pytest.raises(GridError, match="perhaps 'joint'"):
        plan(grid, only=["jont"])
    with pytest.raises(GridError, match=r"seeds: expected 1 to 2.*found 3"):  # it ran two
        plan(grid, seeds=3)


def test_another_profile_is_another_study(tmp_path):
    text = GOOD.replace("profile: smoke", "profile: laptop")
    short = "  joint: {}\n  short: {sft: {OVERRIDES: sft.max_steps=1}}"
    grid = grid_of(tmp_path, text.replace("  joint: {}", short))
    small = grid.at("smoke", "sft.max_steps=9")
    assert (small.name, small.overrides, small.minutes) == ("mine-smoke", "sft.max_steps=9", {})
    assert list(small.conditions) == ["joint", "RL"] and not small.claims  # 3D only is not run
    assert list(grid.at("t4").conditions) == ["joint", "3D only", "answer only", "RL"]
    assert grid.at(None, "grpo.beta=0").overrides.endswith("sft.bf16=false, grpo.beta=0")
    assert not {job.key for job in plan(small)} & {job.key for job in plan(grid)}


@pytest.mark.parametrize("path", sorted((ROOT / "data" / "ablations").glob("*.yaml")), ids=str)
def test_the_grids_that_ship_can_be_run(path):
    grid = load_grid(path)
    assert len(grid.seeds) >= 3 and set(grid.minutes) == {job.stage for job in plan(grid)}
    small = plan(grid.at("smoke"), seeds=1)
    assert len(small) <= 6 and {job.stage for job in small} == set(grid.minutes) <= set(STAGES)
