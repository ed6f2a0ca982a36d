"""Adapters on a base that has no thought tokens, as all public ones: they are learnt, saved and loaded along."""

from __future__ import annotations

import pytest
import torch

from unireason_lib.grounding import GroundedGenerator, load_model, tiny
from unireason_lib.training.sft import SFTSettings, fine_tune


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


def test_thought_tokens_travel_with_an_adapter(bare, study, tmp_path):
    settings = SFTSettings(
        steps=12,
        learning_rate=1e-2,
        batch_size=4,
        accumulation=1,
        lora_rank=4,
        keep_features=True,
        save_steps=50,
    )
    model, processor = load_model(bare, device="cpu")
    made = fine_tune(model, processor, study.records[::3], study.pictures, tmp_path / "run", settings)
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
    if think < len(before):  # the rows are learnt: nothing else would teach the model to open a thought
        assert not torch.equal(loaded.get_input_embeddings()(torch.tensor([think]))[0], before[think])
    reply = GroundedGenerator(loaded, again).generate(
        [{"question": "Where?", "images": study.pictures(study.records[0]), "options": ["Left", "Right"]}],
        max_new_tokens=4,
    )
    assert len(reply) == 1
