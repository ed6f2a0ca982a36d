"""Profiles: what they hold, and that no typo and no wrong type passes."""

import copy
import pickle

import pytest
from pydantic import ValidationError

from unireason_lib.config import NAMES, load_profile, parse_overrides, parse_value
from unireason_lib.errors import ProfileError


@pytest.mark.parametrize("name", NAMES)
def test_sft_and_grpo_are_arguments_of_trl(name):
    from trl import GRPOConfig, SFTConfig

    profile = load_profile(name)
    for config_class, section in ((SFTConfig, profile.sft), (GRPOConfig, profile.grpo)):
        fields = config_class.__dataclass_fields__
        assert set(section.model_dump()) <= set(fields)
    replies = profile.grpo.per_device_train_batch_size * profile.grpo.gradient_accumulation_steps
    assert profile.grpo.generation_batch_size % profile.grpo.num_generations == 0
    assert replies % profile.grpo.num_generations == 0


def test_gpu_has_the_values_of_the_paper():
    profile = load_profile("gpu")
    assert profile.model.path == "IQuestLab/UniReason-Med"
    assert profile.serialization.size == (32, 256, 256)
    assert profile.sft.learning_rate == 1e-5 and profile.sft.num_train_epochs == 1
    assert profile.grpo.generation_batch_size == 128 * 16 and profile.grpo.beta == 0.01
    assert profile.grounding.muon_learning_rate == 0 and profile.grounding.sft_lora_r is None


def test_overrides_as_text_as_mapping_and_by_keyword_agree():
    text = load_profile("laptop", "generation.max_rounds=3, serialization.size=[8,64,64]; top_p=1")
    mapping = {"generation.max_rounds": 3, "serialization.size": [8, 64, 64], "top_p": 1.0}
    mapping = load_profile("laptop", mapping)
    keyword = load_profile("laptop", max_rounds=3, size=(8, 64, 64), top_p=1)
    assert text == mapping == keyword != load_profile("laptop")
    assert text.serialization.size == (8, 64, 64)
    assert isinstance(text.generation.top_p, float)


def test_any_argument_of_trl_may_be_set():
    changes = "sft.adam_beta2=0.95, grpo.epsilon_high=0.3, grounding.sft_lora_r=none"
    profile = load_profile("smoke", changes)
    assert profile.sft.model_dump()["adam_beta2"] == 0.95
    assert profile.grpo.epsilon_high == 0.3 and profile.grounding.sft_lora_r is None


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("labtop", "", "laptop"),
        ("../laptop", "", "smoke, laptop, t4, gpu"),
        ("laptop", "generation.max_round=3", "generation.max_rounds"),
        ("laptop", "serialisation.size=[1,2,3]", "serialization.size"),
        ("laptop", "xyz=3", "model.path"),
        ("laptop", "max_steps=3", "sft.max_steps or grpo.max_steps"),
        ("laptop", "max_rounds=many", "integer, found 'many'"),
        ("laptop", "max_rounds=2.5", "integer"),
        ("laptop", "max_rounds=true", "integer, found True"),
        ("laptop", "size=8", "tuple"),
        ("laptop", "size=[8,'a',64]", "'a'"),
        ("laptop", "offline=0", "bool"),
        ("laptop", "window=none", "string"),
        ("laptop", "model.adapter=[1]", "string"),
        ("laptop", "grpo.learning_rate=none", "number"),
        ("laptop", "dtype=float8", "'bfloat16'"),
        ("laptop", "just words", "="),
        # names of TRL: a wrong type passed as text, and a private synonym was accepted
        ("laptop", "sft.lora_rank=sixteen", "lora_rank.*no argument of SFTConfig.*'sft_lora_r'"),
        ("laptop", "lora_rank=16", "grounding.sft_lora_r"),
        ("laptop", "sft.max_lenght=3", "perhaps 'max_length'"),
        ("laptop", "sft.learning_rate=fast", "sft.learning_rate.*number, found 'fast'"),
        ("laptop", "sft.adam_beta2=high", "adam_beta2: .*number"),
        # arguments that would have no effect, or break a run
        ("laptop", "sft.output_dir=elsewhere", "sft.output_dir.*'elsewhere'.*--out"),
        ("laptop", "sft.packing=true", "sft.packing.*encoded before"),
        ("laptop", "sft.eval_strategy=steps", "sft.eval_strategy.*free_running_steps"),
        ("laptop", "grpo.top_p=0.9", "top_p.*plain sampling"),
        ("laptop", "grpo.vllm_mode=colocate", "vllm_mode.*vLLM server"),
        ("laptop", "grpo.reward_weights=[1.0]", "reward_weights.*iou_weight"),
        ("laptop", "sft.save_only_model=true", "resumed exactly"),
        ("laptop", "grpo.ignore_data_skip=true", "resumed exactly"),
        ("laptop", "sft.pad_to_multiple_of=64", "multiple of 8"),
        ("laptop", "grpo.sync_ref_model=true", "reference model"),
        ("laptop", "grpo.mask_truncated_completions=true", "no tokens"),
    ],
)
def test_wrong_names_and_types_are_refused_with_help(name, overrides, says):
    with pytest.raises(ProfileError, match=says):
        load_profile(name, overrides)


def test_frozen_and_plain():
    profile = load_profile("smoke")
    with pytest.raises(ValidationError, match="frozen"):
        profile.generation.max_rounds = 5
    with pytest.raises(AttributeError, match="max_round"):
        _ = profile.generation.max_round
    assert pickle.loads(pickle.dumps(profile)) == profile == copy.deepcopy(profile)
    assert profile.model_dump()["generation"]["max_rounds"] == profile.generation.max_rounds
    assert profile.model_dump()["name"] == "smoke"


def test_literals_as_typed():
    typed = ["3", " 1e-5", "true", "None", "[8, 64]", "tiny", "'a b'", "a=b", ""]
    values = [3, 1e-5, True, None, [8, 64], "tiny", "a b", "a=b", ""]
    assert [parse_value(text) for text in typed] == values
    parsed = parse_overrides("a.b=1,c=[1,2];d=(3,4)\ne=x, f={'g': 1, 'h': [2, {}]}")
    assert parsed == {"a.b": 1, "c": [1, 2], "d": (3, 4), "e": "x", "f": {"g": 1, "h": [2, {}]}}
