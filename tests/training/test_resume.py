"""Killed and resumed runs: the losses of a run that nobody stopped, whatever is trained and however it is fed."""

from __future__ import annotations

import os
import signal

import pytest
from transformers import TrainerCallback, set_seed

from unireason_lib.errors import DatasetError
from unireason_lib.grounding import load_model
from unireason_lib.training import sft
from unireason_lib.training.checkpoints import latest
from unireason_lib.training.logbook import Probe, read_log
from unireason_lib.training.sft import SFTSettings, fine_tune

QUICK = {
    "steps": 4,
    "learning_rate": 1e-3,
    "batch_size": 2,
    "accumulation": 2,
    "keep_features": True,
    "save_steps": 2,
    "log_steps": 1,
}

CASES = {
    "adapters with dropout": {"lora_rank": 4, "lora_dropout": 0.2},
    "muon": {"muon": 1e-2},
    "encoded in every epoch": {"keep_examples": False, "keep_features": False},
    "checkpointed activations": {"gradient_checkpointing": True},
    "at the end of an epoch": {"steps": None, "epochs": 2.0, "batch_size": 3, "save_steps": 4},
    "within the second epoch": {"steps": None, "epochs": 2.0, "batch_size": 3, "save_steps": 6},
}


def killing_logbook(step):
    """The logbook of a run that is stopped after a step."""

    class Killing(sft.Logbook):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == step:
                raise KeyboardInterrupt

    assert issubclass(Killing, TrainerCallback)
    return Killing


@pytest.mark.parametrize("case", CASES)
def test_a_killed_and_resumed_run_has_the_same_losses(
    study, tiny_checkpoint, tmp_path, monkeypatch, case
):
    settings = SFTSettings(**(QUICK | CASES[case]))

    def run(folder, seed):
        set_seed(seed)  # what was drawn before a run must not matter
        model, processor = load_model(tiny_checkpoint, device="cpu")
        fine_tune(model, processor, study.records[::3], study.pictures, tmp_path / folder, settings)
        return [
            line[key]
            for line in read_log(tmp_path / folder / "log.jsonl")
            for key in ("loss", "grad_norm")
        ]

    whole = run("whole", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sft, "Logbook", killing_logbook(settings.save_steps + 1))
        run("killed", 2)
    assert not (tmp_path / "killed" / "model").exists()
    assert len(whole) > 2 * (settings.save_steps + 1)
    assert run("killed", 3) == pytest.approx(whole, abs=2e-6)


def test_epochs_differ_in_their_order(study, tiny_checkpoint, tmp_path, monkeypatch):
    """Else every epoch has the same batches, and a run is poorer than it looks."""
    seen = []
    collate = sft.FeatureCollator.__call__

    def noting(self, examples):
        seen.append(tuple(sorted(one.ids.tobytes() for one in examples)))
        return collate(self, examples)

    monkeypatch.setattr(sft.FeatureCollator, "__call__", noting)
    settings = SFTSettings(**(QUICK | {"steps": None, "epochs": 2.0, "accumulation": 1}))
    model, processor = load_model(tiny_checkpoint, device="cpu")
    fine_tune(model, processor, study.records[:10], study.pictures, tmp_path / "run", settings)
    first, second = seen[:5], seen[5:]
    assert len(second) == 5 and sorted(sum(first, ())) == sorted(sum(second, ()))
    assert set(first) != set(second)


def test_a_checkpoint_that_was_not_finished_is_not_gone_on_from(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    assert latest(tmp_path) is None
    (tmp_path / "checkpoint-2" / "trainer_state.json").touch()
    assert latest(tmp_path) == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-10" / "trainer_state.json").touch()
    assert latest(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_finished_run_with_other_settings_is_not_taken_for_this_one(
    study, tiny_checkpoint, tmp_path
):
    def run(**more):
        model, processor = load_model(tiny_checkpoint, device="cpu")
        settings = SFTSettings(**(QUICK | {"steps": 1} | more))
        return fine_tune(
            model, processor, study.records[:4], study.pictures, tmp_path / "run", settings
        )

    assert run() == run()
    with pytest.raises(DatasetError, match="learning_rate was"):
        run(learning_rate=5e-4)


def test_ctrl_c_saves_the_step_that_was_under_way(study, tiny_checkpoint, tmp_path):
    """A run that is interrupted in step 3, between two checkpoints, goes on from step 3."""

    def interrupt(model, processor):
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    def run(folder, probes=()):
        model, processor = load_model(tiny_checkpoint, device="cpu")
        settings = SFTSettings(**QUICK)
        fine_tune(
            model,
            processor,
            study.records[::3],
            study.pictures,
            tmp_path / folder,
            settings,
            probes=probes,
        )
        return [line["loss"] for line in read_log(tmp_path / folder / "log.jsonl")]

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        run("stopped", [Probe("interrupt", 3, interrupt)])
    assert signal.getsignal(signal.SIGINT) is before
    assert latest(tmp_path / "stopped").endswith("checkpoint-3")
    assert run("stopped") == pytest.approx(run("whole"), abs=2e-6)
