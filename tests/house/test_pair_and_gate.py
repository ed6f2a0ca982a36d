"""Pairs stay in step, and the gate lets nothing stale or private through. No kernel runs here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nbformat import v4

from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial import project
from unireason_lib.tutorial.document import STAMP, read_notebook, write_notebook
from unireason_lib.tutorial.gate import MACHINE_PATH, problems
from unireason_lib.tutorial.opening import badge, setup_source
from unireason_lib.tutorial.pair import sync, twin_differences, twin_text
from unireason_lib.tutorial.refresh import is_stale, stamp


def as_if_refreshed(path: Path) -> None:
    """Give a notebook outputs and a stamp, as a refresh does."""
    notebook = read_notebook(path)
    for count, cell in enumerate(
        (cell for cell in notebook.cells if cell.cell_type == "code"), start=1
    ):
        cell.execution_count = count
        cell.outputs = [v4.new_output("stream", name="stdout", text=f"output {count}\n")]
    stamp(notebook, path.parent.parent, {"PROFILE": "laptop", "SEED": 0}, seconds=1.0)
    write_notebook(path, notebook)


@pytest.fixture
def fresh(make_notebook) -> Path:
    """A notebook that may be committed."""
    path = make_notebook("00_fresh", "x = 1\nprint(x)", "y = x + 1", title="# Fresh\n\nProse.")
    as_if_refreshed(path)
    assert problems(path) == []
    return path


def older(path: Path) -> None:
    os.utime(path, (1_000_000_000, 1_000_000_000))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def change(path: Path, what) -> None:
    notebook = read_notebook(path)
    what(notebook)
    write_notebook(path, notebook)


def test_a_twin_alone_becomes_a_notebook_with_badge_and_set_up(make_notebook):
    path = make_notebook("00_new", "def f( x ):\n  return x", title="# Title\nFirst words.")
    notebook = read_notebook(path)
    assert notebook.cells[0].source == f"# Title\n\n{badge('00_new')}\n\nFirst words."
    assert [cell.metadata.get("tags") for cell in notebook.cells[1:3]] == [
        ["parameters"],
        ["setup"],
    ]
    assert notebook.cells[2].source == setup_source()
    assert notebook.cells[3].source == "def f(x):\n    return x", "formatted"
    assert twin_differences(path) == []
    assert "jupytext_version" not in path.with_suffix(".py").read_text()
    before = path.read_bytes()
    assert sync(path, path.parent.parent) == "in step"
    assert path.read_bytes() == before


def test_an_edited_twin_updates_the_notebook_and_keeps_other_outputs(fresh):
    edit(fresh.with_suffix(".py"), "y = x + 1", "y = x + 2")
    older(fresh)
    assert any("y = x + 2" in line for line in twin_differences(fresh))
    assert any("differs from its text twin" in problem for problem in problems(fresh))
    assert sync(fresh, fresh.parent.parent) == "from the twin"
    notebook = read_notebook(fresh)
    assert notebook.cells[-1].source == "y = x + 2"
    assert notebook.cells[-2].outputs[0].text == "output 3\n"
    assert any("code changed" in problem for problem in problems(fresh))
    assert is_stale(fresh)


def test_an_edited_notebook_updates_the_twin(fresh):
    change(fresh, lambda notebook: notebook.cells.append(v4.new_markdown_cell("The end.")))
    older(fresh.with_suffix(".py"))
    assert sync(fresh, fresh.parent.parent) == "from the notebook"
    assert fresh.with_suffix(".py").read_text().endswith("# The end.\n")
    assert problems(fresh) == [], "prose does not make outputs stale"
    assert not is_stale(fresh)


def test_a_moved_repository_is_written_into_badge_and_set_up(fresh, monkeypatch):
    present = project.declared()
    forked = project.Declaration(present.version, "https://github.com/a-fork/lab", ">=3.11", ())
    monkeypatch.setattr("unireason_lib.tutorial.opening.declared", lambda: forked)
    assert any("make sync" in problem for problem in problems(fresh))
    sync(fresh, fresh.parent.parent)
    text = fresh.with_suffix(".py").read_text()
    assert text.count("a-fork/lab") == 2 and "unireason-lab/unireason-lab" not in text


def test_set_up_does_nothing_here_and_installs_on_colab(monkeypatch, tmp_path, capsys):
    import subprocess
    import sys

    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    exec(compile(setup_source(), "setup", "exec"), {})
    assert calls == []
    (tmp_path / "unireason-lab" / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", object())
    exec(compile(setup_source(), "setup", "exec"), {})
    assert [command[0] for command in calls] == ["git", sys.executable]
    assert (
        project.declared().repository in calls[0]
        and f"--branch=v{project.declared().version}" in calls[0]
    )
    assert Path.cwd() == tmp_path / "unireason-lab" / "notebooks"
    (tmp_path / "unireason-lab" / "unireason_lib").mkdir()
    exec(compile(setup_source(), "setup", "exec"), {})
    assert len(calls) == 2, "run again: nothing is fetched twice"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda nb: nb.metadata.pop(STAMP), "no record"),
        (lambda nb: nb.metadata[STAMP].update(profile="smoke"), "'smoke'"),
        (lambda nb: nb.cells[3].update(source="x = 2\nprint(x)"), "code changed"),
        (lambda nb: nb.cells[3].outputs[0].update(text="by hand\n"), "by hand"),
        (lambda nb: nb.cells[3].update(execution_count=None), "not executed"),
        (
            lambda nb: [cell.update(outputs=[]) for cell in nb.cells if cell.cell_type == "code"],
            "nothing shows",
        ),
        (
            lambda nb: nb.cells[3].outputs.append(
                v4.new_output("error", ename="ValueError", evalue="boom", traceback=[])
            ),
            "ended with an error: ValueError",
        ),
        (
            lambda nb: nb.cells[3].outputs[0].update(text="in /mnt/x/y\n"),
            "path of one machine: '/mnt/x",
        ),
        (lambda nb: nb.cells[3].outputs[0].update(text="C:\\Users\\me\n"), "path of one machine"),
        (
            lambda nb: nb.cells[0].update(source=nb.cells[0].source + " (/Users/me/scan.nii)"),
            "'/Users/me",
        ),
        (lambda nb: nb.metadata.update(widgets={}), "metadata of one run or editor (widgets"),
        (lambda nb: nb.metadata.language_info.update(version="3.11.7"), "(version"),
        (lambda nb: nb.cells[3].metadata.update(scrolled=True), "scrolled"),
        (
            lambda nb: nb.cells[3].outputs.append(
                v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
            ),
            "widget views",
        ),
        (
            lambda nb: nb.cells[4].update(source="\n".join(f"x = {i}" for i in range(26))),
            "26 lines",
        ),
        (
            lambda nb: nb.cells[1].metadata.update(tags=[]),
            "not tagged 'parameters'|cell tagged 'parameters'",
        ),
        (lambda nb: nb.cells[1].update(source='PROFILE = "smoke"'), 'PROFILE = "laptop"'),
        (lambda nb: nb.cells[1].update(source='PROFILE = "laptop"\nSEED = None'), "SEED"),
        (lambda nb: nb.cells.pop(2), "badge or set-up"),
        (lambda nb: nb.cells[0].update(source="# Fresh"), "badge or set-up"),
        (
            lambda nb: nb.cells[3].outputs.append(
                v4.new_output("display_data", data={"image/png": "A" * 3_000_000})
            ),
            "3.0 MB",
        ),
    ],
)
def test_the_gate_names_what_is_wrong(fresh, damage, says):
    change(fresh, damage)
    found = problems(fresh)
    assert any(part in problem for problem in found for part in says.split("|")), found


def test_the_gate_survives_files_that_are_no_notebooks(fresh):
    fresh.write_text("{")
    assert len(problems(fresh)) == 1
    fresh.with_suffix(".py").unlink()
    assert len(problems(fresh)) == 1


def test_a_missing_twin_is_noticed(fresh):
    fresh.with_suffix(".py").unlink()
    assert any("is missing" in problem for problem in problems(fresh))
    assert sync(fresh, fresh.parent.parent) == "from the notebook"
    assert problems(fresh) == []


def test_what_cannot_be_opened_or_formatted_is_refused(make_notebook, notebooks):
    with pytest.raises(UniReasonError, match="tagged 'parameters'"):
        (notebooks / "00_a.py").write_text("# %% [markdown]\n# # T\n\n# %%\nx = 1\n")
        sync(notebooks / "00_a.py", notebooks.parent)
    with pytest.raises(UniReasonError, match="open with a title"):
        (notebooks / "00_b.py").write_text("# %%\nx = 1\n")
        sync(notebooks / "00_b.py", notebooks.parent)
    with pytest.raises(UniReasonError, match="formatted"):
        make_notebook("00_c", "x = (")
    with pytest.raises(UniReasonError, match="neither"):
        sync(notebooks / "00_d.ipynb", notebooks.parent)
    (notebooks / "jupytext.toml").unlink()
    with pytest.raises(UniReasonError, match=r"jupytext\.toml"):
        twin_text(v4.new_notebook(), notebooks)


@pytest.mark.parametrize("folder", ["home", "Users", "root", "tmp", "work", "mnt", "usr"])
@pytest.mark.parametrize(
    "text", ["/{}/me", "(/{}/x)", "'/{}/a b'", "at:/{}/main", "file:///{}/a.png"]
)
def test_paths_of_a_machine(text, folder):
    assert MACHINE_PATH.search(text.format(folder))


@pytest.mark.parametrize("text", ["C:\\Users\\me", "ipykernel_3/1.py"])
def test_other_signs_of_a_machine(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "runs/home/x",
        "https://a.org/tmp/x",
        "~/opt/x",
        "./work/x",
        "and/or",
        "/ work",
        "</usr/x>",
        "1/usr",
    ],
)
def test_addresses_and_relative_paths_are_none(text):
    assert not MACHINE_PATH.search(text)
