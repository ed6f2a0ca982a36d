"""The commands as a whole: help without waiting, how they end, and from data to a merged model."""

import errno
import json
import warnings
from pathlib import Path

import pytest
from PIL import Image

from tests.dataset.sources.layouts import make_folder
from unireason_lib.errors import DatasetError
from unireason_lib.grounding import load_model
from unireason_lib.inference import read_results

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = "infer build sft rl merge evaluate ablate trace plan base tutorial".split()
SMALL = ("--benchmark", "phantom", "--option", "prior_studies=0", "--size", "4x64x64")


def test_help_shows_the_commands(run):
    assert all(name in run("--help").stdout for name in COMMANDS)
    assert all("--help" in run(name, "--help").stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "the same command resumes"),
        (DatasetError("it", "one", "none", "get one"), 2, "error: it: expected one, found none"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "m.json: expected space on the disk"),
        (RuntimeError("write: No space left on device"), 2, "m.json: expected space on the disk"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.nii"), 2, "x.nii"),
        (BrokenPipeError(), None, ""),
        (ZeroDivisionError(), None, ""),
    ],
)
def test_how_a_command_ends(run, monkeypatch, tmp_path, error, code, message):
    """A full disk was a bare "Errno 28" in evaluate and a traceback in sft."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("unireason_lib.training.checkpoints.merge_adapter", fail)
    words = ("merge", "--model", "a", "--adapter", "b", "--out", tmp_path / "m.json")
    if code is None:  # of a fault of ours everybody should see where it is
        with pytest.raises(type(error)):
            run(*words)
        return
    done = run(*words)
    assert done.exit_code == code and message in done.stderr and "Traceback" not in done.output


@pytest.fixture(scope="module")
def data(run, tiny_checkpoint, tmp_path_factory):
    """A small data set of slices and volumes, made by the command."""
    out = tmp_path_factory.mktemp("data") / "set"
    words = ["build", "--out", out, "--size", "4,64,64", "--model", tiny_checkpoint]
    words += ["--source", "phantom:dimension=2d,count=10", "--source", "phantom:start=500,count=6"]
    words += ["--prior-studies", 0, "--fractions", "0.6,0.4,0"]
    assert "nothing was written" in run(*words, "--dry-run").stdout and not out.exists()
    done = run(*words)
    assert done.exit_code == 0 and "16 studies processed now" in done.stdout
    assert "was finished already" in run(*words).stdout
    return out


def test_from_records_to_a_model_that_learnt_and_is_merged(run, data, tiny_checkpoint, tmp_path):
    """Outcome RL starts from the adapter of fine-tuning; a lost folder was asked of the hub."""
    sft, rl, merged = (tmp_path / name for name in ("sft", "rl", "merged"))
    quiet = ("--profile", "smoke", "--quiet", "--data", data)
    first = ("sft", *quiet, "--model", tiny_checkpoint, "--out", sft)
    misspelt = run(*first, "--set", "sft.learning_rat=1")
    assert misspelt.exit_code == 2 and "learning_rate" in misspelt.stderr
    done = run(*first, "--set", "grounding.sft_lora_r=4")
    assert done.exit_code == 0 and "training records" in done.stdout and done.stderr == ""
    lines = (sft / "log.jsonl").read_text()
    assert lines.count('"loss"') == 4 and '"free_running"' in lines
    done = run("rl", *quiet, "--model", sft / "model", "--out", rl)
    assert done.exit_code == 0, done.output
    assert (rl / "rollouts.jsonl").is_file() and '"reward"' in (rl / "log.jsonl").read_text()
    load_model(rl / "model", device="cpu")
    lost = run("rl", *quiet[:-1], "/nothere", "--model", tiny_checkpoint, "--out", rl)
    assert lost.exit_code == 2 and "download" not in lost.stderr  # a path is no hub id
    words = ("merge", "--model", tiny_checkpoint, "--adapter", sft / "model", "--out", merged)
    assert run(*words).exit_code == 0
    load_model(merged, device="cpu")
    assert run(*words).exit_code == 2  # it is there already


def test_a_base_is_trained_and_measured(run, tmp_path, monkeypatch):
    """A FutureWarning came through --quiet."""
    from unireason_lib import tiny_base

    def pretrain(out, plan, final_size, progress):
        (out / "model").mkdir(parents=True)
        skills = {"words": {"right": plan.steps / 4, "n": final_size}}
        (out / "model" / "skills.json").write_text(json.dumps(skills))
        return out / "model"

    def measure(model, processor, size):
        warnings.warn("this will go", FutureWarning, stacklevel=2)
        return {"shapes": {"right": 1.0, "n": size}}

    monkeypatch.setattr(tiny_base, "pretrain", pretrain)
    monkeypatch.setattr(tiny_base, "measure", measure)
    done = run("base", "--out", tmp_path / "base", "--steps", 2, "--size", 5)
    assert done.exit_code == 0 and "right 0.500 (n=5)" in done.stdout
    words = ("base", "--measure", ROOT / "data" / "tiny-base", "--size", 2)
    measured, quiet = run(*words), run(*words, "--quiet")
    assert measured.stdout == quiet.stdout == "shapes             right 1.000 (n=2)\n"
    assert "warning: this will go" in measured.stderr and quiet.stderr == ""


@pytest.fixture
def evaluate(run, tiny_checkpoint):
    """A function that evaluates the tiny model with short replies."""

    def call(*words):
        model = ("--model", tiny_checkpoint, "--device", "cpu", "--profile", "smoke", "--quiet")
        return run("evaluate", *model, "--set", "generation.max_new_tokens=4", *words)

    return call


def test_an_evaluation_goes_on_and_has_blank_images_beside(run, evaluate, tmp_path):
    out = tmp_path / "deep" / "result.jsonl"
    done = evaluate(*SMALL, "--limit", 4, "--out", out, "--with-blank")
    assert done.exit_code == 0 and "| dimension" in done.stdout and "blank images" in done.stdout
    lines = list(read_results(out))
    assert len(lines) == len(list(read_results(tmp_path / "deep" / "result.blank.jsonl"))) == 4
    assert evaluate(*SMALL, "--limit", 5, "--output", out).exit_code == 0  # both names are options
    assert list(read_results(out))[:4] == lines and len(list(read_results(out))) == 5
    other = evaluate(*SMALL, "--out", out, "--set", "generation.max_new_tokens=5")
    assert other.exit_code == 2 and "max_new_tokens was 4 and is now 5" in other.stderr
    compared = run("evaluate", "--out", out, "--compare", out)  # without a model: a report
    assert compared.exit_code == 0 and "accuracy: " in compared.stdout
    lost = run("evaluate", "--out", tmp_path / "none.jsonl")
    assert lost.exit_code == 2 and "--model" in lost.stderr


def test_a_question_without_its_scan_ends_with_exit_code_1(evaluate, tmp_path):
    Image.new("RGB", (64, 48), (120, 90, 60)).save(tmp_path / "there.png")
    asked = (("there.png", "Is it?"), ("gone.png", "Is it?"), ("there.png", ""))
    rows = [{"image": name, "question": text, "answer": "yes"} for name, text in asked]
    (tmp_path / "q.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ("--benchmark", f"pathvqa:{tmp_path / 'q.json'}", "--out", tmp_path / "r.jsonl")
    done = evaluate(*words)
    assert done.exit_code == 1 and "q.json, row 3" in done.stderr and "gone.png" in done.stderr
    Image.new("RGB", (64, 48)).save(tmp_path / "gone.png")
    assert evaluate(*words).exit_code == 0 and len(list(read_results(tmp_path / "r.jsonl"))) == 2


def test_a_study_is_planned(run, monkeypatch, tmp_path):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.setattr("unireason_lib.notebooks.project_root", lambda: tmp_path)
    done = run("ablate", ROOT / "data" / "ablations" / "second.yaml", "--dry-run", "--seeds", 1)
    assert done.exit_code == 0 and "runs, " in done.stdout and "test-joint-seed0" in done.stdout


def test_a_tutorial_that_fails_says_so(run, monkeypatch):
    given = []

    def execute(*words):
        given.extend(words)
        return [{"status": "passed"}, {"status": "failed"}]

    monkeypatch.setattr("unireason_lib.notebooks.run", execute)
    done = run("tutorial", "00", "03", "--profile", "smoke", "-p", "SEED=1")
    assert done.exit_code == 1
    assert given == [["00", "03"], "smoke", {"SEED": 1}, Path("runs/tutorial"), 1]


def test_a_build_says_which_scans_it_could_not_read_and_what_a_folder_lacks(run, tmp_path):
    """A beginner had to open a table of Parquet for it."""
    scans = make_folder(tmp_path / "scans")
    torn = scans / "images/ben-visit1.nii.gz"
    torn.write_bytes(torn.read_bytes()[:-100])
    words = ("build", "--size", "4,64,64", "--out", tmp_path / "set", "--source")
    done = run(*words, f"folder:{scans}")
    assert done.exit_code == 1 and "test        0 records of 0 patients" in done.stdout
    assert "scans-ben-visit1: " in done.stderr and "a whole NIfTI file" in done.stderr
    (scans / "names.json").unlink()
    done = run(*words, f"folder:{scans}")
    assert done.exit_code == 2 and "a folder with names.json" in done.stderr
