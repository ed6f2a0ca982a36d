"""The folder of a run: killed and resumed, held by one, refused to another, and the model in it."""

import json
import resource
import shutil
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from unireason_lib.backbones import BACKBONES
from unireason_lib.errors import DatasetError, TrainingError
from unireason_lib.grounding import Settings, build_tiny, load_model
from unireason_lib.imaging import Serialization
from unireason_lib.io import append_lines, locked, read_lines
from unireason_lib.training.callbacks import FreeRunning, SaveOnInterrupt, balanced, read_log
from unireason_lib.training.checkpoints import merge_adapter, serialization_of, whole_checkpoint
from unireason_lib.training.sft import train_sft

from .conftest import FAMILIES, At, crash, interrupt, quick

SHORT = Settings(max_new_tokens=8)
EPOCHS = {"sft__max_steps": -1, "sft__num_train_epochs": 2.0}  # of two steps
LORA = {"grounding__sft_lora_r": 4, "grounding__lora_dropout": 0.2}
PIXELS = {"grounding__feature_cache": False}
CASES = {
    "adapters with dropout, within the second epoch": {**LORA, "sft__save_steps": 3},
    "muon, end of an epoch": {"grounding__muon_learning_rate": 1e-2, "sft__save_steps": 2},
    "Qwen3-VL, from pixels": {**PIXELS, "family": "qwen3_vl", "sft__save_steps": 3},
}


@pytest.fixture
def run(families, tmp_path):
    """Trains in a folder, as often as it is called; gives the folder of the model."""

    def start(folder="run", callbacks=(), model=None, family="qwen2_5_vl", every=6, **changes):
        checkpoint, study = families[family]
        model = load_model(model or checkpoint, device="cpu")
        given = study.records[::every], study.images, tmp_path / folder, quick(**changes)
        return train_sft(*model, *given, callbacks=callbacks)

    return start


def losses(out):
    return [line[key] for line in read_log(out / "log.jsonl") for key in ("loss", "grad_norm")]


def weights(folder):
    return load_model(folder, device="cpu")[0].state_dict()


@pytest.mark.parametrize("case", CASES)
def test_a_killed_and_resumed_run_is_the_same_run(run, tmp_path, case):
    """Whatever was drawn before it. No line of its log comes twice, and none that a kill tore."""
    changes = EPOCHS | CASES[case]
    run("whole", **changes)
    torch.manual_seed(2)
    step = changes["sft__save_steps"] + 1
    with pytest.raises(ZeroDivisionError):
        run("killed", callbacks=[At(step, crash)], **changes)
    assert not (tmp_path / "killed" / "model").exists()
    log = tmp_path / "killed" / "log.jsonl"
    append_lines(log, [{"step": step, "free_running": {}}])
    log.write_text(log.read_text() + '{"step": 9, "lo')
    torch.manual_seed(3)
    run("killed", **changes)
    expected = losses(tmp_path / "whole")
    assert len(expected) >= 8 and losses(tmp_path / "killed") == pytest.approx(expected, abs=2e-6)
    assert len(log.read_text().splitlines()) == len(read_lines(log))
    assert not read_log(log, "free_running") and len(read_log(log, "train_runtime")) == 1


def test_ctrl_c_saves_the_step_under_way(run, tmp_path):
    """A run that is interrupted in step 1, before a checkpoint is due, goes on from there, and from
    no newer checkpoint that a kill left without its state."""
    before, out = signal.getsignal(signal.SIGINT), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match="step 1"):
        run(callbacks=[At(1, interrupt)], sft__max_steps=3)
    assert (out / "checkpoint-1" / "trainer_state.json").is_file()
    (out / "checkpoint-10").mkdir()
    (out / "checkpoint-10" / "model.safetensors").touch()
    shutil.copytree(out / "checkpoint-1", out / "checkpoint-2")
    (out / "checkpoint-2" / "trainer_state.json").write_text('{"global_st')
    with pytest.raises(ZeroDivisionError):
        run(callbacks=[At(2, crash)], sft__max_steps=3)
    assert signal.getsignal(signal.SIGINT) is before  # it was put back only after a good end
    run(sft__max_steps=3)
    run("whole", sft__max_steps=3)
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), abs=2e-6)


def test_a_run_that_was_stopped_after_its_last_step_does_none_more(run, tmp_path):
    """It trained one step too many, where that step was not the last of its epoch."""
    with pytest.raises(KeyboardInterrupt, match="step 1"):
        run(callbacks=[At(1, interrupt)], sft__max_steps=1)
    made, saved = weights(run(sft__max_steps=1)), weights(tmp_path / "run" / "checkpoint-1")
    assert all(torch.equal(saved[name], made[name]) for name in made)


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), SaveOnInterrupt() as asked:
        interrupt()
        assert asked.asked
        interrupt()


