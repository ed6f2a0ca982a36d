"""Formulas against the true classes: parameters counted on the meta device, operations counted by PyTorch."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLForConditionalGeneration

from unireason_lib.errors import ModelError
from unireason_lib.imaging.frame import QWEN_FRAME
from unireason_lib.planning import Shape, Work, published_config, samples_of, shape_of
from unireason_lib.training.sft import LORA_TARGETS, freeze

QWEN = {"3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"}
KNOWN = {
    "3b": (3_754_622_976, 668_684_288),
    "7b": (8_292_166_656, 676_550_144),
}  # hub pages; vision with merger


@pytest.fixture(scope="module", params=["3b", "7b"])
def big(request):
    """A published model on the meta device: true shapes, no memory."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(published_config(QWEN[request.param]))
    return request.param, model, shape_of(request.param)


def test_parameters_are_those_of_the_true_model(big):
    name, model, shape = big
    learns, frozen = freeze(model)
    assert (learns + frozen, frozen) == KNOWN[name]
    assert (shape.total, shape.vision, shape.language) == (learns + frozen, frozen, learns)
    layer = model.model.language_model.layers[0]
    assert shape.layer == sum(p.numel() for p in layer.parameters())
    assert shape.layer_matrices == sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    assert shape.merger == sum(p.numel() for p in model.model.visual.merger.parameters())


def test_adapters_sit_on_the_language_model_alone(big):
    name, _, shape = big
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(published_config(QWEN[name]))
        adapted = get_peft_model(
            model, LoraConfig(r=16, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
        )
    learns = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    assert sum(learns.values()) == shape.adapters(16)
    assert len(learns) == 2 * 7 * shape.layers
    assert not [n for n in learns if "visual" in n]


def test_operations_of_the_true_language_model(big):
    _, model, shape = big
    tokens = 2806
    hidden = torch.empty(1, tokens, shape.hidden, device="meta")
    places = torch.zeros(3, 1, tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        out = model.model.language_model(inputs_embeds=hidden, position_ids=places, use_cache=False)
        model.lm_head(out.last_hidden_state)
    other_half = (
        2 * shape.layers * shape.hidden * tokens**2
    )  # the counter does not know that attention is causal
    assert Work(shape).language(tokens) + other_half == pytest.approx(
        counted.get_total_flops(), rel=1e-3
    )


def test_operations_with_a_cache_are_those_without():
    work = Work(shape_of("7b"))
    both = work.language(3000)
    assert work.language(2000) + work.language(1000, before=2000) == pytest.approx(both)
    assert work.language(1000, logits=1) < work.language(1000)


def test_operations_of_the_vision_tower_and_of_a_training_step(tiny_model):
    model, processor = tiny_model
    shape = Shape.from_config(model.config)
    text = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}] * 8 + [{"type": "text", "text": "what " * 20}],
            }
        ],
        tokenize=False,
    )
    batch = processor(text=[text], images=[Image.new("RGB", (64, 64))] * 8, return_tensors="pt")
    tokens, work = batch["input_ids"].shape[1], Work(shape)
    pictures = (16,) * 8
    with FlopCounterMode(display=False) as seen, torch.no_grad():
        model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
    looks = (
        min(64, shape.window) * (shape.vision_layers - shape.vision_full) + 64 * shape.vision_full
    )
    attention = (
        4 * shape.vision_hidden * 8 * 64 * looks
    )  # on a CPU the counter passes over fused attention
    assert work.vision(pictures) - attention == pytest.approx(seen.get_total_flops(), rel=0.01)

    before = [p.requires_grad for p in model.parameters()]
    freeze(model)
    try:
        with FlopCounterMode(display=False) as counted:
            model(**batch, labels=batch["input_ids"]).loss.backward()
    finally:
        for parameter, needed in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(needed)
            parameter.grad = None
    causal = 2 * shape.layers * shape.hidden * tokens**2
    expected = 3 * (work.language(tokens) - causal) + work.vision(pictures) - attention
    assert expected == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_a_volume_of_32_slices_costs_what_the_paper_says():
    volume = samples_of(QWEN_FRAME, (32, 256, 256))["3d"]
    assert volume.pictures == (81,) * 32  # 252 x 252 pixels
    assert volume.prompt - volume.asked == 32 * 83 == 2656  # "about 2,650"
    assert volume.tokens == volume.prompt + volume.injected + volume.written
    slices = samples_of(QWEN_FRAME, (32, 256, 256), picture=512)["2d"]
    assert slices.pictures == (324,)


def test_the_tiny_model_has_a_shape_too(tiny_checkpoint, tiny_model):
    assert shape_of(tiny_checkpoint).total == sum(p.numel() for p in tiny_model[0].parameters())
    assert shape_of("IQuestLab/UniReason-Med") == shape_of("7B")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"Qwen/Qwen2\.5-VL-7B-Instruct.*config\.json"):
        shape_of("Qwen/Qwen9")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ModelError, match="expected qwen2_5_vl, found qwen3_vl"):
        shape_of(tmp_path)
