"""``evaluate`` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from unireason_lib.cli import app
from unireason_lib.inference import read_results


@pytest.fixture
def run(tiny_checkpoint) -> Callable[..., Result]:
    """A function that evaluates the tiny model, with short replies."""

    def call(*words: object, model: bool = True) -> Result:
        words = ["evaluate", *map(str, words)]
        if model:
            words += [
                "--model",
                str(tiny_checkpoint),
                "--device",
                "cpu",
                "--profile",
                "smoke",
                "--quiet",
            ]
            words += ["--set", "generation.max_new_tokens=4"]
        result = CliRunner().invoke(app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


SMALL = ("--benchmark", "phantom", "--option", "prior_studies=0", "--size", "4x64x64")


def test_a_phantom_run_prints_its_table_and_goes_on(run, tmp_path):
    out = tmp_path / "deep" / "result.jsonl"
    done = run(*SMALL, "--limit", 6, "--out", out, "--with-blank", "--json", tmp_path / "t.json")
    assert done.exit_code == 0, done.output
    lines = list(read_results(out))
    assert len(lines) == 6 and {line["dimension"] for line in lines} == {"2d", "3d"}
    assert (
        "accuracy" in done.output
        and "blind" in done.output
        and "choosing by lot 25.0 %" in done.output
    )
    assert "benchmark phantom test" in done.output
    table = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert table["rows"][0]["n"] == 6 and table["rows"][0]["blind"] is not None
    blank = list(read_results(tmp_path / "deep" / "result.blank.jsonl"))
    assert len(blank) == 6
    again = run(*SMALL, "--limit", 8, "--out", out)
    assert (
        again.exit_code == 0
        and list(read_results(out))[:6] == lines
        and len(list(read_results(out))) == 8
    )
    other = run(*SMALL, "--limit", 8, "--out", out, "--blank")
    assert other.exit_code == 2 and "control" in other.output


def test_results_are_reported_and_compared_without_a_model(run, tmp_path, line):
    from unireason_lib.inference import ResultsFile

    for name, right in (("a", 0), ("b", 1)):
        with ResultsFile(tmp_path / f"{name}.jsonl", {"benchmark": {"benchmark": "made"}}) as file:
            for k in range(30):
                file.append(line(f"q{k}", f"p{k}", right=bool(right or k % 3)))
    done = run("--out", tmp_path / "a.jsonl", "--compare", tmp_path / "b.jsonl", model=False)
    assert done.exit_code == 0 and "+33.3 points" in done.output and "McNemar" in done.output
    table = tmp_path / "t.json"
    both = run(
        *("--out", tmp_path / "a.jsonl", "--also", tmp_path / "a.jsonl"),
        *("--compare", tmp_path / "b.jsonl", "--compare", tmp_path / "b.jsonl", "--json", table),
        model=False,
    )
    assert both.exit_code == 0 and "2 runs against 2" in both.output
    told = json.loads(table.read_text(encoding="utf-8"))["comparison"]["correct"]
    assert told["seeds"] == [2, 2] and told["difference"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    alone = run("--out", tmp_path / "a.jsonl", "--also", tmp_path / "b.jsonl", model=False)
    assert alone.exit_code == 2 and "--compare" in alone.output
    lost = run("--out", tmp_path / "c.jsonl", model=False)
    assert lost.exit_code == 2 and "--model" in lost.output


def test_a_table_with_a_lost_scan_ends_with_exit_code_1(run, tmp_path):
    Image.new("RGB", (64, 48), (120, 90, 60)).save(tmp_path / "there.png")
    rows = [
        {"image": "there.png", "question": "Is it a scan?", "answer": "yes"},
        {"image": "gone.png", "question": "Is it a scan?", "answer": "no"},
        {"image": "there.png", "question": "", "answer": "no"},
    ]
    (tmp_path / "q.json").write_text(json.dumps(rows), encoding="utf-8")
    done = run("--benchmark", f"pathvqa:{tmp_path / 'q.json'}", "--out", tmp_path / "r.jsonl")
    assert done.exit_code == 1
    assert "1 rows of pathvqa cannot be asked" in done.output and "q.json, row 3" in done.output
    assert "1 questions could not be asked" in done.output and "gone.png" in done.output
    Image.new("RGB", (64, 48)).save(tmp_path / "gone.png")
    again = run("--benchmark", f"pathvqa:{tmp_path / 'q.json'}", "--out", tmp_path / "r.jsonl")
    assert again.exit_code == 0 and len(list(read_results(tmp_path / "r.jsonl"))) == 2


def test_the_profile_says_how_many_are_asked_together(run, tmp_path, monkeypatch):
    from unireason_lib import evaluation

    told, ask = [], evaluation.evaluate

    def noting(*words, **how):
        told.append((how["batch_size"], how["settings"].max_new_tokens))
        return ask(*words, **how)

    monkeypatch.setattr(evaluation, "evaluate", noting, raising=False)
    run(*SMALL, "--limit", 2, "--out", tmp_path / "r.jsonl", "--set", "evaluation.batch_size=7")
    run(*SMALL, "--limit", 2, "--out", tmp_path / "r.jsonl", "--batch-size", 3)
    assert [size for size, _ in told] == [7, 3]


def test_slices_of_a_model_that_does_not_point_are_no_error(run, tmp_path):
    done = run(*SMALL, "--limit", 2, "--out", tmp_path / "r.jsonl", "--slices")
    assert done.exit_code == 0 and "begin with a cuboid" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--benchmark", "nothing"), "one of phantom"),
        (("--control", "blink"), "a control of"),
        (("--blank", "--control", "noise"), "no other --control"),
        (("--option", "seed"), "name=value"),
        (("--option", "seeed=3"), "seeed"),
        (("--split", "dev"), "train, test or val"),
        (("--compare", "none.jsonl", "--limit", "1", "--option", "prior_studies=0"), "none.jsonl"),
    ],
)
def test_wrong_words_are_refused(run, tmp_path, words, said):
    done = run("--out", tmp_path / "r.jsonl", *words)
    assert done.exit_code == 2 and said in " ".join(done.output.split())


def test_help_does_not_wait_for_torch():
    program = "import sys; import unireason_lib.cli.evaluate, unireason_lib.evaluation; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "False"
