"""Checkpoints: complete, loadable through the Auto classes, and refused with a helpful message when they are not."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from unireason_lib.errors import ModelError
from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.grounding.model import adapter_base
from unireason_lib.grounding.tiny import ADDED_TOKENS, SPECIAL_TOKENS, tiny_tokenizer


def test_the_tiny_checkpoint_has_the_true_classes_and_loads_through_auto(tiny_checkpoint):
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert type(processor) is Qwen2_5_VLProcessor
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert not list(tiny_checkpoint.glob("*.bin")) + list(tiny_checkpoint.glob("*.pt"))
    assert sum(file.stat().st_size for file in tiny_checkpoint.iterdir()) < 12e6


def test_every_special_token_is_one_token_and_survives(tiny_model):
    tokenizer = tiny_model[1].tokenizer
    for token in SPECIAL_TOKENS + ADDED_TOKENS:
        assert len(tokenizer(token).input_ids) == 1, token
    assert set(SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens) | set(tokenizer.added_tokens_encoder)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    "text", ["The box [98,107,153,154] is A.", "ünïcode ✓ 漢字\n\ttabs", "  two  spaces "]
)
def test_the_tokenizer_is_lossless_and_writes_digits_one_by_one(tiny_model, text):
    tokenizer = tiny_model[1].tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert all(sum(c.isdigit() for c in token) <= 1 for token in tokenizer.tokenize(text))


def test_the_tokenizer_is_the_same_every_time():
    assert tiny_tokenizer(400).get_vocab() == tiny_tokenizer(400).get_vocab()


def test_the_seed_decides_the_weights(tmp_path):
    small = {"hidden": 64, "layers": 1, "vision_hidden": 32, "vision_layers": 1}
    state = torch.random.get_rng_state()
    weights = [
        load_model(build_tiny(tmp_path / str(i), seed=seed, **small))[0].state_dict()
        for i, seed in enumerate((0, 0, 1))
    ]
    key = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights[0][key], weights[1][key])
    assert not torch.equal(weights[0][key], weights[2][key])
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(FileExistsError, match="another name"):
        build_tiny(tmp_path / "0", **small)


CONVERSATIONS = {
    "text": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "A. yes"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
    "pictures": [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "q\nA. x"}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "<think>see <|box_start|>[1,2,3,4]<|box_end|>"},
                {"type": "image"},
                {"type": "text", "text": " so</think>A. x"},
            ],
        },
        {"role": "user", "content": [{"type": "text", "text": "sure?"}]},
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_the_chat_format_is_qwens(tiny_model, name, prompt):
    """TRL ships the official template of Qwen2.5-VL."""
    from importlib.resources import files

    official = (files("trl") / "chat_templates" / "qwen2_5_vl.jinja").read_text(encoding="utf-8")
    render = tiny_model[1].apply_chat_template
    arguments = {"tokenize": False, "add_generation_prompt": prompt}
    ours = render(CONVERSATIONS[name], **arguments)
    assert ours == render(CONVERSATIONS[name], chat_template=official, **arguments)


def test_the_template_marks_what_the_assistant_wrote_and_no_injected_picture(tiny_model):
    processor = tiny_model[1]
    text = processor.tokenizer.apply_chat_template(
        CONVERSATIONS["pictures"][:2],
        chat_template=processor.chat_template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    own = [i for i, mine in zip(text["input_ids"], text["assistant_masks"], strict=True) if mine]
    assert processor.tokenizer.decode(own) == (
        "<think>see <|box_start|>[1,2,3,4]<|box_end|> so</think>A. x<|im_end|>"
    )


def test_an_adapter_is_put_on_top(tiny_checkpoint, tmp_path):
    base, processor = load_model(tiny_checkpoint, device="cpu")
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path / "adapter")
    plain, _ = load_model(tiny_checkpoint, device="cpu")
    tuned, _ = load_model(tiny_checkpoint, adapter=tmp_path / "adapter", device="cpu")
    ids = processor.tokenizer("Where is the liver?", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.allclose(tuned(input_ids=ids).logits, wrapped.eval()(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(tuned(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-3)
    with pytest.raises(ModelError, match="PEFT adapter"):
        load_model(tmp_path / "adapter")


def test_dtype_and_device(tiny_checkpoint):
    model, _ = load_model(tiny_checkpoint, dtype="bfloat16", device="cpu")
    assert model.dtype is torch.bfloat16 and not model.training
    with pytest.raises(ModelError, match="bfloat16"):
        load_model(tiny_checkpoint, dtype="float8")
    with pytest.raises(ModelError, match="device_map"):
        load_model(tiny_checkpoint, device="cpu", device_map="auto")


def copy_of(checkpoint, folder):
    shutil.copytree(checkpoint, folder)
    return folder


def test_missing_and_broken_checkpoints_say_what_is_wrong(tiny_checkpoint, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_model(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(tmp_path / "empty")
    broken = copy_of(tiny_checkpoint, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="complete, readable checkpoint"):
        load_model(broken)
    bare = copy_of(tiny_checkpoint, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    (bare / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(bare)


def test_another_architecture_is_refused(tiny_checkpoint, tmp_path):
    other = copy_of(tiny_checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_vl"}))
    with pytest.raises(ModelError, match=r"Qwen2\.5-VL checkpoint"):
        load_model(other)


def test_a_tokenizer_without_box_tokens_is_refused(tiny_checkpoint, tmp_path):
    lacking = copy_of(tiny_checkpoint, tmp_path / "lacking")
    text = (lacking / "tokenizer.json").read_text().replace("<|box_end|>", "<|boxend|>")
    (lacking / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="box_end"):
        load_model(lacking)


def test_an_adapter_says_what_it_was_trained_on(tiny_checkpoint, tmp_path):
    assert adapter_base(tiny_checkpoint) is None and adapter_base("owner/name") is None
    config = tmp_path / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"}')
    assert adapter_base(tmp_path) == "Qwen/Qwen2.5-VL-3B-Instruct"
    for content, said in (("{}", "base_model_name_or_path"), ("no", "JSON")):
        config.write_text(content)
        with pytest.raises(ModelError, match=said):
            adapter_base(tmp_path)
