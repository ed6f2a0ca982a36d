"""The accelerate configurations that ship: accelerate reads them, and what they name is there."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

import unireason_lib.training
from unireason_lib.config import load_profile

FOLDER = Path(unireason_lib.training.__file__).parent / "launch"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.mixed_precision == "bf16" and config.num_processes == 8 and not config.use_cpu
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[name]
    assert config.distributed_type.value == kind


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_it_mentions_are_settings(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    for section, setting in re.findall(r"\b(sft|grpo|grounding|model)\.(\w+)", text):
        assert setting in getattr(load_profile("gpu"), section).model_dump()


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
