"""Every setting of fine-tuning does what it says: checkpointed activations, bfloat16, workers, DeepSpeed, profiles."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.sources import SourceSpec
from unireason_lib.grounding import load_model
from unireason_lib.profiles import load_profile
from unireason_lib.training import settings as run_settings
from unireason_lib.training import sft
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.logbook import read_log
from unireason_lib.training.probes import answer_probe
from unireason_lib.training.sft import SFTSettings, fine_tune

from .conftest import FRAME

QUICK = {
    "steps": 2,
    "learning_rate": 1e-3,
    "batch_size": 2,
    "accumulation": 1,
    "keep_features": True,
    "log_steps": 1,
    "bf16": False,
}


@pytest.fixture
def losses(study, tiny_checkpoint, tmp_path):
    """A function that fine-tunes with settings and gives the losses; it is handed every output of a layer."""

    def run(seen=None, records=None, pictures=None, probes=(), **more):
        model, processor = load_model(tiny_checkpoint, device="cpu")
        layer = model.model.language_model.layers[0].self_attn.q_proj
        if seen is not None:
            layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        how = SFTSettings(**(QUICK | more))
        records = study.records[::3] if records is None else records
        fine_tune(model, processor, records, pictures or study.pictures, out, how, probes=probes)
        assert (
            next(model.parameters()).dtype == torch.float32
        )  # what the optimizer changes stays exact
        return [line["loss"] for line in read_log(out / "log.jsonl")]

    return run


@pytest.mark.parametrize("more", [{}, {"lora_rank": 4}], ids=["full", "adapters"])
def test_checkpointed_activations_are_computed_twice_and_change_nothing(losses, more):
    plain, checkpointed = [], []
    expected = losses(plain, **more)
    found = losses(checkpointed, gradient_checkpointing=True, **more)
    assert (
        len(plain) == 2 and len(checkpointed) == 4
    )  # a forward pass of each step, and again on the way back
    assert found == pytest.approx(expected, abs=1e-5)


def test_accumulated_batches_are_one_large_batch(losses):
    """Every word of a step weighs the same, in whichever forward pass it is."""
    one, four = losses(batch_size=8), losses(batch_size=2, accumulation=4)
    assert four == pytest.approx(one, abs=1e-5)


def test_bfloat16_is_for_the_matrices_only(losses, monkeypatch):
    exact, rough, chosen = [], [], []
    expected, found = losses(exact), losses(rough, bf16=True)
    assert set(exact) == {torch.float32} and set(rough) == {torch.bfloat16}
    assert found != expected and found == pytest.approx(expected, rel=0.02)
    monkeypatch.setattr(run_settings, "fast_bfloat16", lambda: True)
    assert losses(chosen, bf16=None) == found and set(chosen) == {torch.bfloat16}
    chosen.clear()
    monkeypatch.setattr(run_settings, "fast_bfloat16", lambda: False)
    assert losses(chosen, bf16=None) == expected and set(chosen) == {torch.float32}


def test_loader_processes_bring_the_same_batches(losses, tmp_path):
    sources = ({"dimension": "2d", "count": 6}, {"dimension": "3d", "count": 3, "start": 500})
    config = BuildConfig(
        tuple(SourceSpec("phantom", None, options) for options in sources),
        size=(4, 64, 64),
        frame=FRAME,
        prior_studies=0,
        fractions={"train": 1.0, "val": 0.0, "test": 0.0},
    )
    folder = build(config, tmp_path / "set").folder
    records, pictures = training_records(folder)[::3], images_from(folder)
    lean = {
        "records": records,
        "pictures": pictures,
        "keep_examples": False,
        "keep_features": False,
    }
    alone = losses(**lean)
    assert losses(**lean, workers=2) == alone


def test_pictures_are_read_and_seen_by_the_tower_once(study, fresh_model, tmp_path):
    """Not in every epoch."""
    model, processor = fresh_model
    read, seen = [], []
    model.model.visual.register_forward_hook(lambda *_: seen.append(bool(read)))

    def pictures(record):
        read.append(record.id)
        return study.pictures(record)

    records = study.records[::4]
    settings = SFTSettings(**(QUICK | {"steps": None, "epochs": 3.0, "batch_size": 4}))
    fine_tune(model, processor, records, pictures, tmp_path / "run", settings)
    assert sorted(read) == sorted(record.id for record in records)
    assert len(seen) == 1  # all pictures together, before the first step
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] > 2 * len(records) / 4


def test_probes_leave_the_run_as_it_is(losses, study):
    probe = answer_probe(study.records[:3], study.pictures, 1)
    more = {"lora_rank": 4, "lora_dropout": 0.3, "gradient_checkpointing": True}
    assert losses(probes=[probe], **more) == losses(**more)


def test_what_the_trainer_is_told(monkeypatch, tmp_path):
    told = {}
    monkeypatch.setattr(sft, "SFTConfig", lambda **words: told.update(words))
    settings = SFTSettings.from_profile(
        load_profile("gpu").sft, deepspeed="zero3.json", report_to="trackio"
    )
    sft._arguments(settings, tmp_path, False)
    assert told["deepspeed"] == "zero3.json" and told["report_to"] == "trackio"
    assert told["bf16"] is True and told["dataloader_num_workers"] == 8
    assert told["lr_scheduler_type"] == "cosine" and told["warmup_steps"] == 0.03
    assert told["max_length"] is None and told["remove_unused_columns"] is False


def test_gpu_trains_as_the_paper_does():
    said = SFTSettings.from_profile(load_profile("gpu").sft)
    assert (said.learning_rate, said.schedule, said.warmup, said.epochs) == (
        1e-5,
        "cosine",
        0.03,
        1.0,
    )
    assert (said.batch_size, said.accumulation, said.max_length) == (2, 4, 40_960)
    assert said.steps is None and said.lora_rank is None and said.freeze_vision
    assert said.bf16 and said.gradient_checkpointing and said.form == "full"


def test_a_profile_chooses_adapters(study, fresh_model, tmp_path):
    changed = "sft.lora_rank=2, sft.lora_alpha=8, sft.keep_features=false"
    settings = SFTSettings.from_profile(load_profile("smoke", changed).sft, steps=1)
    fine_tune(*fresh_model, study.records[:4], study.pictures, tmp_path / "run", settings)
    made = json.loads(
        (tmp_path / "run" / "model" / "adapter_config.json").read_text(encoding="utf-8")
    )
    assert (made["r"], made["lora_alpha"]) == (2, 8)


def test_every_setting_is_in_the_profiles():
    names = {field.name for field in dataclasses.fields(SFTSettings)} - {"seed"}
    assert names <= set(load_profile("laptop").sft), names - set(load_profile("laptop").sft)


def test_loader_processes_can_be_sent_what_they_need(study, tiny_model, tmp_path):
    """Where processes are not forked they get the collator pickled."""
    import pickle

    from unireason_lib.training.encoding import Collator
    from unireason_lib.training.examples import Examples

    processor = tiny_model[1]
    lean = Examples(study.records[:4], images_from(tmp_path), processor, keep=False)
    assert (
        pickle.loads(pickle.dumps(sft.Rows(lean, Collator(processor)))).examples.lengths
        == lean.lengths
    )
