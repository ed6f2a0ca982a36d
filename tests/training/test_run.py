"""The folder of a run: killed and resumed, held by one, refused to another, and the model in it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    TrainerCallback,
    set_seed,
)

from unireason_lib.errors import DatasetError, TrainingError
from unireason_lib.grounding import Settings, build_tiny, load_model
from unireason_lib.imaging import Serialization
from unireason_lib.io import append_lines, locked, read_lines
from unireason_lib.training.callbacks import (
    FreeRunning,
    RunLog,
    SaveOnInterrupt,
    balanced,
    read_log,
)
from unireason_lib.training.checkpoints import merge_adapter, serialization_of, whole_checkpoint
from unireason_lib.training.encoding import Collator
from unireason_lib.training.sft import train_sft

from .conftest import quick

SHORT = Settings(max_new_tokens=8)

EPOCHS = {"sft__max_steps": -1, "sft__num_train_epochs": 2.0}
CASES = {
    "adapters with dropout": {"grounding__sft_lora_r": 4, "grounding__lora_dropout": 0.2},
    "muon": {"grounding__muon_learning_rate": 1e-2},
    "at the end of an epoch": {**EPOCHS, "sft__save_steps": 3, "grounding__feature_cache": False},
    "within the second epoch": {**EPOCHS, "sft__save_steps": 4},
}


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def kill():
    raise KeyboardInterrupt


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def run(study, tiny_checkpoint, tmp_path):
    """Trains in a folder, as often as it is called; gives the folder of the model."""

    def start(folder="run", records=slice(None, None, 3), callbacks=(), model=None, **changes):
        loaded = model or load_model(tiny_checkpoint, device="cpu")
        profile, out = quick(**changes), tmp_path / folder
        return train_sft(
            *loaded, study.records[records], study.images, out, profile, callbacks=callbacks
        )

    return start


def losses(out):
    return [line[key] for line in read_log(out / "log.jsonl") for key in ("loss", "grad_norm")]


@pytest.mark.parametrize("case", CASES)
def test_a_killed_and_resumed_run_has_the_same_losses(run, tmp_path, case):
    changes = {"records": slice(None, None, 6), **CASES[case]}  # six steps are two epochs
    set_seed(1)  # what was drawn before a run must not matter
    whole = run("whole", **changes)
    set_seed(2)
    with pytest.raises(KeyboardInterrupt):
        run("killed", callbacks=[At(changes.get("sft__save_steps", 2) + 1, kill)], **changes)
    assert not (tmp_path / "killed" / "model").exists()
    set_seed(3)
    resumed = run("killed", **changes)
    expected = losses(tmp_path / "whole")
    assert len(expected) >= 8 and losses(tmp_path / "killed") == pytest.approx(expected, abs=2e-6)
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (whole / name).exists():
            assert (whole / name).stat().st_size == (resumed / name).stat().st_size


def test_a_resumed_run_repeats_no_line_of_its_log(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[At(3, kill)])
    log = tmp_path / "run" / "log.jsonl"
    append_lines(log, [{"step": 3, "free_running": {}}])
    log.write_text(log.read_text() + '{"step": 4, "lo')  # torn by the kill
    run()
    assert [line["step"] for line in read_log(log)] == [1, 2, 3, 4]
    assert len(log.read_text().splitlines()) == len(read_lines(log))
    assert not read_log(log, "free_running")
    assert [line["step"] for line in read_log(log, "train_runtime")] == [4]


def test_epochs_differ_in_their_order(run, monkeypatch):
    """Else every epoch has the same batches, and a run is poorer than it looks."""
    seen, collate = [], Collator.__call__

    def noting(self, examples):
        seen.append(tuple(sorted(one.ids.tobytes() for one in examples)))
        return collate(self, examples)

    monkeypatch.setattr(Collator, "__call__", noting)
    run(records=slice(10), sft__gradient_accumulation_steps=1, **EPOCHS)
    first, second = seen[:5], seen[5:]
    assert len(second) == 5 and sorted(sum(first, ())) == sorted(sum(second, ()))
    assert set(first) != set(second)


def test_ctrl_c_saves_the_step_under_way(run, tmp_path):
    """A run that is interrupted in step 3, between two checkpoints, goes on from step 3, and from
    no newer checkpoint that a kill left without its state."""
    with pytest.raises(KeyboardInterrupt, match="step 3"):
        run(callbacks=[At(3, interrupt)])
    assert (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").is_file()
    (tmp_path / "run" / "checkpoint-10").mkdir()
    (tmp_path / "run" / "checkpoint-10" / "model.safetensors").touch()
    run()
    run("whole")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=2e-6)


@pytest.mark.parametrize("steps", [4, 3], ids=["in an epoch", "at its end"])
def test_a_run_that_was_stopped_after_its_last_step_does_none_more(run, tmp_path, steps):
    """It trained one step too many, where that step was not the last of its epoch."""
    changes = {"records": slice(None, None, 6), "sft__max_steps": steps}
    with pytest.raises(KeyboardInterrupt, match=f"step {steps}"):
        run(callbacks=[At(steps, interrupt)], **changes)
    model, _ = load_model(run(**changes), device="cpu")
    saved = load_model(tmp_path / "run" / f"checkpoint-{steps}", device="cpu")[0].state_dict()
    assert all(torch.equal(saved[name], now) for name, now in model.state_dict().items())
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == steps


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_ctrl_c_is_as_before_however_a_run_ends(run, ends):
    """The handler was put back only after a run that ended well."""
    before = signal.getsignal(signal.SIGINT)
    if ends == "well":
        run(sft__max_steps=1)
    else:
        with pytest.raises(ZeroDivisionError):
            run(callbacks=[At(1, lambda: 1 / 0)])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), SaveOnInterrupt() as asked:
        interrupt()
        assert asked.asked
        interrupt()


def test_a_finished_run_is_taken_as_it_is(run):
    first = (run() / "model.safetensors").stat().st_mtime_ns
    assert (run() / "model.safetensors").stat().st_mtime_ns == first
    with pytest.raises(DatasetError, match=r"sft\.learning_rate was 0\.001, is 0\.01"):
        run(sft__learning_rate=1e-2)
    # an argument of TRL that was added was no change
    with pytest.raises(DatasetError, match=r"sft\.adam_beta2 was None, is 0\.5"):
        run(sft__adam_beta2=0.5)
    with pytest.raises(DatasetError, match=r"model\.dtype was float32, is bfloat16"):
        run(model__dtype="bfloat16")
    with pytest.raises(DatasetError, match="other records"):
        run(records=slice(0, 5))
    run(grounding__grpo_test_questions=3)  # which is no setting of this stage


@pytest.mark.parametrize("r", [None, 4], ids=["full", "adapters"])
def test_another_base_model_is_another_run(run, tmp_path, r):
    """The run went on silently, with LoRA old adapters on a new base."""
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[At(3, kill)], grounding__sft_lora_r=r)
    torch.manual_seed(5)
    other = load_model(build_tiny(tmp_path / "other", seed=5), device="cpu")
    with pytest.raises(DatasetError, match=r"another base model \(tiny was, other is\)"):
        run(model=other, grounding__sft_lora_r=r)


def test_a_run_is_held_by_one_process(run, tmp_path):
    """Both trained, mixed their logs, and one ended with a bare errno."""
    code = "import sys, time; from unireason_lib.io import locked\n"
    code += "with locked(sys.argv[1], 'x'): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run" / "run.lock")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DatasetError, match="nobody else writing"):
            run()
        assert not (tmp_path / "run" / "settings.json").exists()
    finally:
        other.kill()
        other.wait()
    run(sft__max_steps=1)


@pytest.mark.parametrize("kilobytes", [1, 2000], ids=["log", "checkpoint"])
def test_a_full_disk_is_named(run, tmp_path, kilobytes):
    """There was a traceback of PyTorch, or a bare errno without a path."""
    model = load_model(build_tiny(tmp_path / "tiny"), device="cpu")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fill = {"callbacks": [RunLog(tmp_path / "run" / "more.jsonl")]} if kilobytes == 1 else {}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, before[1]))
        with pytest.raises(DatasetError, match=r"run.*space on the disk"):
            run(model=model, **fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    run()  # and goes on when there is space


def test_generation_settings_of_the_base_are_not_handed_on(run, tiny_checkpoint, tmp_path):
    poisoned = shutil.copytree(tiny_checkpoint, tmp_path / "poisoned")
    path = poisoned / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [5], "temperature": 9.0, "custom_generate": "a/b"}))
    made = run(model=load_model(poisoned, device="cpu"), sft__max_steps=1)
    clean = json.loads((made / "generation_config.json").read_text())
    tokenizer = load_model(made, device="cpu")[1].tokenizer
    assert clean.keys() == {"eos_token_id", "pad_token_id", "transformers_version"}
    assert set(tokenizer.convert_ids_to_tokens(clean["eos_token_id"])) >= {"<|im_end|>"}


def test_the_model_carries_serialization_and_card(run, study):
    made = run(sft__report_to="none")
    layout = Serialization.load(made)
    assert layout == serialization_of(study.records[::3])
    assert layout.size == (4, 64, 64) and layout.image_size == (64, 64)
    card = (made / "README.md").read_text(encoding="utf-8")
    assert "| sft.learning_rate | 0.001 |\n" in card and 'load_model("THIS_FOLDER")' in card
    assert "not for clinical use" in card and str(made) not in card


@pytest.fixture
def adapter(run, tiny_checkpoint):
    return run(grounding__sft_lora_r=4, sft__learning_rate=1e-2)


def weights(folder):
    return load_model(folder, device="cpu")[0].state_dict()


def test_an_adapter_is_merged_into_a_plain_checkpoint(adapter, tiny_checkpoint, tmp_path):
    out = merge_adapter(tiny_checkpoint, adapter, tmp_path / "out")
    with pytest.raises(TrainingError, match="no such folder"):
        merge_adapter(tiny_checkpoint, adapter, out)
    with pytest.raises(TrainingError, match="a PEFT adapter"):
        merge_adapter(tiny_checkpoint, out, tmp_path / "again")
    assert "not for clinical use" in (out / "README.md").read_text(encoding="utf-8")
    assert Serialization.load(out) == Serialization.load(adapter)
    # as the authors load theirs: the class itself, and the processor beside it
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoProcessor.from_pretrained(out).tokenizer
    tokens = tokenizer("<think>The liver.</think>A.", return_tensors="pt")
    adapted = load_model(tiny_checkpoint, adapter=adapter, device="cpu")[0]
    with torch.no_grad():
        expected = adapted(**tokens).logits
        torch.testing.assert_close(plain(**tokens).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_merged_checkpoint_follows_its_adapter(run, adapter, tmp_path):
    """The copy beside a run stayed what it was when the adapter was trained again."""
    merged = Path(whole_checkpoint(adapter))
    assert merged == adapter.parent / "merged" and whole_checkpoint(merged) == str(merged)
    assert whole_checkpoint("owner/name") == "owner/name"
    made = (merged / "model.safetensors").stat().st_mtime_ns
    assert whole_checkpoint(adapter) == str(merged)
    assert (merged / "model.safetensors").stat().st_mtime_ns == made  # once
    before = weights(merged)
    other = run("other", grounding__sft_lora_r=4, sft__seed=1, sft__learning_rate=1e-2)
    beside = shutil.copytree(other, adapter.parent / "second")  # had the same copy, by turns
    assert whole_checkpoint(beside) == str(adapter.parent / "second-merged")
    assert whole_checkpoint(adapter) == str(merged)
    assert (merged / "model.safetensors").stat().st_mtime_ns == made
    shutil.rmtree(adapter)
    shutil.copytree(other, adapter)
    after = weights(whole_checkpoint(adapter))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_merged_checkpoint_is_made_by_one(adapter):
    """Two notebooks at once could publish half a model: the second waits for the first."""
    import threading

    with locked(adapter.parent / "merged.lock", "merged"):
        waiting = threading.Thread(target=whole_checkpoint, args=(adapter,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not (adapter.parent / "merged").exists()
    waiting.join(60)
    assert weights(adapter.parent / "merged")


def test_free_running_replies_are_judged_and_logged(run, study, tmp_path):
    questions = balanced(study.records, 6)
    assert [one.dimension for one in questions] == ["2d"] * 3 + ["3d"] * 3
    run(callbacks=[FreeRunning(questions, 3, study.images, SHORT)], sft__seed=1)
    lines = read_log(tmp_path / "run" / "log.jsonl", "free_running")
    assert [line["step"] for line in lines] == [3, 4]  # and after the last step
    for part in lines[0]["free_running"].values():
        assert part["n"] == 3 and part["failed"] == 0 and 0 <= part["accuracy"] <= 1
        assert {"iou", "format", "followed"} <= part.keys()


def test_free_running_replies_that_fail_are_wrong(study, tiny_model):
    asked = FreeRunning(study.records[:3], 1, lambda record: [], SHORT).measure(*tiny_model)["2d"]
    assert (asked["accuracy"], asked["failed"], asked["iou"]) == (0.0, 3, None)


def test_free_running_tests_leave_the_run_as_it_is(run, study, tmp_path):
    more = {"grounding__sft_lora_r": 4, "grounding__lora_dropout": 0.3, "sft__max_steps": 2}
    tests = [FreeRunning(study.records[:2], 1, study.images, SHORT)]
    for folder, callbacks in (("tested", tests), ("untested", [])):
        run(folder, callbacks=callbacks, sft__gradient_checkpointing=True, **more)
    assert losses(tmp_path / "tested") == losses(tmp_path / "untested")
