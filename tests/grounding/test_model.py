"""Checkpoints: complete, loadable through the Auto classes, refused with a helpful message."""

import shutil
from importlib.resources import files
from itertools import product

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from unireason_lib.config import load_profile
from unireason_lib.errors import ModelError
from unireason_lib.grounding import build_tiny, load_model, load_profile_model, tiny
from unireason_lib.grounding.model import adapter_base
from unireason_lib.grounding.tiny import ADDED_TOKENS, SPECIAL_TOKENS, tiny_tokenizer
from unireason_lib.imaging import QWEN_FRAME, ProcessorFrame


def test_the_tiny_checkpoint_and_its_tokenizer(tiny_checkpoint, tiny_model):
    """Special tokens are one token each; text survives, digits stand alone; the same every time."""
    model, processor = tiny_model
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert not list(tiny_checkpoint.glob("*.bin")) + list(tiny_checkpoint.glob("*.pt"))
    tokenizer = processor.tokenizer
    assert all(len(tokenizer(token).input_ids) == 1 for token in SPECIAL_TOKENS + ADDED_TOKENS)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    for text in ("The box [98,107,153,154] is A.", "ünïcode ✓ 漢字\n\ttabs", "  two  spaces "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        tokens = tokenizer.tokenize(text)
        assert all(sum(c.isdigit() for c in token) <= 1 for token in tokens)
    assert tiny_tokenizer(400).get_vocab() == tiny_tokenizer(400).get_vocab()
    assert tokenizer.tokenize("left kidney lesion") == ["left", "Ġkidney", "Ġlesion"]


def test_a_tiny_qwen3_is_one(tiny_qwen3):
    """The true classes, with deepstack features, norms of queries and keys, interleaved rotary
    sections and patches of 16 pixels; what the frame reads from its processor."""
    model, processor = tiny_qwen3
    assert type(model) is Qwen3VLForConditionalGeneration
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert len(model.model.visual.deepstack_merger_list) == 1
    assert model.model.language_model.layers[0].self_attn.q_norm.weight.shape == (64,)
    rope = model.config.text_config.rope_parameters
    assert rope["mrope_section"] == [12, 10, 10] and rope["mrope_interleaved"]
    frame = ProcessorFrame.from_processor(processor)
    assert frame == ProcessorFrame(16, 2, 1024, 16384, scale=1000)
    assert frame.to_dict() == {**vars(frame)} and "scale" not in QWEN_FRAME.to_dict()


def test_of_two_that_build_at_once_the_first_one_counts(tmp_path, monkeypatch):
    """Two processes wrote the same files, and one of them failed."""

    def meanwhile():
        (folder / "theirs").mkdir(parents=True)
        return tokenizer

    folder, tokenizer = tmp_path / "tiny", tiny.tiny_tokenizer()
    monkeypatch.setattr(tiny, "tiny_tokenizer", meanwhile)
    assert build_tiny(folder, hidden=64, layers=2, vision_hidden=32, vision_layers=2) == folder
    assert [path.name for path in folder.iterdir()] == ["theirs"]


def test_the_seed_decides_the_weights(tmp_path):
    small = {"hidden": 64, "layers": 1, "vision_hidden": 32, "vision_layers": 1}
    state = torch.random.get_rng_state()
    folders = [build_tiny(tmp_path / str(i), seed=i // 2, **small) for i in range(3)]
    a, b, c = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert a == b != c and torch.equal(state, torch.random.get_rng_state())
    for folder, sizes, message in (("0", small, "another name"), ("new", {"width": 3}, "width")):
        with pytest.raises(ModelError, match=message):
            build_tiny(tmp_path / folder, **sizes)


def turn(role, *parts):
    texts = [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]
    return {"role": role, "content": texts}


BOX, IMAGE = "<|box_start|>[1,2,3,4]<|box_end|>", ""
IMAGES = [
    turn("user", IMAGE, IMAGE, "q\nA. x"),
    turn("assistant", f"<think>see {BOX}", IMAGE, " so</think>A. x"),
    turn("user", "sure?"),
]
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "family, fixture", [("qwen2_5_vl", "tiny_model"), ("qwen3_vl", "tiny_qwen3")]
)
def test_the_chat_format_is_qwens_and_marks_what_the_assistant_wrote(family, fixture, request):
    """TRL ships the official templates. Injected images are not marked; the one of Qwen3-VL leaves
    them out."""
    official = (files("trl") / "chat_templates" / f"{family}.jinja").read_text(encoding="utf-8")
    _, processor = request.getfixturevalue(fixture)
    for one, prompt in product((SYSTEM, IMAGES), (True, False)):
        how = {"tokenize": False, "add_generation_prompt": prompt}
        ours = processor.apply_chat_template(one, **how)
        if family == "qwen3_vl":
            ours = ours.replace(f"{BOX}<|vision_start|><|image_pad|><|vision_end|>", BOX)
        assert ours == processor.apply_chat_template(one, chat_template=official, **how)
    how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    how["chat_template"] = processor.chat_template
    text = processor.tokenizer.apply_chat_template(IMAGES[:2], **how)
    own = [i for i, mask in zip(text["input_ids"], text["assistant_masks"], strict=True) if mask]
    assert processor.tokenizer.decode(own) == f"<think>see {BOX} so</think>A. x<|im_end|>"


def test_a_base_gets_the_tower_of_another_model(tiny_checkpoint, tmp_path):
    build_tiny(tmp_path / "other", seed=1)
    build_tiny(tmp_path / "narrow", vision_hidden=32)
    own = load_model(tiny_checkpoint, device="cpu")[0].state_dict()
    other = load_model(tmp_path / "other", device="cpu")[0].state_dict()
    settings = load_profile("laptop", "model.tower=other").model
    mixed, _ = load_profile_model(settings, tmp_path, str(tiny_checkpoint), tower=True)
    for name, weight in mixed.state_dict().items():
        assert torch.equal(weight, (other if "visual" in name else own)[name])
    plain, _ = load_profile_model(settings, tmp_path, str(tiny_checkpoint))
    assert all(torch.equal(weight, own[name]) for name, weight in plain.state_dict().items())
    settings = load_profile("laptop", "model.tower=narrow").model
    with pytest.raises(ModelError, match=r"narrow.*model\.tower"):
        load_profile_model(settings, tmp_path, str(tiny_checkpoint), tower=True)


def test_settings_of_loading(tiny_checkpoint):
    model, _ = load_model(tiny_checkpoint, dtype="bfloat16", device="cpu")
    assert model.dtype is torch.bfloat16 and not model.training
    wrong = {"bfloat16": {"dtype": "float8"}, "device_map": {"device": "cpu", "device_map": "auto"}}
    for message, how in wrong.items():
        with pytest.raises(ModelError, match=message):
            load_model(tiny_checkpoint, **how)


def test_an_adapter_of_pickles_is_refused(tiny_checkpoint, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors, found none"):
        load_model(tiny_checkpoint, adapter=tmp_path)


def replaced(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "complete, readable checkpoint"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "safetensors"),
        (
            replaced("config.json", '"qwen2_5_vl"', '"qwen3_vl_moe"'),
            r"qwen3_vl \(Qwen3-VL\), found qwen3_vl_moe.*a row in",
        ),
        (replaced("tokenizer.json", "<|box_end|>", "<|boxend|>"), "box_end"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_broken_checkpoints_say_what_is_wrong(tiny_checkpoint, tmp_path, damage, message):
    damage(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "copy")


def test_an_adapter_says_what_it_was_trained_on(tiny_checkpoint, tmp_path):
    assert adapter_base(tiny_checkpoint) is None and adapter_base("owner/name") is None
    config = tmp_path / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"}')
    assert adapter_base(tmp_path) == "Qwen/Qwen2.5-VL-3B-Instruct"
    with pytest.raises(ModelError, match="PEFT adapter"):
        load_model(tmp_path)
    for content, message in (("{}", "base_model_name_or_path"), ("no", "JSON")):
        config.write_text(content)
        with pytest.raises(ModelError, match=message):
            adapter_base(tmp_path)
