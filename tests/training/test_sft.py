"""Fine-tuning: what learns and what does not, the loss, killed and resumed runs, adapters, added tokens."""

import json

import pytest
import torch
from transformers import TrainerCallback

from unireason_lib.errors import DatasetError
from unireason_lib.grounding import load_model
from unireason_lib.training import sft
from unireason_lib.training.encoding import Collator
from unireason_lib.training.examples import Examples, FeatureCollator
from unireason_lib.training.logbook import Probe, read_log
from unireason_lib.training.loss import own_token_loss
from unireason_lib.training.sft import SFTSettings, add_thought_tokens, fine_tune, freeze

QUICK = SFTSettings(
    steps=4,
    learning_rate=1e-3,
    batch_size=2,
    accumulation=2,
    keep_features=True,
    save_steps=2,
    log_steps=1,
    bf16=False,
)


def changed(settings=QUICK, **values):
    return SFTSettings(**{**vars(settings), **values})


@pytest.fixture
def tune(study, fresh_model, tmp_path):
    """Fine-tunes a fresh model on some records; gives the folder of the run."""

    def run(settings=QUICK, folder="run", records=slice(None, None, 3), **more):
        out = tmp_path / folder
        fine_tune(*fresh_model, study.records[records], study.pictures, out, settings, **more)
        return out

    return run


@pytest.fixture
def batch(study, tiny_model):
    examples = Examples(study.records[::5], study.pictures, tiny_model[1])
    return Collator(tiny_model[1])(examples[:4])


def test_the_loss_is_the_models_own(tiny_model, batch):
    model = tiny_model[0]
    with torch.no_grad():
        expected = model(**batch).loss
        found, right = own_token_loss(model, batch)
        shared, _ = own_token_loss(model, batch, tokens=1000)
    kept = int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared * 1000, expected * kept, atol=1e-2, rtol=1e-5)
    assert len(right) == kept


def test_kept_features_are_what_the_tower_gives(tiny_model, study, batch):
    model, processor = tiny_model
    examples = Examples(study.records[::5], study.pictures, processor)
    lean = FeatureCollator(processor, model)(examples[:4])
    assert "pixel_values" not in lean
    with torch.no_grad():
        torch.testing.assert_close(
            own_token_loss(model, lean)[0], own_token_loss(model, batch)[0], atol=1e-5, rtol=1e-5
        )


def test_our_short_cut_and_trls_loss_agree(study, tiny_checkpoint, tmp_path, monkeypatch):
    def losses(folder):
        model, processor = load_model(tiny_checkpoint, device="cpu")
        fine_tune(model, processor, study.records[::3], study.pictures, tmp_path / folder, QUICK)
        return [line["loss"] for line in read_log(tmp_path / folder / "log.jsonl")]

    ours = losses("ours")
    monkeypatch.delattr(sft.GroundedSFTTrainer, "compute_loss")
    assert len(ours) == 4 and losses("trl") == pytest.approx(ours, abs=1e-4)


def test_only_the_language_model_learns(tune, fresh_model):
    model = fresh_model[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = tune()
    after = load_model(out / "model", device="cpu")[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("visual" in name for name in moved)
    language = {name for name in before if "language_model.layers" in name}
    assert language <= moved


def test_freezing_counts_what_learns(fresh_model):
    model = fresh_model[0]
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.model.visual.parameters())
    assert freeze(model) == (total - vision, vision)
    assert freeze(model, vision=False) == (total, 0)


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_killed_and_resumed_run_has_the_same_losses(
    study, tiny_checkpoint, tmp_path, monkeypatch
):
    def run(folder):
        model, processor = load_model(tiny_checkpoint, device="cpu")
        return fine_tune(
            model, processor, study.records[::3], study.pictures, tmp_path / folder, QUICK
        )

    whole = run("whole")
    book = sft.Logbook
    monkeypatch.setattr(sft, "Logbook", lambda *a: type("Killing", (Kill, book), {})(*a))
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert not (tmp_path / "killed" / "model").exists()
    monkeypatch.setattr(sft, "Logbook", book)
    resumed = run("killed")
    losses = [
        [line["loss"] for line in read_log(path.parent / "log.jsonl")] for path in (whole, resumed)
    ]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], abs=1e-6)
    weights = [load_model(path, device="cpu")[0].state_dict() for path in (whole, resumed)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-6, rtol=0)


def test_another_setting_or_record_is_not_gone_on_with(tune, study, fresh_model, tmp_path):
    out = tune()
    (out / "model").rename(out / "elsewhere")
    with pytest.raises(DatasetError, match=r"learning_rate was 0\.001, is 0\.01"):
        tune(changed(learning_rate=1e-2))
    with pytest.raises(DatasetError, match="other records"):
        tune(records=slice(0, 5))


def test_a_finished_run_is_taken_as_it_is(tune, fresh_model):
    out = tune()
    first = (out / "model" / "model.safetensors").stat().st_mtime_ns
    assert tune() == out
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == first


def test_it_learns_a_few_records_by_heart(tune):
    settings = changed(steps=60, batch_size=4, accumulation=1, learning_rate=3e-3, save_steps=100)
    losses = [line["loss"] for line in read_log(tune(settings, records=slice(0, 4)) / "log.jsonl")]
    assert losses[-1] < 0.3 * losses[0]


def test_adapters_touch_the_language_model_only_and_load_again(tune, tiny_checkpoint, fresh_model):
    out = tune(changed(lora_rank=4))
    names = json.loads((out / "model" / "adapter_config.json").read_text())
    assert names["r"] == 4
    model, _ = load_model(tiny_checkpoint, adapter=out / "model", device="cpu")
    lora = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert lora and all("language_model" in name and "visual" not in name for name in lora)


def test_probes_are_measured_into_the_log(tune):
    out = tune(probes=[Probe("answer", 2, lambda model, processor: {"right": 0.5})])
    assert [(line["step"], line["answer"]) for line in read_log(out / "log.jsonl", "answer")] == [
        (2, {"right": 0.5}),
        (4, {"right": 0.5}),
    ]


@pytest.mark.parametrize("padding", [0, 64], ids=["exact", "padded"])
def test_thought_tokens_are_added_without_harm(monkeypatch, tmp_path, padding):
    from unireason_lib.grounding import tiny

    bare = tuple(token for token in tiny.SPECIAL_TOKENS if "think" not in token)
    monkeypatch.setattr(tiny, "SPECIAL_TOKENS", bare)
    model, processor = load_model(tiny.build_tiny(tmp_path / "bare"), device="cpu")
    size = len(processor.tokenizer)
    if padding:
        model.resize_token_embeddings(size + padding)
    old = model.get_input_embeddings().weight[:size].detach().clone()
    assert add_thought_tokens(model, processor) == [size, size + 1]
    embedding = model.get_input_embeddings().weight
    assert len(embedding) == max(size + 2, size + padding)
    assert torch.equal(embedding[:size], old)
    torch.testing.assert_close(embedding[size : size + 2], old.mean(0).expand(2, -1))
    assert model.lm_head.weight.data_ptr() == embedding.data_ptr()
    assert processor.tokenizer.encode("<think>") == [size]
    assert add_thought_tokens(model, processor) == []


def test_features_cannot_be_kept_of_a_tower_that_learns():
    with pytest.raises(DatasetError, match="freeze_vision=False"):
        SFTSettings(keep_features=True, freeze_vision=False)


def test_no_records_is_an_error_that_says_so(tune):
    with pytest.raises(DatasetError, match="records to train on"):
        tune(changed(max_length=10))