def test_another_run_is_refused(run, tmp_path):
    """One with another base went on silently, with LoRA old adapters on a new base. Two at once
    both trained, mixed their logs, and one ended with a bare errno."""
    with locked(tmp_path / "run" / "run.lock", "x"):
        with pytest.raises(DatasetError, match="nobody else writing"):
            run(**LORA)
        assert not (tmp_path / "run" / "settings.json").exists()
    with pytest.raises(ZeroDivisionError):
        run(callbacks=[At(1, crash)], **LORA)
    other = build_tiny(tmp_path / "other", seed=5)
    for refused, change in {
        r'base\.name was "tiny" and is now "other"; base\.sha256 was': {"model": other},
        r"sft\.learning_rate was 0\.001 and is now 0\.01": {"sft__learning_rate": 1e-2},
        r"sft\.adam_beta2 was null and is now 0\.5": {"sft__adam_beta2": 0.5},  # was no change
        r"records\.digest was": {"every": 8},
    }.items():
        with pytest.raises(DatasetError, match=refused):
            run(**LORA, **change)
    about = tmp_path / "run" / "settings.json"
    about.write_text(about.read_text().replace('"processes": 1', '"processes": 2'))
    with pytest.raises(DatasetError, match="processes was 2 and is now 1"):  # it skipped records
        run(**LORA)


def test_another_hub_id_is_refused_where_no_commit_is_known(study, fresh_model, tmp_path):
    model, processor = fresh_model
    given = processor, study.records[:4], study.images, tmp_path, quick(sft__max_steps=1)
    model.name_or_path = "owner/one"
    train_sft(model, *given)
    model.name_or_path = "owner/two"
    with pytest.raises(DatasetError, match=r'base\.name was "owner/one" and is now "owner/two"'):
        train_sft(model, *given)


