"""Notebooks in real kernels: what passes, fails or is refused, and what the gate lets through."""

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import numpy as np
import pytest

from unireason_lib import notebooks
from unireason_lib.errors import UniReasonError

ROOT = Path(__file__).resolve().parents[1]
URL = dict(u.split(", ") for u in metadata.metadata("unireason-lab").get_all("Project-URL"))
SET_UP = notebooks.SET_UP_FILE.read_text().strip()
SET_UP = SET_UP.format(repository=URL["Repository"], version=notebooks.__version__)
PUBLISH = "from unireason_lib.notebooks import publish\npublish('ratio', 2.5, 'x', note=PROFILE)"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project; `project(name, *cells)` adds a paired notebook to it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / "jupytext.toml", folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def add(name, *cells):
        parts = ["# %% [markdown]\n# # Title", f'# %% tags=["setup"]\n{SET_UP}']
        parts.insert(1, '# %% tags=["parameters"]\nPROFILE = "laptop"\nSEED = 0')
        parts += [f"# %%\n{cell}" for cell in cells]
        path = folder / f"{name}.ipynb"
        path.with_suffix(".py").write_text("\n\n".join(parts) + "\n")
        notebook = jupytext.read(path.with_suffix(".py"), fmt="py:percent")
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata["kernelspec"] = kernel
        nbformat.write(notebook, path)
        return path

    return add


def text_of(path):
    return str([cell.get("outputs") for cell in nbformat.read(path, 4).cells])


def test_a_run_goes_on_after_a_failure_and_ends_with_the_results(project, capfd):
    project("00_fails", "raise ValueError('boom\\nand more')", "print('never')")
    path = project("01_works", PUBLISH, "print('SEED', SEED)")
    project("04_trains", "print('profile', PROFILE)", PUBLISH)
    before = path.read_bytes()
    rows = notebooks.run(parameters={"SEED": 7}, out="runs/x", workers=2)
    assert [row["status"] for row in rows] == ["failed", "passed", "passed"]
    shown = capfd.readouterr().out
    assert "ValueError: boom" in shown and "Executed notebooks: runs/x" in shown
    assert shown.count("2.5 x") == 1, "figures of the profile smoke are no results"
    assert "SEED 7" in text_of("runs/x/01_works.ipynb")
    assert "profile smoke" in text_of("runs/x/04_trains.ipynb")
    assert "never" not in text_of("runs/x/00_fails.ipynb")
    assert path.read_bytes() == before
    assert json.loads(Path("runs/x/results.json").read_text())["results"][0]["value"] == "2.5 x"


def test_an_unknown_name_is_refused_before_anything_runs(project, monkeypatch):
    """Plain papermill ran the defaults for a misspelt parameter."""
    project("00_a", "print('trained')")
    for arguments, message in (
        ({"names": ["07"]}, "'07'"),
        ({"parameters": {"SED": 1}}, "perhaps 'SEED'"),
        ({"profile": "laptob"}, "laptop"),
    ):
        with pytest.raises(UniReasonError, match=message):
            notebooks.run(**arguments)
    assert not Path("runs").exists()
    kernel = SimpleNamespace(user_ns={"In": ["", "PROFILE = 1", "# Parameters\nPROFIL = 2"]})
    monkeypatch.setattr("IPython.get_ipython", lambda: kernel)
    with pytest.raises(UniReasonError, match="perhaps 'PROFILE'"):  # in the set-up cell
        notebooks.check_versions()


@pytest.mark.parametrize(("fails", "status"), [(1, "passed"), (9, "failed")])
def test_a_kernel_that_lost_its_port_to_another_is_begun_again(project, monkeypatch, fails, status):
    """Two kernels that started at one time were given one port, and the run ended in a traceback."""
    path, calls = project("00_a", "1"), []

    def execute(*args, **how):
        calls.append(1)
        if len(calls) <= fails:
            raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr("papermill.execute_notebook", execute)
    row = notebooks.execute(path, Path("out.ipynb"), {}, notebooks.load_profile())
    assert row["status"] == status and len(calls) == min(fails + 1, 3)


