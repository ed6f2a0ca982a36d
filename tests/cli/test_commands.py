"""The commands as a whole: help, the tiny checkpoint, pages from results, registration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner

from unireason_lib import __version__
from unireason_lib.cli.options import ModelOptions, grouped

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom unireason_lib.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'numpy', 'PIL', 'nibabel', 'papermill'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    for name in ("infer", "build", "base", "sft", "evaluate", "trace", "tiny", "tutorial", "bench"):
        assert name in result.stdout


def test_every_command_has_help_and_the_flags_people_know(run):
    assert run("--version").stdout.strip() == __version__
    assert "2d-batch" in run("infer", "--help").stdout and "NAMES" in run("bench", "--help").stdout.upper()
    shared = (
        "--model-path --adapter --device --device-map --torch-dtype --normalize --output --max-new-tokens "
    )
    shared += "--max-rounds --tokens-per-round --temperature --top-p --seed --quiet"
    single = "--question --option-a --option-b --option-c --option-d"
    table = "--input --input-csv --image-root --data-root --max-samples --batch-size"
    for name, flags in (
        ("2d", f"--image {single}"),
        ("3d", f"--volume --target-size {single}"),
        ("2d-batch", table),
        ("3d-batch", f"--target-size {table}"),
    ):
        command = typer.main.get_command(cli()).commands["infer"].commands[name]
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert set(f"{shared} {flags}".split()) <= known, name


def cli():
    from unireason_lib.cli import app

    return app


def test_grouped_unfolds_dataclasses_in_order():
    seen = []

    @dataclass(frozen=True)
    class Pair:
        first: Annotated[int, typer.Option(help="needed")]
        second: str = "two"

    def command(pair: Pair, model: ModelOptions, last: bool = False) -> None:
        seen.append((pair, model.model_path, last))

    command.__annotations__ = {"pair": Pair, "model": ModelOptions, "last": bool}
    app = typer.Typer()
    app.command()(grouped(command))
    assert CliRunner().invoke(app, ["--first", "3", "--model-path", "m", "--last"]).exit_code == 0
    assert seen == [(Pair(3, "two"), "m", True)]
    assert CliRunner().invoke(app, []).exit_code == 2


def test_tiny_makes_a_checkpoint_once(run, tmp_path):
    words = ("tiny", tmp_path / "deep" / "tiny", "--hidden", 32, "--layers", 1)
    assert run(*words).exit_code == 0 and (tmp_path / "deep" / "tiny" / "config.json").exists()
    again = run(*words)
    assert again.exit_code == 2 and "choose another name" in again.stderr


def test_bench_is_registered(run):
    result = run("bench", "nonsense")
    assert result.exit_code == 2 and "serialize" in result.stderr


def test_results_become_a_page(run, scans, questions, scripted, tmp_path):
    scripted("<think><|box_start|>[16,8,1,48,24,3]<|box_end|></think>B. cyst<|im_end|>")
    asked = [{"id": f"v{k}", "volume": f"{k}.nii.gz", "question": "What?"} for k in (0, 1, 7)]
    out = tmp_path / "out.jsonl"
    run(
        *("infer", "3d-batch", "--input", questions(*asked), "--data-root", scans, "--output", out),
        *("--target-size", "4x32x64", "--max-new-tokens", 99),
    )
    result = run("trace", out)
    page = (tmp_path / "out.html").read_text()
    assert result.exit_code == 0 and "3 replies" in result.stdout and result.stderr == ""
    assert all(f">{name}<" in page for name in ("v0", "v1", "v7")) and page.count("data:image/png") >= 8
    assert "7.nii.gz: expected a file" in page  # an error is shown as it was recorded

    result = run("trace", out, "--id", "v0", "--max-samples", 1, "--out", tmp_path / "one.html")
    assert result.exit_code == 0 and ">v1<" not in (tmp_path / "one.html").read_text()
    assert run("trace", out, "--id", "nobody").exit_code == 2
    assert run("trace", tmp_path / "none.jsonl").exit_code == 2
    result = run("trace", out, "--data-root", tmp_path, "--out", tmp_path / "bare.html")
    assert result.exit_code == 0 and "v0: shown without pictures" in result.stderr


def test_one_reply_becomes_a_page_and_paths_in_results_are_not_trusted(run, scans, scripted, tmp_path):
    scripted("<think><|box_start|>[16,8,48,24]<|box_end|></think>B. cyst<|im_end|>")
    out = tmp_path / "reply.json"
    words = ("--question", "What?", "--output", out, "--max-new-tokens", 99)
    run("infer", "2d", "--image", scans / "0.png", *words)
    result = run("trace", out)
    assert result.exit_code == 0 and "shown without pictures" in result.stderr  # not below the current folder
    result = run("trace", out, "--image-root", scans)
    assert (
        result.exit_code == 0
        and result.stderr == ""
        and "data:image" in (tmp_path / "reply.html").read_text()
    )
    record = json.loads(out.read_text())
    for change in ({"image": "../secret.png"}, {"frame": None}, {"picture": {"window": "nonsense"}}):
        out.write_text(json.dumps({**record, **change}))
        result = run("trace", out, "--image-root", scans)
        assert result.exit_code == 0 and "shown without pictures" in result.stderr
    out.write_text("[]")
    assert run("trace", out).exit_code == 2
