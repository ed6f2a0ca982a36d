"""Cleaning: what belongs to one machine or one moment goes, everything else stays."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from nbformat import v4

from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial import document
from unireason_lib.tutorial.document import (
    assigned_names,
    clean,
    last_states,
    outputs_hash,
    parameters_of,
    read_notebook,
    source_hash,
    without_paths,
    write_notebook,
    write_whole,
)

VIEW = "application/vnd.jupyter.widget-view+json"


def executed():
    """A notebook as it comes out of a kernel, with everything that should not be committed."""
    outputs = [
        v4.new_output("stream", name="stderr", text="\r  0%\r 50%\r100%\ndone\n"),
        v4.new_output("stream", name="stdout", text=f"{Path.home()}/x and {sys.prefix}/lib\n"),
        v4.new_output(
            "display_data", data={VIEW: {"model_id": "a"}, "text/plain": "  0%|   | 0/5"}
        ),
        v4.new_output("display_data", data={VIEW: {"model_id": "b"}, "text/html": "<b>viewer</b>"}),
        v4.new_output(
            "display_data", data={"image/png": "aGVsbG8="}, metadata={"needs_background": "light"}
        ),
        v4.new_output("execute_result", data={"text/plain": "4"}, execution_count=1),
    ]
    cell = v4.new_code_cell(
        "2 + 2", outputs=outputs, execution_count=1, metadata={"tags": ["demo"]}
    )
    cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01"}
    cell.metadata["papermill"] = {"duration": 1.0}
    twin = v4.new_code_cell("2 + 2", execution_count=2)
    return v4.new_notebook(
        cells=[v4.new_markdown_cell("# T", metadata={"editable": True}), cell, twin],
        metadata={
            "kernelspec": {"name": "my-kernel", "display_name": "Mine", "language": "python"},
            "language_info": {"name": "python", "version": "3.11.7"},
            "widgets": {"application/vnd.jupyter.widget-state+json": {}},
            "papermill": {"input_path": "/a/b.ipynb"},
            "unireason": {"profile": "laptop"},
        },
    )


def test_clean_removes_traces_and_keeps_what_readers_see(tmp_path):
    notebook = executed()
    clean(notebook, tmp_path)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "unireason": {"profile": "laptop"},
    }
    assert [cell.metadata for cell in notebook.cells] == [{}, {"tags": ["demo"]}, {}]
    outputs = notebook.cells[1].outputs
    assert outputs[0].text == "100%\ndone\n"
    assert outputs[1].text == "~/x and python/lib\n"
    assert outputs[2].data == {"text/html": "<b>viewer</b>"}, (
        "the bare progress bar is gone, the viewer stays"
    )
    assert outputs[3].data == {"image/png": "aGVsbG8="} and outputs[3].metadata == {}
    assert len(outputs) == 5


def test_cleaning_again_changes_nothing_and_ids_follow_from_content(tmp_path):
    first, second = executed(), executed()
    assert first.cells[1].id != second.cells[1].id
    clean(first, tmp_path)
    clean(second, tmp_path)
    assert first == second
    ids = [cell.id for cell in first.cells]
    assert len(set(ids)) == 3, "equal cells still have ids of their own"
    clean(second, tmp_path)
    assert first == second
    write_notebook(tmp_path / "a.ipynb", first)
    assert read_notebook(tmp_path / "a.ipynb") == first


def test_paths_become_relative_or_short(tmp_path):
    root = tmp_path / "project"
    text = f"{root}/runs/a.json {root} {root}-old/x {Path.home()}/y {tmp_path}/other"
    found = without_paths(text, root)
    assert found.startswith("runs/a.json . ")
    assert f"{root}-old/x" in found, "a folder whose name only begins the same is another folder"
    assert "~/y" in found
    assert without_paths("/mnt/ipykernel_12/345.py:7: UserWarning", root) == "<cell>:7: UserWarning"
    assert (
        without_paths("see https://example.org/home/page", root)
        == "see https://example.org/home/page"
    )


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("a\rb", "b"),
        ("a\rb\r", "b"),
        ("a\r\nb\n", "a\nb\n"),
        ("x\n\r 1%\r 2%\ny", "x\n 2%\ny"),
        ("", ""),
        ("plain\n", "plain\n"),
    ],
)
def test_of_a_progress_bar_the_last_state_stays(written, shown):
    assert last_states(written) == shown


def test_hash_of_source_follows_code_and_not_prose_or_outputs():
    notebook, other = executed(), executed()
    other.cells[0].source = "# Another title"
    other.cells[1].outputs = []
    other.cells.insert(
        1, v4.new_code_cell("PROFILE = 1", metadata={"tags": ["injected-parameters"]})
    )
    assert source_hash(other) == source_hash(notebook)
    assert outputs_hash(other) != outputs_hash(notebook)
    other.cells[2].source = "2 + 3"
    assert source_hash(other) != source_hash(notebook)


def test_parameters_with_names_and_defaults(make_notebook):
    parameters = 'PROFILE = "laptop"\nSEED = 0  # of all\nRATE: float = 1e-5\nNAMES = ["a", "b"]\nADAPTER = None'
    path = make_notebook("00_a", "x = 1", parameters=parameters)
    expected = {"PROFILE": "laptop", "SEED": 0, "RATE": 1e-5, "NAMES": ["a", "b"], "ADAPTER": None}
    assert parameters_of(path) == expected


def test_a_parameter_that_papermill_cannot_read_is_named(make_notebook):
    path = make_notebook(
        "00_a", "x = 1", parameters='PROFILE = "laptop"\nOVERRIDES = "max_rounds=3"'
    )
    with pytest.raises(UniReasonError, match=r"OVERRIDES.*one flat literal a line"):
        parameters_of(path)
    assert assigned_names("a = b = 1\nc: int = 2\nif a:\n    d = 3") == {"a", "b", "c"}


def test_files_that_are_no_notebooks(tmp_path):
    with pytest.raises(UniReasonError, match="no such file"):
        read_notebook(tmp_path / "missing.ipynb")
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    with pytest.raises(UniReasonError, match=r"cut\.ipynb"):
        read_notebook(tmp_path / "cut.ipynb")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "sub" / "a.txt"
    write_whole(target, "old\n")

    def full(*paths):
        raise OSError("no space left on device")

    monkeypatch.setattr(document.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(target, "new\n")
    assert target.read_text() == "old\n"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="file modes are those of POSIX")
def test_written_files_are_as_readable_as_others(tmp_path):
    write_whole(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
