"""Fine-tuning: the loss, what learns and what does not, and every setting doing what it says."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from transformers import TrainerCallback
from trl.trainer.utils import add_fused_lm_head

from unireason_lib.errors import DatasetError, TrainingError
from unireason_lib.grounding import GroundedGenerator, load_model
from unireason_lib.grounding.tiny import SPECIAL_TOKENS
from unireason_lib.training import checkpoints, sft
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.data import Examples
from unireason_lib.training.encoding import Collator
from unireason_lib.training.optim import FloatMuon, MuonWithAdamW, token_scores
from unireason_lib.training.sft import add_think_tokens, freeze, train_sft

from .conftest import quick

SINGLE = {"sft__max_steps": 2, "sft__gradient_accumulation_steps": 1}


@pytest.fixture
def tune(study, tiny_checkpoint, tmp_path):
    """Fine-tunes a fresh model; gives the losses, or what ``key`` names of the log."""

    def run(key="loss", records=None, images=None, model=None, callbacks=(), folder="", **changes):
        model, processor = model or load_model(tiny_checkpoint, device="cpu")
        out = tmp_path / (folder or f"run-{len(list(tmp_path.iterdir()))}")
        records = study.records[::3] if records is None else records
        profile = quick(**changes)
        train_sft(
            model, processor, records, images or study.images, out, profile, callbacks=callbacks
        )
        return [line[key] for line in read_log(out / "log.jsonl", key)]

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


def test_trls_own_scores_train_the_same(tune, monkeypatch, tmp_path):
    tune(folder="ours")
    monkeypatch.setattr(sft, "token_scores", nullcontext)
    tune(folder="trl")
    for key in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
        logs = [read_log(tmp_path / folder / "log.jsonl") for folder in ("ours", "trl")]
        ours, trl = ([line[key] for line in log] for log in logs)
        assert len(ours) == 4 and ours == pytest.approx(trl, abs=1e-4), key


@pytest.mark.parametrize("change", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.5}])
def test_other_losses_of_trl_have_an_effect(tune, change):
    """They were accepted and had none on one CPU."""
    plain = tune(**SINGLE)
    assert tune(**SINGLE, **{f"sft__{name}": value for name, value in change.items()}) != plain


def test_only_the_language_model_learns(tune, fresh_model, tmp_path):
    model = fresh_model[0]
    total, vision = (sum(p.numel() for p in m.parameters()) for m in (model, model.model.visual))
    assert freeze(model, vision=False) == (total, 0) and freeze(model) == (total - vision, vision)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tune(model=fresh_model, folder="run")
    after = load_model(tmp_path / "run" / "model", device="cpu")[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("visual" in name for name in moved)
    assert {name for name in before if "language_model.layers" in name} <= moved


def test_checkpointed_activations_are_computed_twice_and_change_nothing(tune):
    plain, checkpointed = Watch(), Watch()
    more = {**SINGLE, "grounding__sft_lora_r": 4}
    expected = tune(callbacks=[plain], **more)
    losses = tune(callbacks=[checkpointed], sft__gradient_checkpointing=True, **more)
    assert len(plain.types) == 2 and len(checkpointed.types) == 4
    assert losses == pytest.approx(expected, abs=1e-5)


def test_accumulated_batches_are_one_large_batch(tune):
    """Every token of a step weighs the same, in whichever forward pass it is."""
    sizes = ("sft__per_device_train_batch_size", "sft__gradient_accumulation_steps")
    one, four = (tune(**(SINGLE | dict(zip(sizes, n, strict=True)))) for n in ((8, 1), (2, 4)))
    assert four == pytest.approx(one, abs=1e-5)


def test_bfloat16_is_for_the_matrices_only(tune, fresh_model, monkeypatch):
    exact, rough, chosen = Watch(), Watch(), Watch()
    expected = tune(callbacks=[exact], **SINGLE)
    losses = tune(callbacks=[rough], model=fresh_model, sft__bf16=True, **SINGLE)
    assert set(exact.types) == {torch.float32} and set(rough.types) == {torch.bfloat16}
    assert losses != expected and losses == pytest.approx(expected, rel=0.02)
    assert next(fresh_model[0].parameters()).dtype == torch.float32  # what learns stays exact
    monkeypatch.setattr(checkpoints, "fast_bfloat16", lambda: True)
    assert tune(callbacks=[chosen], sft__bf16=None, **SINGLE) == losses
    assert set(chosen.types) == {torch.bfloat16}


def test_images_are_read_and_encoded_once(tune, study, fresh_model):
    """Not in every epoch."""
    read, calls = [], []
    fresh_model[0].model.visual.register_forward_hook(lambda *_: calls.append(len(read)))

    def images(record):
        read.append(record.id)
        return study.images(record)

    epochs = {"sft__max_steps": -1, "sft__num_train_epochs": 3.0}
    records = study.records[::6]
    losses = tune(records=records, images=images, model=fresh_model, **(SINGLE | epochs))
    assert len(read) == len(records) and len(losses) == 3 * -(-len(records) // 2)
    assert calls == [len(read)]  # all together, before the first step


@pytest.mark.parametrize(
    "changes, muon",
    [
        ({"muon_learning_rate": 1e-3}, True),
        ({"muon_learning_rate": 0.0}, False),
        ({"muon_learning_rate": 1e-3, "sft_lora_r": 4}, False),
    ],
)
def test_muon_is_for_whole_models(tune, changes, muon):
    watch = Watch()
    changes = {f"grounding__{name}": value for name, value in changes.items()}
    tune(callbacks=[watch], sft__adam_beta2=0.95, **SINGLE, **changes)
    assert isinstance(watch.optimizer, MuonWithAdamW) == muon
    assert not muon or isinstance(watch.optimizer.parts[0], FloatMuon)  # as sft.bf16 says
    adamw = watch.optimizer.parts[1] if muon else watch.optimizer
    assert adamw.param_groups[0]["betas"] == (0.9, 0.95)  # any argument of TRL reaches it


def test_a_loss_that_is_not_finite_ends_the_run(tune, monkeypatch, tmp_path):
    """transformers hides it in the log and goes on with spoilt weights."""
    plain = sft.GroundedSFTTrainer.compute_loss
    monkeypatch.setattr(
        sft.GroundedSFTTrainer,
        "compute_loss",
        lambda *args, **more: plain(*args, **more) * torch.nan,
    )
    with pytest.raises(TrainingError, match="a finite loss"):
        tune(folder="run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("padding", [0, 64], ids=["exact", "padded"])
def test_think_tokens_are_added_without_harm(monkeypatch, tmp_path, padding):
    from unireason_lib.grounding import tiny

    bare = tuple(token for token in SPECIAL_TOKENS if "think" not in token)
    monkeypatch.setattr(tiny, "SPECIAL_TOKENS", bare)
    model, processor = load_model(tiny.build_tiny(tmp_path / "bare"), device="cpu")
    size = len(processor.tokenizer)
    if padding:
        model.resize_token_embeddings(size + padding)
    old = model.get_input_embeddings().weight[:size].detach().clone()
    assert add_think_tokens(model, processor) == [size, size + 1]
    embedding = model.get_input_embeddings().weight
    assert len(embedding) == max(size + 2, size + padding) and torch.equal(embedding[:size], old)
    torch.testing.assert_close(embedding[size : size + 2], old.mean(0).expand(2, -1))
    assert model.lm_head.weight.data_ptr() == embedding.data_ptr()
    assert processor.tokenizer.encode("<think>") == [size]
    assert add_think_tokens(model, processor) == []


def test_adapters_are_learnt_on_4_bit_weights(tune, tiny_checkpoint, study, tmp_path):
    """Matrices of the language model in 4 bits; adapters in float32, loaded on 16-bit weights."""
    model, processor = load_model(
        tiny_checkpoint, device="cpu", dtype="float32", quantization="4bit"
    )
    kinds = {name: type(m).__name__ for name, m in model.named_modules()}
    layers = {k for name, k in kinds.items() if "language_model" in name and "Linear" in k}
    others = {k for name, k in kinds.items() if "language_model" not in name and "Linear" in k}
    assert layers == {"Linear4bit"} and others == {"Linear"}  # tower and output layer
    plain = sum(p.numel() for p in load_model(tiny_checkpoint, device="cpu")[0].parameters())
    assert model.num_parameters() == plain
    more = {"sft__max_steps": 6, "sft__learning_rate": 1e-2, "grounding__sft_lora_r": 4}
    losses = tune(model=(model, processor), folder="run", **more)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    made = tmp_path / "run" / "model"
    loaded = load_model(tiny_checkpoint, adapter=made, device="cpu", dtype="bfloat16")
    request = {"question": "Where?", "images": study.images(study.records[0])}
    request["options"] = ["Left", "Right"]
    assert GroundedGenerator(*loaded).generate([request], max_new_tokens=4)


def test_arguments_that_do_not_fit_together_and_no_records_are_errors_that_say_so(tune):
    with pytest.raises(TrainingError, match=r"arguments that fit together.*SchedulerType"):
        tune(sft__lr_scheduler_type="none")
    with pytest.raises(DatasetError, match="records to train on"):
        tune(sft__max_length=10)
