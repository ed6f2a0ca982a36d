"""Adapters on a base that has no thought tokens, as all public ones: they are learnt, saved and loaded along."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from typer.testing import CliRunner

from unireason_lib.cli import app
from unireason_lib.errors import ModelError, TrainingError
from unireason_lib.grounding import GroundedGenerator, load_model, tiny
from unireason_lib.training.checkpoints import merge_adapter, whole_checkpoint
from unireason_lib.training.logbook import read_log
from unireason_lib.training.sft import SFTSettings, count_parameters, fine_tune


@pytest.fixture(params=["exact", "padded", "untied"])
def bare(request, tmp_path, monkeypatch):
    """A checkpoint without thought tokens: its matrix as long as the tokenizer, or longer, or two matrices."""
    tokens = tuple(token for token in tiny.SPECIAL_TOKENS if "think" not in token)
    monkeypatch.setattr(tiny, "SPECIAL_TOKENS", tokens)
    folder = tiny.build_tiny(tmp_path / "first")
    model, processor = load_model(folder, device="cpu")
    if request.param != "exact":
        model.resize_token_embeddings(len(processor.tokenizer) + 64)
    if request.param == "untied":
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path / "bare")
    processor.save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


def teach(model, processor, study, out, steps):
    """The folder of an adapter that learnt a little."""
    settings = SFTSettings(
        steps=steps,
        learning_rate=1e-2,
        batch_size=4,
        accumulation=1,
        lora_rank=4,
        keep_features=True,
        save_steps=50,
        log_steps=1,
    )
    return fine_tune(model, processor, study.records[::3], study.pictures, out, settings)


def test_thought_tokens_travel_with_an_adapter(bare, study, tmp_path):
    model, processor = load_model(bare, device="cpu")
    made = teach(model, processor, study, tmp_path / "run", steps=12)
    trained = model.eval()
    loaded, again = load_model(bare, adapter=made, device="cpu")
    (think,) = again.tokenizer.encode("<think>")
    assert processor.tokenizer.encode("<think>") == [think]
    assert think < len(loaded.get_input_embeddings().weight)
    words = again.tokenizer("<think>The liver.</think>", return_tensors="pt")
    with torch.no_grad():
        expected, found = (one(**words).logits for one in (trained, loaded))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    before = load_model(bare, device="cpu")[0].get_input_embeddings().weight
    if think < len(
        before
    ):  # the rows are learnt: nothing else would teach the model to open a thought
        assert not torch.equal(
            loaded.get_input_embeddings()(torch.tensor([think]))[0], before[think]
        )
    reply = GroundedGenerator(loaded, again).generate(
        [
            {
                "question": "Where?",
                "images": study.pictures(study.records[0]),
                "options": ["Left", "Right"],
            }
        ],
        max_new_tokens=4,
    )
    assert len(reply) == 1


def test_a_merged_checkpoint_is_plain_and_replies_like_model_and_adapter(
    bare, study, tmp_path, monkeypatch
):
    model, processor = load_model(bare, device="cpu")
    made = teach(model, processor, study, tmp_path / "run", steps=6)
    card = (made / "README.md").read_text(encoding="utf-8")
    assert (
        "library_name: peft" in card
        and "| lora_rank | 4 |" in card
        and "not for clinical use" in card
    )
    assert str(tmp_path) not in card and f'load_model("{bare.name}", adapter="THIS_FOLDER")' in card
    out = tmp_path / "merged"
    arguments = ["merge", "--model", str(bare), "--adapter", str(made), "--out", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2 and "no such folder" in again.stderr
    told = (out / "README.md").read_text()
    assert not (out / "adapter_config.json").exists() and "peft" not in told.split("## Versions")[0]
    assert (
        "library_name: transformers" in told
        and 'load_model("THIS_FOLDER")' in told
        and "from_pretrained" in told
    )
    assert "| lora_rank | 4 |" in told
    assert whole_checkpoint(out) == str(out) and whole_checkpoint("owner/name") == "owner/name"
    with monkeypatch.context() as several:
        several.setenv("WORLD_SIZE", "2")
        with pytest.raises(TrainingError, match=r"several processes.*unireason_lib merge --model"):
            whole_checkpoint(made)
    beside = whole_checkpoint(made)  # to train on: merged once, then found
    assert beside == str(made.parent / "merged") == whole_checkpoint(made)
    with torch.no_grad():
        for one, other in zip(
            load_model(beside)[0].parameters(), load_model(out)[0].parameters(), strict=True
        ):
            assert torch.equal(one, other)
    # as the authors load theirs: the class itself, and the processor beside it
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    tokens = AutoProcessor.from_pretrained(out).tokenizer(
        "<think>The liver.</think>A.", return_tensors="pt"
    )
    adapted = load_model(bare, adapter=made, device="cpu")[0]
    with torch.no_grad():
        torch.testing.assert_close(
            plain(**tokens).logits, adapted(**tokens).logits, atol=1e-4, rtol=1e-4
        )
    request = {
        "question": "Where?",
        "images": study.pictures(study.records[0]),
        "options": ["Left", "Right"],
    }
    replies = [
        GroundedGenerator(*pair).generate([request], max_new_tokens=12)[0].text
        for pair in (load_model(out, device="cpu"), load_model(bare, adapter=made, device="cpu"))
    ]
    assert replies[0] == replies[1]


def test_only_an_adapter_can_be_merged(tiny_checkpoint, tmp_path):
    model, processor = load_model(tiny_checkpoint, device="cpu")
    with pytest.raises(TrainingError, match="a model with an adapter"):
        merge_adapter(model, processor, tmp_path / "out", tmp_path)


def test_adapters_are_learnt_on_4_bit_weights(tiny_checkpoint, study, tmp_path):
    """Matrices of the language model in 4 bits, on the CPU; adapters in float32, and loaded again on 16-bit weights."""
    model, processor = load_model(
        tiny_checkpoint, device="cpu", dtype="float32", quantization="4bit"
    )
    kinds = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__
    }
    assert {kind for name, kind in kinds.items() if "language_model" in name} == {"Linear4bit"}
    plain = sum(p.numel() for p in load_model(tiny_checkpoint, device="cpu")[0].parameters())
    assert sum(count_parameters(model)) == plain
    assert {kind for name, kind in kinds.items() if "language_model" not in name} == {
        "Linear"
    }  # tower and output layer
    made = teach(model, processor, study, tmp_path / "run", steps=6)
    learnt = {p.dtype for p in model.parameters() if p.requires_grad}
    assert learnt == {torch.float32}
    losses = [line["loss"] for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < losses[0]
    loaded, again = load_model(tiny_checkpoint, adapter=made, device="cpu", dtype="bfloat16")
    request = {
        "question": "Where?",
        "images": study.pictures(study.records[0]),
        "options": ["Left", "Right"],
    }
    assert GroundedGenerator(loaded, again).generate([request], max_new_tokens=4)


def test_only_4_bits_are_known(tiny_checkpoint):
    with pytest.raises(ModelError, match="none or 4bit"):
        load_model(tiny_checkpoint, device="cpu", quantization="8bit")
