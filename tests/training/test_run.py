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
    trim_memory,
)
from unireason_lib.training.checkpoints import (
    last_checkpoint,
    merge_adapter,
    serialization_of,
    whole_checkpoint,
)
from unireason_lib.training.sft import train_sft

from .conftest import quick

CASES = {
    "full": {},
    "adapters with dropout": {"grounding__sft_lora_r": 4, "grounding__lora_dropout": 0.2},
    "muon": {"grounding__muon_learning_rate": 1e-2},
    "encoded in every epoch": {"grounding__feature_cache": False},
    "at the end of an epoch": {"sft__max_steps": -1, "sft__num_train_epochs": 2.0}
    | {"sft__save_steps": 3},
    "within the second epoch": {"sft__max_steps": -1, "sft__num_train_epochs": 2.0}
    | {"sft__save_steps": 4},
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


def test_the_log_ends_a_torn_line_before_it_adds_one(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    append_lines(path, [{"step": 2, "loss": 2.0}])
    assert [line["loss"] for line in read_log(path)] == [3.0, 2.0]
    assert read_log(tmp_path / "none") == []


def test_a_log_that_is_cut_back_is_never_empty(monkeypatch, tmp_path):
    """It was emptied first: a kill or a full disk between lost all of it."""
    from types import SimpleNamespace

    from unireason_lib.training import callbacks

    append_lines(tmp_path / "log.jsonl", [{"step": step, "loss": 1.0} for step in (1, 2, 3)])
    monkeypatch.setattr(callbacks, "append_lines", lambda path, lines: None)  # the disk is full
    state = SimpleNamespace(is_world_process_zero=True, global_step=2)
    RunLog(tmp_path / "log.jsonl").on_train_begin(None, state, None)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_epochs_differ_in_their_order(run, monkeypatch):
    """Else every epoch has the same batches, and a run is poorer than it looks."""
    from unireason_lib.training.encoding import FeatureCollator

    seen, collate = [], FeatureCollator.__call__

    def noting(self, examples):
        seen.append(tuple(sorted(one.ids.tobytes() for one in examples)))
        return collate(self, examples)

    monkeypatch.setattr(FeatureCollator, "__call__", noting)
    epochs = {"sft__max_steps": -1, "sft__num_train_epochs": 2.0}
    run(records=slice(10), sft__gradient_accumulation_steps=1, **epochs)
    first, second = seen[:5], seen[5:]
    assert len(second) == 5 and sorted(sum(first, ())) == sorted(sum(second, ()))
    assert set(first) != set(second)


def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
        assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{step}")


def test_ctrl_c_saves_the_step_under_way(run, tmp_path):
    """A run that is interrupted in step 3, between two checkpoints, goes on from step 3."""
    with pytest.raises(KeyboardInterrupt, match="step 3"):
        run(callbacks=[At(3, interrupt)])
    assert last_checkpoint(tmp_path / "run").endswith("checkpoint-3")
    run()
    run("whole")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=2e-6)


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
    # an argument of TRL that was added or dropped was no change
    with pytest.raises(DatasetError, match=r"sft\.adam_beta2 was 0\.999, is 0\.5"):
        run(sft__adam_beta2=0.5)
    run("other", sft__max_steps=1, sft__adam_beta2=0.5)
    with pytest.raises(DatasetError, match=r"sft\.adam_beta2 was 0\.5, is 0\.999"):
        run("other", sft__max_steps=1)
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
    assert "| sft.learning_rate | 0.001 |" in card and 'load_model("THIS_FOLDER")' in card
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
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card and 'load_model("THIS_FOLDER")' in card
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
    how = {"settings": Settings(max_new_tokens=8), "batch_size": 4}
    run(callbacks=[FreeRunning(questions, 3, study.images, **how)], sft__seed=1)
    lines = read_log(tmp_path / "run" / "log.jsonl", "free_running")
    assert [line["step"] for line in lines] == [3, 4]  # and after the last step
    for part in lines[0]["free_running"].values():
        assert part["n"] == 3 and part["failed"] == 0 and 0 <= part["accuracy"] <= 1
        assert {"iou", "format", "followed"} <= part.keys()


def test_free_running_replies_that_fail_are_wrong(study, tiny_model):
    asked = FreeRunning(study.records[:3], 1, lambda record: [], components="no regions")
    assert asked.settings.max_rounds == 0
    assert (
        asked.measure(*tiny_model)["2d"] | {"accuracy": 0.0, "failed": 3, "iou": None}
        == (asked.measure(*tiny_model)["2d"])
    )


def test_free_running_tests_leave_the_run_as_it_is(run, study, tmp_path):
    more = {"grounding__sft_lora_r": 4, "grounding__lora_dropout": 0.3}
    for folder, callbacks in (
        ("tested", [FreeRunning(study.records[:2], 1, study.images)]),
        ("untested", []),
    ):
        run(folder, callbacks=callbacks, sft__gradient_checkpointing=True, **more)
    assert losses(tmp_path / "tested") == losses(tmp_path / "untested")


def test_memory_goes_back_to_the_system():
    import platform

    assert trim_memory() or platform.libc_ver()[0] != "glibc"
