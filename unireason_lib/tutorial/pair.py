"""Notebook and text twin: the same cells, once with outputs for readers, once as ``py:percent`` for reviewers.

``notebooks/jupytext.toml`` says what goes into the twin. The notebook determines its twin to the letter, so
whether the two agree is a comparison of texts; no time stamps or version control needed. When they differ, the
newer file is what was edited.
"""

from __future__ import annotations

import copy
import difflib
import subprocess
import sys
from pathlib import Path
from typing import Any

from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial.document import clean, read_notebook, write_notebook, write_whole
from unireason_lib.tutorial.opening import write_opening


def twin_text(notebook: Any, folder: str | Path) -> str:
    """The text twin that belongs to a notebook.

    Args:
        notebook: A notebook node.
        folder: Where ``jupytext.toml`` lies.
    """
    import jupytext

    return jupytext.writes(notebook, fmt="py:percent", config=_settings(folder))


def twin_differences(path: str | Path) -> list[str]:
    """How the text twin on disk differs from the one that belongs to the notebook, as lines of a unified diff.

    Args:
        path: The notebook.
    """
    path = Path(path)
    twin = path.with_suffix(".py")
    if not twin.is_file():
        return [f"{twin.name} is missing"]
    belongs = twin_text(read_notebook(path), path.parent).splitlines()
    return list(
        difflib.unified_diff(
            twin.read_text(encoding="utf-8").splitlines(),
            belongs,
            twin.name,
            path.name,
            lineterm="",
            n=1,
        )
    )


def sync(path: str | Path, root: str | Path) -> str:
    """Bring a notebook and its twin in step, from whichever was edited last, and make one from the other if it
    is missing.

    The badge and the set-up cell are written, cells are formatted, cells whose code did not change keep their
    outputs.

    Args:
        path: Notebook or twin.
        root: The project folder.

    Returns:
        What was done: ``"in step"``, ``"from the twin"``, ``"from the notebook"`` or ``"opening, format or
        metadata"``.

    Raises:
        UniReasonError: One of the files cannot be read, or the notebook does not open as it should.
    """
    notebook_path, twin = Path(path).with_suffix(".ipynb"), Path(path).with_suffix(".py")
    done = "in step"
    if not notebook_path.is_file():
        notebook, done = _from_twin(twin, None), "from the twin"
    else:
        notebook = read_notebook(notebook_path)
        if twin_differences(notebook_path):
            from_twin = twin.is_file() and twin.stat().st_mtime >= notebook_path.stat().st_mtime
            notebook = _from_twin(twin, notebook) if from_twin else notebook
            done = "from the twin" if from_twin else "from the notebook"
    before = copy.deepcopy(notebook)
    write_opening(notebook, notebook_path.stem)
    _format(notebook, notebook_path)
    clean(notebook, root)
    if done == "in step" and notebook == before:
        return done
    write_notebook(notebook_path, notebook)
    write_whole(twin, twin_text(notebook, twin.parent))
    return "opening, format or metadata" if done == "in step" else done


def _from_twin(twin: Path, outputs_from: Any | None) -> Any:
    """The notebook that a twin describes, with outputs of unchanged cells taken from its old state."""
    import jupytext
    from jupytext.combine import combine_inputs_with_outputs

    if not twin.is_file():
        raise UniReasonError(twin, "a notebook or text twin", "neither", "check the name")
    text = twin.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent", config=_settings(twin.parent))
    if outputs_from is not None:
        notebook = combine_inputs_with_outputs(notebook, outputs_from, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    return notebook


def _format(notebook: Any, path: Path) -> None:
    """Format code cells in place as `ruff format` would, cell by cell."""
    import nbformat

    code = nbformat.v4.new_notebook(cells=notebook.cells)
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(path), "-"]
    found = subprocess.run(
        command, input=nbformat.writes(code), capture_output=True, text=True, check=False
    )
    if found.returncode:
        do = "fix the code, or install ruff: pip install -e '.[dev]'"
        raise UniReasonError(path.name, "cells that can be formatted", found.stderr.strip(), do)
    formatted = nbformat.reads(found.stdout, as_version=4)
    for cell, new in zip(notebook.cells, formatted.cells, strict=True):
        cell.source = new.source


def _settings(folder: str | Path) -> Any:
    """Settings of the folder's jupytext.toml, the same that JupyterLab saves with."""
    from jupytext.config import load_jupytext_configuration_file

    file = Path(folder) / "jupytext.toml"
    if not file.is_file():
        raise UniReasonError(file, "the settings of the pairs", "no file", "restore it")
    return load_jupytext_configuration_file(str(file))
