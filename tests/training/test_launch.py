"""The accelerate configurations that ship: accelerate reads them, and what they name is there."""

from __future__ import annotations

import shlex

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from unireason_lib.planning.bill import strategy_of
from unireason_lib.planning.launch import CONFIGURATIONS, FOLDER, launch_command
from unireason_lib.planning.memory import STRATEGIES
from unireason_lib.profiles import load_profile

from unireason_lib.planning import Cluster

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_every_strategy_has_one():
    assert set(CONFIGURATIONS) == set(STRATEGIES)
    assert sorted(set(CONFIGURATIONS.values())) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.mixed_precision == "bf16" and config.num_processes == 8 and not config.use_cpu
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[name]
    assert config.distributed_type.value == kind


def test_fsdp2_names_layers_that_there_are_and_saves_whole_checkpoints():
    settings = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    for name in settings["fsdp_transformer_layer_cls_to_wrap"].split(","):
        assert hasattr(modeling_qwen2_5_vl, name)
    assert settings["fsdp_version"] == 2 and settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_zero3_saves_whole_checkpoints_and_leaves_the_schedule_to_the_profile():
    settings = load_config_from_file(str(FOLDER / "zero3.yaml")).deepspeed_config
    assert settings["zero_stage"] == 3 and settings["zero3_save_16bit_model"]
    assert settings["deepspeed_multinode_launcher"] == "standard"  # not pdsh from every node
    assert settings["gradient_accumulation_steps"] == settings["gradient_clipping"] == "auto"


@pytest.mark.parametrize(("gpus", "nodes"), [("8xH100", 1), ("16xH100", 2), ("4xA100", 1)])
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_command_is_one_that_accelerate_takes(gpus, nodes, strategy, monkeypatch):
    monkeypatch.chdir(FOLDER.parents[2])
    command = launch_command("sft", load_profile("gpu"), Cluster.named(gpus), strategy)
    words = shlex.split(command.replace("$NODE", "1").replace("$FIRST", "10.0.0.1"))
    assert words[:2] == ["accelerate", "launch"]
    arguments = launch_command_parser().parse_args(words[2:])
    _, config, _ = _validate_launch_command(arguments)
    assert arguments.module and arguments.training_script == "unireason_lib"
    assert arguments.num_processes == int(gpus.split("x")[0])
    assert arguments.num_machines == nodes and config is not None
    assert arguments.training_script_args[:3] == ["sft", "--profile", "gpu"]
    assert arguments.use_deepspeed == (strategy == "zero3") and arguments.use_fsdp == (
        strategy == "fsdp2"
    )


def test_one_gpu_needs_no_launcher():
    command = launch_command("rl", load_profile("t4"), Cluster.named("T4"), "qlora")
    assert (
        command
        == "python -m unireason_lib rl --profile t4 --data DATA --model MODEL --out runs/rl/NAME"
    )


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("stage", ["sft", "rl"])
@pytest.mark.parametrize("name", ["gpu", "t4", "laptop"])
def test_the_command_trains_in_the_way_that_was_planned(stage, strategy, name):
    """What it changes makes the profile ask for that strategy; changes of the caller go along."""
    cluster, changes = Cluster.named("8xH100"), [f"{stage}.learning_rate=1e-6"]
    words = shlex.split(
        launch_command(stage, load_profile(name), cluster, strategy, changes=changes, served=True)
    )
    said = [words[k + 1] for k, word in enumerate(words) if word == "--set"]
    profile = load_profile(name, "\n".join(said))
    assert profile[stage].learning_rate == 1e-6
    assert (profile.rl.vllm == "http://SERVER:8000") == (stage == "rl")
    asked = strategy_of(profile, cluster, stage)
    assert asked == strategy or {asked, strategy} <= {
        "ddp",
        "zero3",
        "fsdp2",
    }  # the launcher's configuration decides
