"""The accelerate configurations that ship: accelerate reads them, and what they name is there."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl

import unireason_lib.training

FOLDER = Path(unireason_lib.training.__file__).parent / "launch"


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero3", "DEEPSPEED")]
)
def test_accelerate_reads_it(name, kind):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.mixed_precision == "bf16" and config.num_processes == 8 and not config.use_cpu
    assert config.distributed_type.value == kind
    if name == "fsdp2":  # layers that there are, and whole checkpoints
        layers = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
        comment = (FOLDER / "fsdp2.yaml").read_text(encoding="utf-8").split("Qwen3-VL: ")[1]
        assert all(hasattr(modeling_qwen2_5_vl, layer) for layer in layers.split(","))
        assert all(hasattr(modeling_qwen3_vl, layer) for layer in comment.split()[0].split(","))
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    if name == "zero3":  # whole checkpoints, and the schedule of the profile
        settings = config.deepspeed_config
        assert settings["zero_stage"] == 3 and settings["zero3_save_16bit_model"]
        assert settings["gradient_accumulation_steps"] == settings["gradient_clipping"] == "auto"
