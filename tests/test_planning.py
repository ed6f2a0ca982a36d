"""Planning: counts are those of the model, memory and hours follow, what cannot fit is refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from unireason_lib.cli import app
from unireason_lib.config import load_profile
from unireason_lib.errors import PlanError
from unireason_lib.planning import (
    _widths,
    estimate,
    image_flops,
    language_flops,
    lora_parameters,
    parameters,
    samples_of,
    shaped_model,
)
from unireason_lib.training.sft import LORA_TARGETS


def made(gpus="8xH100", overrides="", profile="gpu", **more):
    return estimate(load_profile(profile, overrides), gpus, **more)


@pytest.mark.parametrize(
    ("name", "total", "vision"),
    [
        ("3b", 3_754_622_976, 668_684_288),
        ("7b", 8_292_166_656, 676_550_144),
        # in all, what the safetensors of the hub hold; vision with the mergers of deepstack
        ("Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032, 406_957_056),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808, 415_347_712),
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696, 576_388_336),
    ],
)
def test_parameters_are_those_of_the_published_models(name, total, vision):
    model = shaped_model(name)
    assert parameters(model) == (total - vision, vision)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_flops_of_a_prompt_are_what_the_whole_model_takes():
    """3B at 3,086 tokens: 1.99e13; a hand formula that halves causal attention says 1.85e13."""
    model, tokens = shaped_model("3b"), 3086
    hidden = torch.empty(1, tokens, 2048, device="meta")
    positions = torch.zeros(3, 1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = model.model.language_model(inputs_embeds=hidden, position_ids=positions)
        model.lm_head(out.last_hidden_state[:, -1:])
    assert language_flops(model, tokens) == counter.get_total_flops()
    assert language_flops(model, tokens) == pytest.approx(1.99e13, rel=0.005)
    causal = 2 * 36 * 2048 * tokens**2
    assert language_flops(model, tokens) - causal == pytest.approx(1.85e13, rel=0.005)


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_qwen3"])
def test_flops_of_a_training_step_are_what_the_tiny_model_takes(fixture, request):
    loaded, processor = request.getfixturevalue(fixture)
    model = shaped_model(loaded.name_or_path)
    content = [{"type": "image"}, {"type": "text", "text": "what " * 60}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    image = Image.new("RGB", (64, 64))
    batch = processor(text=[text], images=[image], return_tensors="pt")
    tokens = batch["input_ids"].shape[1]
    before = [p.requires_grad for p in loaded.parameters()]
    loaded.requires_grad_(True).model.visual.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        loaded(**batch, labels=batch["input_ids"]).loss.backward()
    for parameter, needed in zip(loaded.parameters(), before, strict=True):
        parameter.requires_grad_(needed).grad = None
    side = 64 // processor.image_processor.patch_size // 2
    expected = language_flops(model, tokens, tokens, "all") + image_flops(model, side, side)
    # on a CPU the counter passes over fused attention, a small part at this length
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.1)
    adapters, forward = language_flops(model, 512, 1, "adapters"), language_flops(model, 512)
    assert 2 <= adapters / forward < language_flops(model, 512, 1, "all") / forward <= 3.1
    expected = lora_parameters(model, 8)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=LORA_TARGETS))
    assert adapted.num_parameters(only_trainable=True) == expected > 0
    shaped_model.cache_clear()  # it has adapters now


def test_a_volume_of_32_slices_has_as_many_tokens_as_the_paper_says():
    samples = samples_of((32, 256, 256), image=512)
    image, volume = samples.loc["2d"], samples.loc["3d"]
    assert volume["rows"] == 9 and volume["prompt"] - 150 == 2656  # "about 2,650"
    assert image["images"] == 1 and image["columns"] == 18
    assert volume["tokens"] == volume[["prompt", "injected", "generated"]].sum()
    volume = samples_of((32, 256, 256), image=512, family="qwen3_vl").loc["3d"]
    assert volume["rows"] == volume["crop_rows"] == 8  # crops have 64 tokens at least


def test_queries_may_be_wider_than_the_model():
    """Qwen3-VL-4B: 32 heads of 128, at a width of 2,560."""
    assert _widths(shaped_model("Qwen/Qwen3-VL-4B-Instruct").config.text_config) == (4096, 1024)
    assert _widths(shaped_model("3b").config.text_config) == (2048, 256)


def test_hours_and_dollars_follow_from_flops():
    def first(*words, **more):
        return made(*words, stages=("sft",), **more).work.iloc[0]

    row, peak = first(), 8 * 989e12 * 3600
    assert row["hours"] == pytest.approx(row["FLOPs"] / peak / 0.45)
    assert row["to"] == pytest.approx(row["FLOPs"] / peak / 0.25)
    assert row["USD"] == pytest.approx(row["hours"] * 8 * 2.0)
    assert row["to USD"] == pytest.approx(row["to"] * 8 * 4.5)
    twice = first("16xH100")
    assert twice["hours"] == pytest.approx(row["hours"] / 2) and twice["USD"] == row["USD"]
    half = first(overrides="sft.num_train_epochs=0.5")
    assert half["FLOPs"] == pytest.approx(row["FLOPs"] / 2)
    steps = first(overrides="sft.max_steps=100")
    assert steps["FLOPs"] == pytest.approx(row["FLOPs"] * 100 * 2 * 4 * 8 / 220_000)
    few = first(overrides="sft_data.records_2d=1000,sft_data.records_3d=0")
    assert "1 times 1,000 records" in few["part"] and first(price=1.0)["USD"] < row["USD"]


def test_memory_is_sharded_as_zero_says():
    def held(gpus, overrides="", **more):
        return made(gpus, overrides, stages=("sft",), **more).memory.iloc[:, 0]

    whole, sharded = (held("8xB200", sharding=way) for way in ("ddp", "zero3"))
    name, (language, _) = "weights, gradients, optimizer", parameters(shaped_model("7b"))
    assert whole[name] == pytest.approx(16e-9 * language)
    assert sharded[name] == pytest.approx(whole[name] / 8)
    lora = held("H100", "grounding.sft_lora_r=16")
    assert lora[name] == pytest.approx(16e-9 * lora_parameters(shaped_model("7b"), 16))
    small = held("H100", "grounding.sft_lora_r=16,model.quantization=4bit")
    assert small["frozen weights"] < 0.5 * lora["frozen weights"]
    more = held("8xH100", "sft.gradient_checkpointing=false")
    assert more["activations"] > 5 * sharded["activations"]
    learning = held("8xB200", "grounding.freeze_vision=false", sharding="zero3")
    assert learning[name] == pytest.approx(2e-9 * sum(parameters(shaped_model("7b"))))
    assert learning["frozen weights"] == 0 and learning["activations"] > sharded["activations"]


def test_replies_generated_together_decide_the_cache_of_grpo():
    few, many = (made(overrides=f"grounding.rollout_batch_size={n}") for n in (2, 4))
    caches = [one.memory.loc["keys and values"].iloc[-1] for one in (few, many)]
    assert caches[1] == pytest.approx(2 * caches[0])
    assert few.work["hours"][1] > many.work["hours"][1]
    served = made(overrides="grpo.use_vllm=true")  # by a server on as many GPUs again
    assert not served.memory.loc["keys and values"].any()
    assert served.work["USD"][3] == pytest.approx(2 * many.work["USD"][3])


def test_what_cannot_fit_is_refused_with_the_nearest_that_can():
    with pytest.raises(PlanError) as refused:
        made("1xA100", stages=("sft",))
    message = str(refused.value)
    assert "sft, ddp on 1xA100: expected at most 73.6 GB on a GPU, found 14" in message
    assert "--set grounding.sft_lora_r=16; or --gpus 2xA100" in message
    made("1xA100", "grounding.sft_lora_r=16", stages=("sft",))
    made("2xA100", stages=("sft",))
    with pytest.raises(PlanError, match=r"bfloat16.*profile t4"):
        made("8xT4")
    for text in ("8xH1000", "0xH100", "many", "x8"):
        with pytest.raises(PlanError, match="like 8xH100"):
            made(text)


def test_the_command(tmp_path):
    """The profiles fit what they are made for; what is unknown or no model is refused."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    for words, code, message in (
        ("8xH100", 0, "sft, zero3"),
        ("T4 --profile t4", 0, "| grpo"),
        ("8xA100 --stage eval", 2, "found eval"),
        ("T4 --profile t4 --model Qwen/Qwen3-VL-4B-Instruct", 0, "| grpo"),
        (f"8xH100 --model {tmp_path}", 2, "qwen3_vl (Qwen3-VL), found qwen3_vl_moe"),
    ):
        done = CliRunner().invoke(app, ["plan", "--gpus", *words.split()])
        assert done.exit_code == code and message in done.output
