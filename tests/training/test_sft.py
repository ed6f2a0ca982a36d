"""Fine-tuning: the loss, what learns and what does not, and every setting doing what it says."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from trl.trainer.utils import add_fused_lm_head

from unireason_lib.errors import DatasetError, TrainingError
from unireason_lib.grounding import load_model
from unireason_lib.grounding.tiny import SPECIAL_TOKENS
from unireason_lib.training import checkpoints, sft
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.data import Examples
from unireason_lib.training.encoding import Collator
from unireason_lib.training.optim import FloatMuon, MuonWithAdamW, token_scores
from unireason_lib.training.sft import add_think_tokens, freeze, train_sft

from .conftest import FAMILIES, SMALL, quick

SINGLE = {"sft__max_steps": 2, "sft__gradient_accumulation_steps": 1}


@pytest.fixture
def tune(study, tiny_checkpoint, tmp_path):
    """Fine-tunes a fresh model; gives the losses."""

    def run(records=None, images=study.images, model=None, callbacks=(), folder="", **changes):
        loaded = model or load_model(tiny_checkpoint, device="cpu")
        out = tmp_path / (folder or f"run-{len(list(tmp_path.iterdir()))}")
        given = records or study.records[::3], images, out, quick(**changes)
        train_sft(*loaded, *given, callbacks=callbacks)
        return [line["loss"] for line in read_log(out / "log.jsonl")]

    return run


class Watch(TrainerCallback):
    """Keeps the trainer's optimizer, and the types of what a layer gives."""

    def __init__(self):
        self.types, self.optimizer = [], None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.optimizer = optimizer.optimizer
        layer = next(m for name, m in model.named_modules() if name.endswith("0.self_attn.q_proj"))
        layer.register_forward_hook(lambda module, inputs, output: self.types.append(output.dtype))


def test_the_loss_is_the_models_own(study, tiny_model):
    """On a CPU TRL makes logits of all tokens, and twice; here of labelled ones, and once."""
    model, processor = copy.copy(tiny_model[0]), tiny_model[1]
    examples = Examples(study.records[::5], study.images, processor)
    batch = Collator(processor)([examples[k] for k in range(4)])
    with torch.no_grad():
        expected = model(**batch)
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        theirs = model(**batch, fused_lm_head=True)
        with token_scores():
            ours = model(**batch, fused_lm_head=True)
    for one in (theirs, ours):
        torch.testing.assert_close(one.loss, expected.loss, atol=1e-5, rtol=1e-5)
    for name in ("log_probs", "entropy", "is_top1"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("setting", "by_hand"),
    [
        ({"sft__loss_type": "dft"}, lambda true, every: -true.exp() * true),
        ({"sft__label_smoothing_factor": 0.2}, lambda true, every: -0.8 * true - 0.2 * every),
    ],
)
def test_other_losses_of_trl_are_its_own_on_one_cpu(study, tune, fresh_model, setting, by_hand):
    records, processor = study.records[:4], fresh_model[1]
    batch = Collator(processor)(list(Examples(records, study.images, processor)))
    with torch.no_grad():
        scores = fresh_model[0](**batch).logits[:, :-1].float().log_softmax(-1)
    targets = batch["labels"][:, 1:]
    scores, targets = scores[targets >= 0], targets[targets >= 0]
    expected = by_hand(scores.gather(1, targets[:, None])[:, 0], scores.mean(-1)).mean().item()
    one = {"sft__max_steps": 1, "sft__per_device_train_batch_size": 4, "sft__bf16": False}
    losses = tune(records, model=fresh_model, **SINGLE | one | setting)
    assert losses == pytest.approx([expected], rel=1e-4)


