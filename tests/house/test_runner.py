"""Notebooks in real kernels: what passes, fails, hangs or is interrupted, and what a reader is told.

A kernel takes about a second to come up, so several things are looked at in one run.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unireason_lib.errors import UniReasonError
from unireason_lib.profiles import load_profile
from unireason_lib.tutorial.__main__ import app
from unireason_lib.tutorial.document import STAMP, read_notebook
from unireason_lib.tutorial.execution import execute, kernel_environment
from unireason_lib.tutorial.gate import problems
from unireason_lib.tutorial.refresh import is_stale, refresh
from unireason_lib.tutorial.runner import find_notebooks, run_tutorial, share_parameters

ENVIRONMENT = (
    "import os, sys, matplotlib\n"
    "names = ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'MPLBACKEND')\n"
    "print('ENV', sys.executable, os.getcwd(), [os.environ.get(name) for name in names])\n"
    "print('careful', file=sys.stderr)"
)
PUBLISH = "from unireason_lib.tutorial import publish\npublish('ratio', 2.5, 'x', note=PROFILE)"


def texts(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") + str(output.get("data", "")) for output in outputs)


@pytest.fixture
def inside(notebooks, monkeypatch):
    """Work within the small project that the notebooks belong to."""
    monkeypatch.chdir(notebooks.parent)
    return notebooks.parent


def test_a_run_goes_on_after_a_failure_and_says_where_things_are(
    make_notebook, inside, monkeypatch, capsys
):
    bogus = inside / "jupyter" / "kernels" / "python3"
    bogus.mkdir(parents=True)
    (bogus / "kernel.json").write_text(
        '{"argv": ["/no/such/python"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(inside / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    make_notebook("00_fails", "x = SEED", "raise ValueError('boom\\nand more')", "print('never')")
    make_notebook("02_asserts", "x = 1\nassert x == 2", "print('never')")
    make_notebook("01_works", ENVIRONMENT, PUBLISH, "print('SEED', SEED)")
    sources = {
        path: path.read_bytes() for path in (inside / "notebooks").iterdir() if path.is_file()
    }
    outcome = CliRunner().invoke(
        app, ["run", "--profile", "laptop", "-p", "SEED=7", "--out", "runs/x"]
    )
    assert outcome.exit_code == 1, outcome.output
    lines = outcome.output.strip().split("\n")
    assert lines[-1] == "notebooks: 1 passed, 2 failed"
    assert re.search(
        r"02_asserts .* failed: cell 4: AssertionError: assert x == 2$", outcome.output, re.M
    )
    assert re.search(
        r"00_fails +4 of +6 cells +[\d.]+ s  failed: cell 5: ValueError: boom$",
        outcome.output,
        re.M,
    )
    assert re.search(r"01_works +6 of +6 cells +[\d.]+ s  passed$", outcome.output, re.M)
    assert re.search(r"01_works +ratio +2\.5 x +laptop", outcome.output)
    assert "Executed notebooks: runs/x/" in outcome.output

    executed = read_notebook(inside / "runs" / "x" / "01_works.ipynb")
    shown = texts(executed)
    assert f"ENV {sys.executable} {inside / 'notebooks'} ['1', '1', None]" in shown.replace(
        "'module://matplotlib_inline.backend_inline'", "None"
    )
    assert "SEED 7" in shown and "careful" in shown
    assert "never" not in texts(read_notebook(inside / "runs" / "x" / "00_fails.ipynb"))
    assert executed.metadata.papermill.input_path == "01_works.ipynb"
    assert str(inside) not in json.dumps(executed.metadata)
    assert {path: path.read_bytes() for path in sources} == sources, (
        "the notebooks themselves are left alone"
    )
    assert sorted(path.name for path in (inside / "runs" / "x").iterdir()) == [
        "00_fails.ipynb",
        "01_works.ipynb",
        "02_asserts.ipynb",
        "results.json",
    ]
    record = json.loads((inside / "runs" / "x" / "results.json").read_text())
    assert record["profile"] == "laptop" and record["results"][0]["value"] == 2.5
    assert [entry["status"] for entry in record["notebooks"]] == ["failed", "passed", "failed"]


def test_smoke_figures_are_not_shown_and_a_hanging_cell_ends(make_notebook, inside, capsys):
    make_notebook("00_hangs", PUBLISH, "import time\ntime.sleep(60)")
    start = time.monotonic()
    run = run_tutorial("smoke", timeout=2)
    assert time.monotonic() - start < 30
    shown = capsys.readouterr().out
    assert "no end within 2 s" in shown
    assert "2.5" not in shown and "Results published: 1 (not shown" in shown
    assert run.failed == 1 and run.results[0].note == "smoke"


def test_a_notebook_that_trains_long_runs_as_smoke_unless_it_is_named(
    make_notebook, inside, capsys
):
    make_notebook("00_short", "print('PROFILE', PROFILE)", PUBLISH)
    make_notebook("04_trains", "print('PROFILE', PROFILE)", PUBLISH)
    run = run_tutorial("laptop")
    shown = {e.name: texts(e.notebook) for e in run.executions}
    assert "PROFILE laptop" in shown["00_short"] and "PROFILE smoke" in shown["04_trains"]
    assert [result.notebook for result in run.results] == ["00_short"], (
        "figures of a short run are no results"
    )
    assert re.search(r"04_trains .* passed  \(as smoke; name it", capsys.readouterr().out)
    named = run_tutorial("laptop", only=["04"])
    assert "PROFILE laptop" in texts(named.executions[0].notebook) and len(named.results) == 1
    assert "as smoke" not in capsys.readouterr().out


def test_refresh_makes_what_the_gate_lets_through_and_leaves_failures_alone(
    make_notebook, inside, monkeypatch
):
    path = make_notebook(
        "00_a", "print('hello')", "import matplotlib.pyplot as plt\n\nplt.plot([1, 2]);"
    )
    assert is_stale(path) and problems(path)
    seen = []
    execution = refresh(path, inside, on_cell=lambda done, total: seen.append((done, total)))
    assert execution.status == "passed" and problems(path) == []
    assert seen == [(done, 4) for done in range(5)]
    notebook = read_notebook(path)
    assert not is_stale(path)
    assert notebook.metadata[STAMP]["profile"] == "laptop"
    assert notebook.metadata[STAMP]["parameters"] == {
        "PROFILE": "laptop",
        "SEED": 0,
        "OVERRIDES": "",
    }
    assert "image/png" in str(notebook.cells[-1].outputs)
    twin = path.with_suffix(".py")
    twin.write_text(
        twin.read_text().replace("print('hello')", "1 / 0").replace('print("hello")', "1 / 0")
    )
    os.utime(path, (1, 1))
    execution = refresh(path, inside)
    assert execution.status == "failed" and "ZeroDivisionError" in execution.error
    assert "image/png" in str(read_notebook(path).cells[-1].outputs), "earlier outputs stay"
    assert any("code changed" in problem for problem in problems(path))


def test_refresh_wants_the_laptop_profile(make_notebook, inside):
    path = make_notebook("00_a", "x = 1", parameters='PROFILE = "smoke"')
    with pytest.raises(UniReasonError, match="laptop"):
        refresh(path, inside)


LONG = """\
import pathlib, time
pathlib.Path("started").write_text("x")
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("saved what there was")
    {then}"""


@pytest.mark.skipif(os.name == "nt", reason="interrupts reach kernels differently on Windows")
def test_an_interrupt_reaches_the_cell_then_ends_the_run(make_notebook, inside, checkout):
    """A cell that saves and ends well on Ctrl-C: the next cell and the next notebook must not begin."""
    make_notebook("00_long", LONG.format(then="pass"), "print('next')")
    make_notebook("01_later", "x = 1")
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "unireason_lib.tutorial", "run", "--out", "runs/x"]
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    interrupt_when_started(inside, run.pid)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "interrupted" in output and output.strip().endswith("notebooks: 0 passed, 1 failed")
    shown = texts(read_notebook(inside / "runs" / "x" / "00_long.ipynb"))
    assert "saved what there was" in shown and "next" not in shown
    assert not (inside / "runs" / "x" / "01_later.ipynb").exists()


@pytest.mark.skipif(os.name == "nt", reason="interrupts reach kernels differently on Windows")
def test_an_interrupted_cell_may_also_fail(make_notebook, inside):
    path = make_notebook("00_long", LONG.format(then="raise"), "print('next')")
    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt_when_started, args=(inside, os.getpid())).start()
    execution = execute(path, timeout=60)
    assert (execution.status, execution.error) == ("interrupted", "after 2 of 4 cells")
    assert "saved what there was" in texts(execution.notebook)
    assert signal.getsignal(signal.SIGINT) == before


def interrupt_when_started(project: Path, process: int) -> None:
    """Send Ctrl-C once the long cell runs."""
    deadline = time.monotonic() + 60
    while not (project / "notebooks" / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(process, signal.SIGINT)


def test_a_kernel_that_dies_fails_its_notebook_only(make_notebook, inside):
    path = make_notebook("00_dies", "import os\nos._exit(9)", "print('next')")
    execution = execute(path, timeout=30)
    assert execution.status == "failed" and "died" in execution.error.lower()


def test_parameters_go_to_the_notebooks_that_declare_them(make_notebook, notebooks):
    first = make_notebook("00_a", "x = 1", parameters='PROFILE = "laptop"\nSEED = 0\nRATE = 0.5')
    second = make_notebook("01_b", "x = 1", parameters='PROFILE = "laptop"\nSEED = 0\nNAME = "7"')
    smoke = load_profile("smoke")
    shared = share_parameters([first, second], smoke, {"SEED": "3", "RATE": "1", "NAME": "8"})
    assert shared == {
        first: {"PROFILE": "smoke", "SEED": 3, "RATE": 1.0},
        second: {"PROFILE": "smoke", "SEED": 3, "NAME": "8"},
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"SED": 1}, "SEED"),
        ({"PROFILE": "gpu"}, "--profile"),
        ({"SEED": "many"}, "int"),
        ({"OVERRIDES": "generation.max_round=2"}, "generation.max_rounds"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(
    make_notebook, inside, monkeypatch, values, says
):
    make_notebook("00_a", "x = 1")
    monkeypatch.setattr(
        "unireason_lib.tutorial.execution.execute", lambda *a, **k: pytest.fail("it ran")
    )
    with pytest.raises(UniReasonError, match=says):
        run_tutorial(parameters=values)


def test_a_notebook_without_a_profile_is_refused(make_notebook):
    path = make_notebook("00_a", "x = 1", parameters="SEED = 0")
    with pytest.raises(UniReasonError, match="PROFILE"):
        share_parameters([path], load_profile("smoke"), {})


def test_which_notebooks(make_notebook, notebooks):
    with pytest.raises(UniReasonError, match="NN_name"):
        find_notebooks(notebooks)
    paths = [make_notebook(name, "x = 1") for name in ("90_z", "00_a", "03_c")]
    (notebooks / "scratch.ipynb").write_text("{}")
    ordered = [paths[1], paths[2], paths[0]]
    assert find_notebooks(notebooks) == ordered
    assert (
        find_notebooks(notebooks, ["03", "00"])
        == find_notebooks(notebooks, ["03_c,00_a"])
        == ordered[:2]
    )
    with pytest.raises(UniReasonError, match="perhaps '03_c'"):
        find_notebooks(notebooks, ["03_d"])


def test_command_line_errors_are_one_line(make_notebook, inside):
    make_notebook("00_a", "x = 1")
    for arguments in (
        ["--profile", "tiny"],
        ["07"],
        ["--only", "00", "07"],
        ["-p", "SEED"],
        ["-p", "SED=1"],
    ):
        outcome = CliRunner().invoke(app, ["run", *arguments])
        assert outcome.exit_code == 2, outcome.output
        assert outcome.output.startswith("error: ") and outcome.output.count("\n") == 1


def test_gate_and_sync_commands(make_notebook, inside):
    path = make_notebook("00_a", "x = 1")
    outcome = CliRunner().invoke(app, ["gate"])
    assert outcome.exit_code == 1 and "0 of 1 notebooks may be committed" in outcome.output
    path.unlink()
    outcome = CliRunner().invoke(app, ["sync", "00"])
    assert outcome.exit_code == 0 and outcome.output == "00_a: from the twin\n" and path.is_file()
    outcome = CliRunner().invoke(app, ["refresh", "--stale"])
    assert outcome.exit_code == 0 and "refreshed: 1 of 1" in outcome.output
    outcome = CliRunner().invoke(app, ["gate"])
    assert outcome.exit_code == 0 and "1 of 1 notebooks may be committed" in outcome.output
    outcome = CliRunner().invoke(app, ["refresh", "--stale"])
    assert outcome.exit_code == 0 and "refreshed: 0 of 0" in outcome.output


def test_a_profile_that_may_ask_the_hub_does(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert "HF_HUB_OFFLINE" not in kernel_environment(offline=False)
    assert kernel_environment(offline=True)["HF_HUB_OFFLINE"] == "1"
    package = kernel_environment(offline=True)["PYTHONPATH"].split(os.pathsep)[0]
    assert (Path(package) / "unireason_lib").is_dir()
