"""The commands as a whole: help, the tiny checkpoint, pages from results, registration."""

from __future__ import annotations

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
    assert (
        "2d-batch" in run("infer", "--help").stdout
        and "NAMES" in run("bench", "--help").stdout.upper()
    )
    shared = "--model-path --adapter --device --device-map --torch-dtype --normalize --output --max-new-tokens "
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
