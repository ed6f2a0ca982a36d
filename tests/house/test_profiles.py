"""The dial: what profiles hold, and that no typo passes."""

from __future__ import annotations

import copy
import pickle

import pytest

from unireason_lib.errors import ProfileError
from unireason_lib.profiles import (
    load_profile,
    match_type,
    parse_overrides,
    parse_value,
    profile_names,
)


def leaves(profile):
    return {
        f"{section}.{name}": value
        for section, settings in profile.items()
        if section != "name"
        for name, value in settings.items()
    }


def test_profiles_come_smallest_first():
    assert profile_names() == ["smoke", "laptop", "t4", "gpu"]


@pytest.mark.parametrize("name", ["smoke", "t4", "gpu"])
def test_all_profiles_have_the_settings_of_laptop_with_its_types(name):
    laptop, other = leaves(load_profile("laptop")), leaves(load_profile(name))
    assert list(other) == list(laptop)
    assert {key for key in laptop if laptop[key] != other[key]}, "a profile that changes nothing"
    for key, value in laptop.items():
        if other[key] is not None:
            match_type(key, other[key], value)


def test_null_may_stand_where_some_profile_has_it():
    assert load_profile("laptop", "rl.lora_rank=none").rl.lora_rank is None
    assert load_profile("laptop", "rl.lora_rank=none; rl.steps=3").rl.steps == 3
    with pytest.raises(ProfileError, match="learning_rate"):
        load_profile("laptop", "rl.learning_rate=none")


def test_gpu_has_the_values_of_the_paper():
    profile = load_profile("gpu")
    assert profile.model.path == "IQuestLab/UniReason-Med"
    assert profile.model.base == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert profile.model.dtype == "bfloat16"
    assert profile.serialization.size == (32, 256, 256)
    assert profile.serialization.window == "percentile"
    assert profile.generation.max_rounds == 10


def test_smoke_is_no_larger_than_laptop_anywhere():
    small, large = leaves(load_profile("smoke")), leaves(load_profile("laptop"))
    for key, value in small.items():
        if isinstance(value, int):
            assert large[key] is None or value <= large[key], key  # None: no limit
        if isinstance(value, tuple):
            assert sum(value) <= sum(large[key]), key


def test_overrides_as_text_as_mapping_and_by_keyword_agree():
    text = load_profile(
        "laptop", "generation.max_rounds=3, serialization.size=[8,64,64]; temperature=1"
    )
    mapping = load_profile(
        "laptop",
        {
            "generation.max_rounds": 3,
            "serialization.size": [8, 64, 64],
            "generation.temperature": 1.0,
        },
    )
    keyword = load_profile("laptop", max_rounds=3, size=(8, 64, 64), temperature=1)
    assert text == mapping == keyword
    assert text.serialization.size == (8, 64, 64)
    assert isinstance(text.generation.temperature, float)
    assert load_profile("laptop").generation.max_rounds != 3


def test_a_null_default_takes_a_value_and_gives_it_back():
    assert load_profile("laptop", "model.adapter=runs/sft").model.adapter == "runs/sft"
    assert load_profile("laptop", adapter="runs/rl").model.adapter == "runs/rl"


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("labtop", "", "laptop"),
        ("../laptop", "", "smoke, laptop, t4, gpu"),
        ("laptop", "generation.max_round=3", "generation.max_rounds"),
        ("laptop", "serialisation.size=[1,2,3]", "serialization.size"),
        ("laptop", "xyz=3", "model.path"),
        ("laptop", "max_rounds=many", "int"),
        ("laptop", "max_rounds=2.5", "int"),
        ("laptop", "max_rounds=true", "bool"),
        ("laptop", "size=8", "(8|tuple|list)"),
        ("laptop", "size=[8,'a',64]", "'a'"),
        ("laptop", "offline=0", "bool"),
        ("laptop", "window=none", "str"),
        ("laptop", "model.adapter=[1]", "none"),
        ("laptop", "just words", "="),
    ],
)
def test_wrong_names_and_types_are_refused_with_help(name, overrides, says):
    with pytest.raises(ProfileError, match=says):
        load_profile(name, overrides)


def test_frozen_by_attribute_and_by_content():
    profile = load_profile("smoke")
    with pytest.raises(AttributeError, match="read-only"):
        profile.generation.max_rounds = 5
    with pytest.raises(AttributeError, match="max_rounds"):
        _ = profile.generation.max_round
    with pytest.raises(TypeError):
        profile["generation"] = {}
    assert isinstance(profile.notebook.box_counts, tuple)


def test_survives_pickling_and_copying_and_becomes_plain_values():
    profile = load_profile("laptop")
    assert pickle.loads(pickle.dumps(profile)) == profile == copy.deepcopy(profile)
    assert profile.as_dict()["generation"]["max_rounds"] == profile.generation.max_rounds
    assert profile.as_dict()["name"] == "laptop"


def test_literals_as_typed():
    typed = ["3", " 1e-5", "true", "None", "[8, 64]", "tiny", "'a b'", "a=b", ""]
    assert [parse_value(text) for text in typed] == [
        3,
        1e-5,
        True,
        None,
        [8, 64],
        "tiny",
        "a b",
        "a=b",
        "",
    ]
    assert parse_overrides("a.b=1,c=[1,2];d=(3,4)\ne=x, ") == {
        "a.b": 1,
        "c": [1, 2],
        "d": (3, 4),
        "e": "x",
    }
