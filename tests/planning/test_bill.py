"""What is planned: it adds up, it refuses what cannot fit, and it names the nearest that can."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from unireason_lib.cli import app
from unireason_lib.errors import PlanError
from unireason_lib.imaging.frame import QWEN_FRAME
from unireason_lib.planning import Cluster, Range, bill, memory, samples_of, shape_of
from unireason_lib.planning.counts import count_rows, phantom_rows
from unireason_lib.planning.grids import grid_hours
from unireason_lib.profiles import load_profile

GRID = "data/ablations/claims.yaml"


@pytest.fixture(scope="module")
def seven():
    return shape_of("7b")


@pytest.fixture(scope="module")
def samples():
    return samples_of(QWEN_FRAME, (32, 256, 256), 512)


def made(samples, gpus="8xH100", changes="", **more):
    profile = load_profile("gpu", changes)
    return bill(profile, shape_of("7b"), Cluster.named(gpus), samples, **more)


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *arguments])


def test_clusters_are_read_as_people_write_them():
    eight = Cluster.named("8xH100")
    assert (eight.count, eight.gpu, eight.memory, eight.peak) == (8, "H100", 80e9, 989e12)
    assert Cluster.named("a100").text == "1xA100"
    assert Cluster.named("2 x rtx4090", price=0.5).price == Range(0.5, 0.5)
    for wrong in ("8xH1000", "0xH100", "many", "x8"):
        with pytest.raises(PlanError, match="--gpus"):
            Cluster.named(wrong)


def test_twice_the_gpus_take_half_the_hours_for_the_same_money(samples):
    one, two = (made(samples, f"{n}xH100", strategy="zero3", stages=("sft",)) for n in (8, 16))
    assert two.hours("sft").low == pytest.approx(one.hours("sft").low / 2)
    assert two.lines[0].cost == pytest.approx(one.lines[0].cost)
    assert two.memory["sft"].total < one.memory["sft"].total


def test_hours_follow_from_operations(samples):
    line = made(samples, stages=("sft",)).lines[0]
    assert line.hours.low * 3600 * 8 * 989e12 * 0.45 == pytest.approx(line.flops)
    assert line.hours.high * 3600 * 8 * 989e12 * 0.25 == pytest.approx(line.flops)
    assert line.cost.low == pytest.approx(line.hours.low * 8 * 2.0)
    half = made(samples, "8xH100", "sft.epochs=0.5", stages=("sft",)).lines[0]
    assert half.flops == pytest.approx(line.flops / 2)
    steps = made(samples, "8xH100", "sft.steps=100", stages=("sft",)).lines[0]
    assert steps.flops == pytest.approx(line.flops * 100 * 2 * 4 * 8 / 220_000)


def test_what_learns_decides_what_a_step_costs(samples):
    full = made(samples, stages=("sft",)).lines[0].flops
    adapters = made(samples, strategy="lora", stages=("sft",)).lines[0].flops
    kept = (
        made(
            samples, "8xH100", "sft.gradient_checkpointing=false", strategy="lora", stages=("sft",)
        )
        .lines[0]
        .flops
    )
    assert adapters / full == pytest.approx(
        3 / 4, abs=0.03
    )  # and attention, which has no parameters
    assert kept / full == pytest.approx(2 / 4, abs=0.06)


def test_memory_is_shared_as_zero_says(seven):
    cluster = Cluster.named("8xH100")
    alone, shared = (memory(seven, cluster, way, 6000).parts for way in ("ddp", "zero3"))
    name = "weights, gradients, optimizer"
    assert alone[name] == 16 * seven.language and shared[name] == alone[name] / 8
    assert (
        memory(seven, cluster, "qlora", 6000).parts["frozen weights"]
        < alone["frozen weights"] + 6e9
    )
    other = memory(seven, cluster, "fsdp2", 6000).parts
    assert {k: v for k, v in shared.items() if other[k] != v} == {
        "frozen weights": other["frozen weights"] / 2
    }
    more = memory(seven, cluster, "zero3", 12000).parts["activations"]
    assert more == 2 * shared["activations"]
    without = memory(seven, cluster, "zero3", 6000, checkpointing=False).parts["activations"]
    assert without > 5 * shared["activations"]


def test_what_cannot_fit_is_refused_with_the_nearest_that_can(samples):
    with pytest.raises(PlanError) as refused:
        made(samples, "1xA100", strategy="ddp", stages=("sft",))
    said = str(refused.value)
    assert "sft, ddp on 1xA100: expected at most 73.6 GB" in said
    assert "--strategy lora or qlora on 1xA100" in said
    made(samples, "1xA100", strategy="lora", stages=("sft",))
    with pytest.raises(PlanError, match=r"2xH100"):
        made(samples, "1xH100", strategy="zero3", stages=("sft",))
    made(samples, "2xH100", strategy="zero3", stages=("sft",))
    with pytest.raises(PlanError, match=r"rl\.generated_together"):
        made(samples, "1xA100", "rl.generated_together=128", strategy="lora", stages=("rl",))


def test_rollouts_in_smaller_batches_need_less_memory_and_more_time(samples):
    few, many = (
        made(samples, changes=f"rl.generated_together={n}", stages=("rl",)) for n in (2, 4)
    )
    assert (
        few.memory["rl"].parts["keys and values"] * 2 == many.memory["rl"].parts["keys and values"]
    )
    assert few.lines[0].hours.low > many.lines[0].hours.low
    served = made(samples, stages=("rl",), served=True)
    assert "keys and values" not in served.memory["rl"].parts
    assert served.lines[0].hours.low < few.lines[0].hours.low


@pytest.mark.parametrize(
    ("profile", "gpus", "model"),
    [("t4", "T4", "3b"), ("gpu", "8xH100", "7b"), ("gpu", "8xA100", "7b")],
)
def test_profiles_fit_what_they_are_made_for(profile, gpus, model, samples):
    settings = load_profile(profile)
    sizes = samples_of(QWEN_FRAME, settings.dataset.shape, 512)
    one = bill(settings, shape_of(model), Cluster.named(gpus), sizes, **phantom_rows(settings))
    assert all(held.fits for held in one.memory.values())


def test_a_grid_costs_its_runs(samples, tmp_path):
    one = made(samples, stages=("sft", "test"))
    cost = grid_hours(GRID, "gpu", one)
    assert cost.runs["test"] >= cost.runs["sft"] >= 30 and cost.runs["rl"] == 10
    slices, volumes = (
        made(samples, stages=("sft",), records=records).hours("sft").low
        for records in ({"2d": 220_000, "3d": 0}, {"2d": 0, "3d": 220_000})
    )  # as many steps for all, of the cheapest and of the dearest examples
    assert cost.runs["sft"] * slices < cost.hours["sft"].low < cost.runs["sft"] * volumes
    assert cost.table()[-1][0] == "in all"
    few = made(samples, stages=("sft", "test"), records={"2d": 1000, "3d": 1000})
    assert grid_hours(GRID, "gpu", few).hours["sft"].low < cost.hours["sft"].low / 10
    half = grid_hours(GRID, "gpu", one, "sft.epochs=0.5").hours["sft"].low
    assert half == pytest.approx(
        cost.hours["sft"].low / 2, rel=0.01
    )  # steps of a condition are a share of all
    own = tmp_path / "own.yaml"
    own.write_text(
        "profile: gpu\nseeds: 1\noverrides: {sft.steps: 1000}\nconditions: {all: {sft: {}}}\n"
    )
    found = {  # at its own size a grid has steps of its own; what is changed by hand counts more
        changes: grid_hours(own, "gpu", one, changes).hours["sft"].low
        for changes in ("", "sft.steps=2000", "sft.epochs=9\nsft.log_steps=5")
    }
    assert found["sft.steps=2000"] == pytest.approx(2 * found[""], rel=0.01)
    assert found["sft.epochs=9\nsft.log_steps=5"] == found[""]


def test_a_quantised_model_is_asked_with_the_weights_that_it_has(samples):
    settings = load_profile("t4")
    sizes = samples_of(QWEN_FRAME, settings.dataset.shape, 512)
    small = bill(settings, shape_of("3b"), Cluster.named("T4"), sizes, stages=("test",))
    whole = load_profile("t4", "model.quantization=null")
    large = bill(whole, shape_of("3b"), Cluster.named("T4"), sizes, stages=("test",))
    assert (
        small.memory["test"].parts["frozen weights"]
        < 0.5 * large.memory["test"].parts["frozen weights"]
    )
    assert small.hours("test").low > large.hours("test").low  # they are unpacked in every step


def test_rows_are_counted_by_dimension(tmp_path):
    shown = ["<image>one", "<image>two", "<image><image>slices", "a volume"]
    for form, turns in (("sft", "messages"), ("rl", "prompt")):
        (tmp_path / form).mkdir()
        rows = [
            [{"role": "user", "content": text}, {"role": "assistant", "content": "<image>"}]
            for text in shown
        ]
        ids = [["a"], ["b", "crop"], ["s1", "s2"], []]
        pq.write_table(
            pa.table({turns: rows, "image_ids": ids}), tmp_path / form / "part-0.parquet"
        )
    assert count_rows(tmp_path, "sft") == count_rows(tmp_path, "rl") == {"2d": 2, "3d": 2}
    train = tmp_path / "sft" / "train-0.parquet"
    pq.write_table(pa.table({"messages": rows[:1]}), train)
    assert count_rows(tmp_path, "sft") == {"2d": 1, "3d": 0}  # what is held out is not learnt from
    train.write_bytes(b"no table")
    with pytest.raises(PlanError, match=r"train-0\.parquet"):
        count_rows(tmp_path, "sft")
    (tmp_path / "empty" / "sft").mkdir(parents=True)
    with pytest.raises(PlanError, match=r"expected \*\.parquet with rows"):
        count_rows(tmp_path / "empty", "sft")


def test_what_the_trainers_refuse_is_refused_before(samples):
    with pytest.raises(PlanError, match=r"multiple of micro_batch x GPUs.*[48]xH100"):
        made(samples, "6xH100", stages=("rl",))
    with pytest.raises(PlanError, match=r"bfloat16.*profile t4"):
        made(samples, "8xT4", stages=("sft",))
    with pytest.raises(PlanError, match=r"--stage.*'eval'"):
        made(samples, stages=("eval",))
    with pytest.raises(PlanError, match=r"--strategy.*'tensor'"):
        made(samples, strategy="tensor")


def test_a_model_that_is_spread_has_to_be_loaded_first(samples):
    """DeepSpeed puts all of a model on every GPU before it spreads it; PyTorch takes it from the CPU."""
    with pytest.raises(PlanError, match="while it is loaded"):
        made(samples, "16xL4", strategy="zero3", stages=("rl",), served=True)
    assert made(samples, "32xL4", strategy="fsdp2", stages=("sft",)).memory["sft"].loading == 0


def test_a_server_is_paid_for_as_long_as_rl_lasts(samples):
    alone, served = made(samples, stages=("rl",)), made(samples, stages=("rl",), served=True)
    updates, with_server = (
        next(line for line in one.lines if line.what == "updates") for one in (alone, served)
    )
    assert with_server.hours == updates.hours
    assert with_server.cost.low == pytest.approx(2 * updates.cost.low)


def test_each_stage_has_the_strategy_that_its_section_asks_for(samples):
    laptop = load_profile("laptop")
    ways = bill(laptop, shape_of("data/tiny-base"), Cluster.named("H100"), samples).strategies
    assert ways == {"sft": "ddp", "rl": "lora", "test": "frozen"}


def test_the_command(tmp_path):
    out = tmp_path / "bill.json"
    shown = run("--gpus", "8xH100", "--price", "3", "--grid", GRID, "--json", str(out))
    assert shown.exit_code == 0, shown.output
    assert "8.29 B parameters" in shown.stdout and "on 8xH100; fine-tuning: zero3" in shown.stdout
    assert "--config_file unireason_lib/training/launch/zero3.yaml" in shown.stdout
    told = json.loads(out.read_text())
    assert told["samples"]["3d"]["prompt"] == 2806
    assert set(told["memory"]) == {"sft", "rl", "test"} and told["grids"][GRID]["sft"]["runs"] >= 30
    assert run("--gpus", "1xA100").exit_code == 2
    assert "--strategy lora" in run("--gpus", "1xA100").stderr
    assert run("--gpus", "8xH100", "--records", "10").exit_code == 2
    fewer = run("--gpus", "8xH100", "--records", "100,0", "--questions", "10,10", "--stage", "sft")
    assert "1 passes over 100 records" in fewer.stdout