@FAMILIES
def test_only_the_language_model_learns(tune, families, family, tmp_path):
    checkpoint, study = families[family]
    model, processor = load_model(checkpoint, device="cpu")
    total, vision = (sum(p.numel() for p in m.parameters()) for m in (model, model.model.visual))
    assert freeze(model, vision=False) == (total, 0) and freeze(model) == (total - vision, vision)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tune(model=(model, processor), records=study.records[::3], folder="run")
    after = load_model(tmp_path / "run" / "model", device="cpu")[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("visual" in name for name in moved)
    assert {name for name in before if "language_model.layers" in name} <= moved


def test_accumulated_batches_are_one_large_batch(tune):
    """Every token of a step weighs the same, in whichever forward pass it is."""
    sizes = ("sft__per_device_train_batch_size", "sft__gradient_accumulation_steps")
    one, four = (tune(**(SINGLE | dict(zip(sizes, n, strict=True)))) for n in ((8, 1), (2, 4)))
    assert four == pytest.approx(one, abs=1e-5)


def test_bfloat16_is_for_the_matrices_only(tune, fresh_model, monkeypatch):
    exact, rough = Watch(), Watch()
    expected = tune(callbacks=[exact], **SINGLE)
    monkeypatch.setattr(checkpoints, "fast_bfloat16", lambda: True)
    losses = tune(callbacks=[rough], model=fresh_model, sft__bf16=None, **SINGLE)
    assert set(exact.types) == {torch.float32} and set(rough.types) == {torch.bfloat16}
    assert losses != expected and losses == pytest.approx(expected, rel=0.02)
    assert next(fresh_model[0].parameters()).dtype == torch.float32  # what learns stays exact


def test_images_are_read_and_encoded_once(tune, study, fresh_model):
    """All together, before the first step; not in every epoch."""
    read, calls = [], []
    fresh_model[0].model.visual.register_forward_hook(lambda *_: calls.append(len(read)))
    epochs = {"sft__max_steps": -1, "sft__num_train_epochs": 2.0}
    how = {"records": study.records[::9], "model": fresh_model, **SINGLE, **epochs}
    tune(images=lambda record: read.append(record.id) or study.images(record), **how)
    assert calls == [len(read)] == [len(study.records[::9])]


@pytest.mark.parametrize("r, muon", [(None, True), (4, False)])
def test_muon_is_for_whole_models(tune, r, muon):
    watch = Watch()
    changes = {"grounding__muon_learning_rate": 1e-3, "grounding__sft_lora_r": r}
    tune(callbacks=[watch], sft__adam_beta2=0.95, sft__adam_epsilon=0.5, **SINGLE, **changes)
    assert isinstance(watch.optimizer, MuonWithAdamW) == muon
    assert not muon or isinstance(watch.optimizer.parts[0], FloatMuon)  # as sft.bf16 says
    adamw = watch.optimizer.parts[1] if muon else watch.optimizer
    assert adamw.param_groups[0]["betas"] == (0.9, 0.95)  # any argument of TRL reaches it
    assert adamw.param_groups[0]["eps"] == 0.5


def test_the_order_of_records_has_a_seed_of_its_own(tune):
    first, same, other = (tune(**SINGLE, sft__data_seed=seed) for seed in (None, 0, 99))
    assert first == same != other


@pytest.mark.parametrize("padding", [0, 64], ids=["exact", "padded"])
def test_think_tokens_are_added_without_harm(monkeypatch, tmp_path, padding):
    from unireason_lib.grounding import tiny

    bare = tuple(token for token in SPECIAL_TOKENS if "think" not in token)
    monkeypatch.setattr(tiny, "SPECIAL_TOKENS", bare)
    model, processor = load_model(tiny.build_tiny(tmp_path / "bare", **SMALL), device="cpu")
    size = len(processor.tokenizer)
    if padding:
        model.resize_token_embeddings(size + padding)
    old = model.get_input_embeddings().weight[:size].detach().clone()
    assert add_think_tokens(model, processor) == [size, size + 1]
    embedding = model.get_input_embeddings().weight
    assert len(embedding) == max(size + 2, size + padding) and torch.equal(embedding[:size], old)
    (line_break,) = processor.tokenizer.encode("\n")
    torch.testing.assert_close(embedding[size : size + 2], old[[line_break] * 2])
    assert model.lm_head.weight.data_ptr() == embedding.data_ptr()
    assert processor.tokenizer.encode("<think>") == [size]
    assert add_think_tokens(model, processor) == []


def test_adapters_are_learnt_on_4_bit_weights(tune, tiny_checkpoint):
    """Matrices of the language model in 4 bits; adapters in float32."""
    how = {"device": "cpu", "dtype": "float32", "quantization": "4bit"}
    model, processor = load_model(tiny_checkpoint, **how)
    linear = {n: type(m).__name__ for n, m in model.named_modules() if "Linear" in str(type(m))}
    for name, kind in linear.items():  # tower and output layer stay
        assert kind == ("Linear4bit" if "language_model" in name else "Linear"), name
    plain = sum(p.numel() for p in load_model(tiny_checkpoint, device="cpu")[0].parameters())
    assert model.num_parameters() == plain
    losses = tune(model=(model, processor), sft__learning_rate=1e-2, grounding__sft_lora_r=4)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("cached", [True, False])
def test_features_are_not_pinned(tune, monkeypatch, cached):
    """A batch with them cannot be, so a GPU stopped at the first one; a CPU pins nothing."""
    asked, plain = [], sft.trainer_arguments

    def arguments(*args, **fixed):
        asked.append(fixed.get("dataloader_pin_memory", True))
        return plain(*args, **fixed)

    monkeypatch.setattr(sft, "trainer_arguments", arguments)
    tune(grounding__feature_cache=cached, **SINGLE)
    assert asked == [not cached]


def test_settings_that_do_not_fit_are_errors_that_say_so(tune, fresh_model):
    model = get_peft_model(fresh_model[0], LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TrainingError, match=r"model\.adapter.*give the adapter's folder"):
        tune(model=(model, fresh_model[1]))
    with pytest.raises(TrainingError, match=r"arguments that fit together.*SchedulerType"):
        tune(sft__lr_scheduler_type="none")
    with pytest.raises(DatasetError, match=r"at most 10 tokens.*raise sft\.max_length"):
        tune(sft__max_length=10)
    with pytest.raises(TrainingError, match=r"sft\.optim.*muon_learning_rate to 0"):
        tune(sft__optim="sgd", grounding__muon_learning_rate=1e-3)