@contextmanager
def nearly_full_disk(kilobytes, named):
    """No file may become larger in the block, which ends in an error that names one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, before[1]))
        with pytest.raises(DatasetError, match=f"{named}.*space on the disk"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("kilobytes", [1, 2000])  # full when it begins, and at a checkpoint
def test_a_full_disk_is_named(run, tmp_path, kilobytes):
    """There was a traceback of PyTorch, or a bare errno without a path."""
    with nearly_full_disk(kilobytes, "run"):
        run()
    assert not (tmp_path / "run" / "model").exists()


def poisoned(checkpoint, folder):
    """A base that says how to sample."""
    shutil.copytree(checkpoint, folder)
    settings = {"eos_token_id": [5], "temperature": 9.0, "custom_generate": "a/b"}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def assert_clean(folder):
    """Its settings of sampling are which tokens end a turn and which pads."""
    clean = json.loads((folder / "generation_config.json").read_text())
    tokenizer = load_model(folder, device="cpu")[1].tokenizer
    assert clean.keys() == {"eos_token_id", "pad_token_id", "transformers_version"}
    assert set(tokenizer.convert_ids_to_tokens(clean["eos_token_id"])) >= {"<|im_end|>"}


def test_the_model_of_a_finished_run(run, study, tiny_checkpoint, tmp_path):
    """It is taken as it is; carries serialization and card, and no settings of sampling that its
    base had."""
    how = {"model": poisoned(tiny_checkpoint, tmp_path / "poisoned"), "sft__max_steps": 1}
    made = run(**how)
    assert_clean(made)
    layout = Serialization.load(made)
    assert layout == serialization_of(study.records[::6])
    assert layout.size == (4, 64, 64) and layout.image_size == (64, 64)
    card = (made / "README.md").read_text(encoding="utf-8")
    assert "| sft.learning_rate | 0.001 |\n" in card and 'load_model("THIS_FOLDER")' in card
    assert "not for clinical use" in card and "`poisoned`" in card and str(tmp_path) not in card
    written = (made / "model.safetensors").stat().st_mtime_ns
    again = run(**how, grounding__test_questions=3)  # none of sft's
    assert (again / "model.safetensors").stat().st_mtime_ns == written


@FAMILIES
def test_an_adapter_is_merged_into_a_plain_checkpoint_by_one(run, families, family, tmp_path):
    """The copy beside a run stayed what it was when the adapter was trained again, and two
    notebooks at once could publish half a model: the second waits for the first."""
    base = poisoned(families[family][0], tmp_path / "poisoned")
    how = {"grounding__sft_lora_r": 4, "sft__learning_rate": 1e-2, "family": family}
    adapter = run(model=base, **how)
    merged = adapter.with_name("model-merged")
    with locked(adapter.with_name("model-merged.lock"), "merged"):
        waiting = threading.Thread(target=whole_checkpoint, args=(adapter,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not merged.exists()
    waiting.join(60)
    made = (merged / "model.safetensors").stat().st_mtime_ns
    assert whole_checkpoint(merged) == str(merged) == whole_checkpoint(adapter)
    assert whole_checkpoint("owner/name") == "owner/name"
    assert (merged / "model.safetensors").stat().st_mtime_ns == made  # once
    assert "not for clinical use" in (merged / "README.md").read_text(encoding="utf-8")
    assert Serialization.load(merged) == Serialization.load(adapter)
    assert_clean(merged)
    # as the authors load theirs: the class itself, and the processor beside it
    kind = BACKBONES[family].of_transformers("ForConditionalGeneration")
    plain = kind.from_pretrained(merged, dtype=torch.float32).eval()
    tokenizer = AutoProcessor.from_pretrained(merged).tokenizer
    tokens = tokenizer("<think>The liver.</think>A.", return_tensors="pt")
    without, adapted = (load_model(base, adapter=a, device="cpu")[0] for a in (None, adapter))
    with torch.no_grad():
        expected = adapted(**tokens).logits
        assert not torch.allclose(without(**tokens).logits, expected, atol=1e-3)
        torch.testing.assert_close(plain(**tokens).logits, expected, atol=1e-4, rtol=1e-4)
    for wrong, out in ((adapter, merged), (merged, tmp_path / "again")):
        with pytest.raises(TrainingError, match=r"no such folder|a PEFT adapter"):
            merge_adapter(base, wrong, out)
    with nearly_full_disk(100, "full"):
        merge_adapter(base, adapter, tmp_path / "full")
    file = adapter / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(file).items()}, file, {"format": "pt"})
    (left_by_a_kill := merged.with_name("model-merged.0.partial")).mkdir()
    whole_checkpoint(adapter)
    assert (merged / "model.safetensors").stat().st_mtime_ns != made
    assert not left_by_a_kill.exists()


def test_free_running_replies_are_judged_logged_and_leave_the_run_as_it_is(run, study, tmp_path):
    questions = balanced(study.records, 4)
    assert [one.dimension for one in questions] == ["2d"] * 2 + ["3d"] * 2
    said: list[str] = []
    tests = [FreeRunning(questions, 2, study.images, SHORT, say=said.append)]
    for folder, callbacks in (("tested", tests), ("untested", [])):
        run(folder, callbacks=callbacks, sft__gradient_checkpointing=True, sft__max_steps=3, **LORA)
    assert losses(tmp_path / "tested") == losses(tmp_path / "untested")
    lines = read_log(tmp_path / "tested" / "log.jsonl", "free_running")
    assert [line["step"] for line in lines] == [2, 3]  # and after the last step
    accuracy = [f"{lines[0]['free_running'][d]['accuracy']:.0%}" for d in ("2d", "3d")]
    assert said[0] == "step 2: 2d accuracy {}, 3d accuracy {}".format(*accuracy) and len(said) == 2
    for part in lines[0]["free_running"].values():
        assert part["n"] == 2 and part["failed"] == 0 and 0 <= part["accuracy"] <= 1
        assert {"iou", "format", "followed"} <= part.keys()


def test_free_running_replies_that_fail_are_wrong(study, tiny_model):
    asked = FreeRunning(study.records[:3], 1, lambda record: [], SHORT).measure(*tiny_model)["2d"]
    assert (asked["accuracy"], asked["failed"], asked["iou"]) == (0.0, 3, None)


def test_a_run_ends_with_the_weights_that_were_best(run, study, tmp_path, monkeypatch):
    measured = iter({"2d": {"accuracy": accuracy}} for accuracy in (0.1, 0.7, 0.3, 0.7))
    monkeypatch.setattr(FreeRunning, "measure", lambda *_: next(measured))
    tests = FreeRunning(balanced(study.records, 4), 1, study.images, SHORT, best="2d")
    best = run(callbacks=[tests], sft__save_steps=1, sft__save_total_limit=4)
    weights = load_file(best / "model.safetensors")
    for step, same in ((2, True), (4, False)):
        checkpoint = load_file(best.parent / f"checkpoint-{step}" / "model.safetensors")
        assert same == all(torch.equal(checkpoint[k], weights[k]) for k in weights)
    with pytest.raises(TrainingError, match=r"keep_best.*questions in 3d"):
        FreeRunning(study.records[:0], 1, study.images, SHORT, best="3d")


def test_the_best_of_4_bit_weights(study, tiny_checkpoint, tmp_path):
    """The whole quantized model was saved, which cannot be loaded."""
    model = load_model(tiny_checkpoint, device="cpu", dtype="float32", quantization="4bit")
    tests = FreeRunning(balanced(study.records, 4), 1, study.images, SHORT, best="2d")
    given = study.records[:4], study.images, tmp_path / "out", quick(sft__max_steps=1, **LORA)
    assert train_sft(*model, *given, callbacks=[tests]).is_dir()
    assert not any("base_layer" in name for name in load_file(tmp_path / "out/best.safetensors"))


def test_free_running_tests_compute_as_training_does(run, study, monkeypatch):
    """Flash attention takes no float32, and every reply failed in silence."""
    seen = []
    measured = {"2d": {"accuracy": 0.0}}
    monkeypatch.setattr(
        FreeRunning, "measure", lambda *_: seen.append(torch.is_autocast_enabled("cpu")) or measured
    )
    for bf16 in (True, False):
        tests = FreeRunning(study.records[:1], 1, study.images, SHORT)
        run(str(bf16), callbacks=[tests], sft__max_steps=1, sft__bf16=bf16)
    assert seen == [True, False]