def test_refresh_makes_what_the_gate_lets_through(project, monkeypatch):
    path = project("00_a", "import matplotlib.pyplot as plt\n\nplt.plot([1, 2]);", "print('hello')")
    assert any("other code" in problem for problem in notebooks.gate())
    environment = dict(os.environ)
    assert notebooks.refresh() == notebooks.gate() == []
    assert dict(os.environ) == environment, "it stays as the caller had it"
    assert "image/png" in text_of(path) and "hello" in text_of(path)
    script = path.with_suffix(".py")
    script.write_text(script.read_text().replace("print('hello')", "1 / 0"))
    assert any("paired script" in problem for problem in notebooks.gate())

    def execute(path, out, *_):
        shutil.copy(path, out)
        return {"status": "failed"}

    monkeypatch.setattr(notebooks, "execute", execute)
    kept = text_of(path)
    assert notebooks.refresh() == ["00_a.ipynb failed"] and text_of(path) == kept


def test_the_gate_refuses_what_should_not_be_shown(project):
    path = project("00_a", "\n".join(["x = 1"] * 26))
    shown = {"application/vnd.jupyter.widget-view+json": {}}
    shown["text/plain"] = "see " + "/".join(("", "home", "me", "x")) + "x" * 3_000_001
    notebook = nbformat.read(path, 4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("display_data", data=shown)]
    nbformat.write(notebook, path)
    problems = "".join(notebooks.gate())
    for problem in ("path of one machine", "widget state", "3 MB", "25 lines", "did not run"):
        assert problem in problems


def test_sync_takes_the_edited_one_and_refuses_when_both_were_edited(project):
    path = project("00_a", "x = 1")
    script = path.with_suffix(".py")
    notebooks.sync()
    for old, new in (("x = 1", "x = 0"), ("x = 0", "x = 2")):  # twice, without a commit
        script.write_text(script.read_text().replace(old, new))
        notebooks.sync()
        assert nbformat.read(path, 4).cells[-1].source == new
    notebook = nbformat.read(path, 4)
    notebook.cells[-1].source = "x = 3"
    nbformat.write(notebook, path)
    script.write_text(script.read_text().replace("x = 2", "x = 4"))
    nobody_synced = project("01_b", "x = 1").with_suffix(".py")
    nobody_synced.write_text(nobody_synced.read_text().replace("x = 1", "x = 2"))
    files = (path, script, nobody_synced, nobody_synced.with_suffix(".ipynb"))
    before = [file.read_bytes() for file in files]
    for name in ("00_a", "01_b"):
        with pytest.raises(UniReasonError, match=rf"{name}\.ipynb too"):
            notebooks.sync([name])
    assert [file.read_bytes() for file in files] == before


def test_published_figures_are_finite_and_a_zero_is_one(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    notebooks.publish("speed", np.float64(3.4123), "x", interval=(3.1, np.float32(3.75)), note="n")
    notebooks.publish("errors", 0)
    assert shown[0]["text/plain"] == "speed: 3.41 x (3.1 to 3.75)  [n]"
    assert shown[1][notebooks.RESULT]["value"] == "0"
    for value in (float("nan"), np.float32("inf"), [1, 2], None):
        with pytest.raises(UniReasonError, match="finite"):
            notebooks.publish("thing", value)
    assert len(shown) == 2


def test_versions_are_compared_with_what_is_declared(monkeypatch):
    assert f"trl {metadata.version('trl')}" in notebooks.check_versions()
    needs = ["trl<1", "no-such-package>=3", 'gone>=1; python_version < "3"']
    monkeypatch.setattr(notebooks.metadata, "requires", lambda name: needs)
    with pytest.raises(UniReasonError, match=r"trl<1: 1.*no-such-package>=3: nothing") as caught:
        notebooks.check_versions()
    assert "gone" not in str(caught.value)


def test_a_short_hash_names_a_run_by_everything_that_decides_it():
    one = notebooks.short_hash({"a": 1, "b": (2,)}, "x")
    assert one == notebooks.short_hash({"b": [2], "a": 1}, "x") and len(one) == 8
    assert one != notebooks.short_hash({"a": 1, "b": (3,)}, "x") != notebooks.short_hash("x")
